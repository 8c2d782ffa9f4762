"""Every error this package raises, as one tree.

::

    OutputKeeperError
    ├── WireError                 a frame on a socket is not what the messaging spec says
    │   ├── MalformedMessage      it cannot be split or decoded
    │   └── BadSignature          its HMAC is not ours
    ├── UnexpectedMessage         well formed, but impossible in this state
    ├── ConnectionFileError       a connection file is unreadable or incomplete
    ├── StoreError                a record on disk
    │   ├── StoreLocked           another process writes it
    │   ├── StoreUnavailable      the storage refuses now: full, read-only, failing
    │   ├── StoreVersion          written by a newer output-keeper
    │   └── StoreCorrupted        not what was written; says what was dropped
    ├── SyncError                 the record endpoint refused, or an answer cannot be trusted
    ├── KernelError               the kernel process
    │   ├── LaunchFailed          it did not start
    │   └── KernelDied            it ended without being asked to
    ├── RoomError                 the live document of a notebook
    │   └── RoomBusy              not now: it is loading or being overwritten; try again
    ├── NotebookError             a notebook file cannot be read or written
    └── ConfigError               a setting is wrong; names the trait

Each carries ``hint`` (what to do, for the person reading) and ``heals`` (True when trying again later is right).
"""

from __future__ import annotations

from typing import ClassVar


class OutputKeeperError(Exception):
    """The root: ``str()`` says what happened and where; ``hint`` what to do about it."""

    heals: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        """Message and hint in one line, as a log or a terminal shows it."""
        message = super().__str__()
        return f"{message} ({self.hint})" if self.hint else message


class WireError(OutputKeeperError):
    """The peer sent something the messaging spec does not allow. The message is counted and not recorded."""


class MalformedMessage(WireError):
    """Frames without a delimiter, with missing parts, or whose parts are not JSON objects."""


class BadSignature(WireError):
    """The signature is not the HMAC of the parts under the connection's key."""


class UnexpectedMessage(OutputKeeperError):
    """A transition that does not exist. The state it names is unchanged."""

    def __init__(self, state: object, event: object) -> None:
        super().__init__(f"{event} cannot happen in state {state}")
        self.state = state
        self.event = event


class ConnectionFileError(OutputKeeperError):
    """The connection file cannot be used; names the file and the field."""


class StoreError(OutputKeeperError):
    """A record's file; ``path`` names it."""

    def __init__(self, message: str, *, path: str, hint: str = "") -> None:
        super().__init__(f"{path}: {message}", hint=hint)
        self.path = path


class StoreLocked(StoreError):
    """Another live process holds the writer's lock."""

    heals = True


class StoreVersion(StoreError):
    """The file's format is newer than this program."""


class StoreCorrupted(StoreError):
    """The file does not hold what was written. ``dropped`` counts the updates that cannot be used."""

    def __init__(self, message: str, *, path: str, dropped: int = 0, hint: str = "") -> None:
        super().__init__(message, path=path, hint=hint)
        self.dropped = dropped


class StoreUnavailable(StoreError):
    """The storage refused (full, failing, locked, no permission). What was on disk before is unchanged."""

    heals = True


class SyncError(OutputKeeperError):
    """The record endpoint and a follower do not understand or do not trust each other."""

    heals = True


class KernelError(OutputKeeperError):
    """The kernel's process."""


class LaunchFailed(KernelError):
    """The process could not be started."""


class KernelDied(KernelError):
    """The kernel ended by itself; the message names the signal or the exit code."""


class RoomError(OutputKeeperError):
    """The live document of a notebook."""


class RoomBusy(RoomError):
    """The room is loading, saving or being overwritten; nothing was changed."""

    heals = True


class NotebookError(OutputKeeperError):
    """A notebook's file could not be read, understood or written; nothing was changed."""

    heals = True


class ConfigError(OutputKeeperError):
    """A setting that cannot be; the message names the trait."""
