"""What a keeper that ended without a word left unfinished: whoever holds the record's lock next says so in it.

That is the kernel's next keeper, or a server (after the kill of a keeper, a reboot, the end of a container).
"""

from __future__ import annotations

from collections.abc import Container
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from output_keeper.errors import StoreLocked
from output_keeper.protocol.execution import ExecutionState
from output_keeper.protocol.outputs import AddOutput
from output_keeper.record.document import RecordDocument
from output_keeper.record.store import Store

KEEPER_KILLED = "the kernel was ended together with its keeper, which was killed"


def end_unfinished(record: RecordDocument, now: str, how: str, *, but: Container[str] = ()) -> bool:
    """End every execution that has not ended, ``but`` these: what ran has died and shows it, what waited is aborted.

    One that nobody decided on is granted: what was held of it went with its keeper, so no client shows it.

    Inside a transaction of the caller. Tells whether there was one.
    """
    undecided = [view for view in record.views() if view.owner == "open" and view.msg_id not in but]
    unfinished = [view for view in record.views() if not view.state.ended and view.msg_id not in but]
    for view in undecided:
        record.set(view.msg_id, owner="granted")
    for view in unfinished:
        ran = view.state is ExecutionState.RUNNING
        state = ExecutionState.DIED if ran else ExecutionState.ABORTED
        record.set(view.msg_id, state=state.value, ended=now, reason=how)
        if ran:
            record.change(view.msg_id, [AddOutput(death_notice(how))])
    return bool(unfinished or undecided)


def adopt(path: Path) -> bool:
    """End what the last keeper of the record at ``path`` left unfinished, durably; tell whether there was something.

    A record whose keeper lives, or ends just now, is left alone: its lock is held. Raises `StoreError` for a record
    that cannot be read or written.
    """
    try:
        store = Store.open(path)
    except StoreLocked:
        return False
    with store:
        record = RecordDocument()
        for update in store.load():
            record.apply(update)
        record.check_version(str(path))
        updates: list[bytes] = []
        record.observe_updates(updates.append)
        with record.transaction():
            if not end_unfinished(record, now(), KEEPER_KILLED):
                return False
            record.set_pending_input(None)
            record.finish(now(), KEEPER_KILLED)
        store.append_many(updates)
    return True


def death_notice(how: str) -> dict[str, Any]:
    """Make the error output of a cell whose kernel ended without being asked to; ``how`` is a clause."""
    evalue = f"{how[:1].upper()}{how[1:]} while this cell was running. What it printed until then is kept."
    return {
        "output_type": "error",
        "ename": "KernelDied",
        "evalue": evalue,
        "traceback": [f"\x1b[31mKernelDied\x1b[39m: {evalue}"],
    }


def now() -> str:
    """Give the time as message headers do: ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
