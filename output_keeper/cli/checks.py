"""Whether a server started in this environment would keep outputs, and if not, why and what to do.

Each check is one function that gives a `Check`. They read what a server reads (config files in Jupyter's
config path, entry points, kernelspecs) and start nothing. What a server was told on its command line they
cannot know.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from output_keeper.defaults import PROVISIONER
from output_keeper.errors import StoreError
from output_keeper.record import paths

if TYPE_CHECKING:
    from collections.abc import Iterator

EXTENSION = "output_keeper"
COLLABORATION = "jupyter_server_ydoc"
OLDEST = {"jupyter_server": (2, 14), "jupyter_client": (8, 6)}
CONFIG_SECTION = "jupyter_server_config"


class Level(str, Enum):
    """What a check means for the question whether recording is on."""

    OK = "ok"
    NOTE = "note"  # recording is on, but this is worth knowing
    PROBLEM = "problem"  # recording is off because of this


@dataclass(frozen=True, slots=True)
class Check:
    """One answer: ``says`` what was found, ``do`` what to do about it ("" when nothing)."""

    name: str
    level: Level
    says: str
    do: str = ""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the config files of this environment tell a server.

    ``values`` are the settings by class (``{"OutputKeeper": {"record_dir": …}}``), ``extensions`` which
    server extensions are on or off, ``folders`` where config was looked for (the first wins), ``error`` why a
    config file could not be read ("" when all could).
    """

    values: dict[str, Any]
    extensions: dict[str, bool]
    folders: list[str]
    error: str = ""

    @classmethod
    def load(cls) -> ServerConfig:
        """Read the config files as ``jupyter server`` and ``jupyter lab`` do. Python config files are run."""
        from jupyter_core.application import JupyterApp
        from jupyter_server.extension.config import ExtensionConfigManager
        from traitlets.config.loader import LazyConfigValue

        problems = _Problems()
        app = JupyterApp(log=problems.logger)
        with problems.of(logging.getLogger("traitlets")):
            for name in (CONFIG_SECTION, "jupyter_output_keeper_config"):
                app.config_file_name = name
                app.load_config_file()  # a file that fails is reported and passed over, as servers do
            manager = ExtensionConfigManager(read_config_path=app.config_file_paths)
            found = manager.get_jpserver_extensions()  # type: ignore[no-untyped-call]
        values = {section: dict(traits) for section, traits in app.config.items()}
        chosen = values.get("ServerApp", {}).get("jpserver_extensions", {})
        if isinstance(chosen, LazyConfigValue):  # c.ServerApp.jpserver_extensions.update(…)
            chosen = chosen.get_value({})
        # A server takes what config files set for this trait, and then adds what the .d folders say.
        return cls(values, {**found, **chosen}, list(app.config_file_paths), problems.first)

    def get(self, section: str, trait: str) -> Any:
        """Give a setting as some config file gives it, None when none does."""
        return self.values.get(section, {}).get(trait)

    def where(self, extension: str) -> str:
        """Give the file that makes a server extension what it is, on or off; "" when there is none."""
        folders = list(map(Path, self.folders))
        names = [f"{name}{suffix}" for name in (CONFIG_SECTION, "jupyter_config") for suffix in (".json", ".py")]
        files = [folder / name for folder in folders for name in names]
        for folder in folders:  # a server looks there for what the files above leave open
            files += sorted((folder / f"{CONFIG_SECTION}.d").glob("*.json"), reverse=True)
        state = self.extensions.get(extension)
        return next((str(file) for file in files if file.is_file() and _says(file, extension, state)), "")


class _Problems(logging.Handler):
    """Collects what is logged about config files that cannot be read."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first = ""
        self.logger = logging.Logger("output_keeper.config", logging.ERROR)  # warnings there are about overlaps
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first, with the exception that caused it."""
        error = record.exc_info[1] if record.exc_info else None
        cause = "" if error is None else f": {type(error).__name__}: {error}"
        self.first = self.first or record.getMessage() + cause

    @contextlib.contextmanager
    def of(self, logger: logging.Logger) -> Iterator[None]:
        """Collect what this logger is told, instead of showing it."""
        propagate, logger.propagate = logger.propagate, False
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.propagate = propagate


def _says(file: Path, extension: str, state: bool | None) -> bool:
    """Tell whether a config file gives this state; of a Python file, whether it could."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
        if file.suffix == ".json":
            return json.loads(text)["ServerApp"]["jpserver_extensions"][extension] is state
    except (OSError, ValueError, KeyError, TypeError):
        return False  # a server passes over such a file, too
    return "jpserver_extensions" in text and extension in text


def check_all(config: ServerConfig) -> list[Check]:
    """Every check, in the order a server meets them."""
    return [
        *_environment(),
        *_config_readable(config),
        _enabled(config),
        _imports(),
        _registered(),
        _default_provisioner(config),
        _kernelspecs(),
        _folder("records", paths.record_dir(config.get("OutputKeeper", "record_dir") or None)),
        _folder("run files", paths.runs_dir()),
        _projection(config),
    ]


def mode(config: ServerConfig) -> str:
    """How outputs reach notebooks here: ``collaboration``, ``plain``, or ``off`` (they are only recorded)."""
    if config.get("OutputKeeper", "project") is False:
        return "off"
    if importlib.util.find_spec(COLLABORATION) is None or not config.extensions.get(COLLABORATION):
        return "plain"
    return "plain" if config.get("YDocExtension", "disable_rtc") else "collaboration"


def _environment() -> Iterator[Check]:
    if sys.platform == "win32":
        yield Check(
            "platform",
            Level.PROBLEM,
            "keepers need POSIX signals and process groups, which Windows does not have",
            "run Jupyter in WSL",
        )
    for package, oldest in OLDEST.items():
        found: tuple[Any, ...] = importlib.import_module(package).version_info
        if found[:2] < oldest:
            yield Check(
                package,
                Level.PROBLEM,
                f"{package} {'.'.join(map(str, found[:3]))} is too old",
                f'pip install --upgrade "{package}>={oldest[0]}.{oldest[1]}"',
            )
    command = _jupyter_elsewhere()
    if command:
        yield Check(
            "environment",
            Level.NOTE,
            f"the jupyter on your PATH is {command}; what is said here is about {sys.prefix}",
            "start Jupyter from this environment, or install output-keeper where that jupyter is",
        )


def _jupyter_elsewhere() -> str:
    """Find the ``jupyter`` that a shell would start, when it is not this environment's."""
    import shutil

    command = shutil.which("jupyter")
    here = Path(sys.executable).parent
    if command is None or Path(command).parent.resolve() == here.resolve():
        return ""
    return command


def _config_readable(config: ServerConfig) -> Iterator[Check]:
    if config.error:
        yield Check("config", Level.NOTE, config.error, "correct that file")


def _enabled(config: ServerConfig) -> Check:
    where = config.where(EXTENSION)
    state = config.extensions.get(EXTENSION)
    if state:
        return Check("extension", Level.OK, f"enabled by {where or 'a config file'}")
    if state is None:
        return Check(
            "extension",
            Level.PROBLEM,
            f"no config file enables it; looked in {', '.join(config.folders)}",
            "pip install output-keeper, or: jupyter server extension enable output_keeper",
        )
    return Check(
        "extension",
        Level.PROBLEM,
        f"switched off by {where or 'a config file'}",
        "jupyter server extension enable output_keeper, or take it out of that file",
    )


def _imports() -> Check:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("output_keeper.server.extension")
    except Exception as error:  # noqa: BLE001  # border: an import runs other packages, which fail in any way
        return Check(
            "import",
            Level.PROBLEM,
            f"the server extension cannot be imported: {type(error).__name__}: {error}",
            "pip install --force-reinstall output-keeper",
        )
    return Check("import", Level.OK, "the server extension can be imported")


def _registered() -> Check:
    found = importlib.metadata.entry_points(group="jupyter_client.kernel_provisioners", name=PROVISIONER)
    for entry_point in found:
        try:
            entry_point.load()
        except Exception as error:  # noqa: BLE001  # border: an import runs other packages, which fail in any way
            return Check(
                "provisioner",
                Level.PROBLEM,
                f"registered, but it cannot be imported: {type(error).__name__}: {error}",
                "pip install --force-reinstall output-keeper",
            )
        return Check("provisioner", Level.OK, "registered in this environment")
    return Check(
        "provisioner",
        Level.PROBLEM,
        f"not registered in {sys.prefix}: this is a copy of the source that was not installed",
        "pip install output-keeper (in a clone: pip install -e .)",
    )


def _default_provisioner(config: ServerConfig) -> Check:
    configured = config.get("KernelProvisionerFactory", "default_provisioner_name")
    variable = os.environ.get("JUPYTER_DEFAULT_PROVISIONER_NAME")
    if configured not in {None, PROVISIONER}:
        return Check(
            "default provisioner",
            Level.PROBLEM,
            f"a config file sets KernelProvisionerFactory.default_provisioner_name to {configured!r}",
            "take that setting away",
        )
    if configured is None and variable and variable != PROVISIONER:
        return Check(
            "default provisioner",
            Level.PROBLEM,
            f"JUPYTER_DEFAULT_PROVISIONER_NAME is {variable!r}",
            "unset that variable where Jupyter is started",
        )
    return Check("default provisioner", Level.OK, "output-keeper, for every kernelspec that names no other")


def _kernelspecs() -> Check:
    from jupyter_client.kernelspec import KernelSpecManager

    kept, others = [], []
    for name, folder in sorted(KernelSpecManager().find_kernel_specs().items()):
        own = _own_provisioner(Path(folder))
        if own in {None, PROVISIONER}:
            kept.append(name)
        else:
            others.append(f"{name} ({own})")
    if not kept and not others:
        return Check("kernelspecs", Level.NOTE, "no kernel is installed", "pip install ipykernel")
    if not others:
        return Check("kernelspecs", Level.OK, f"kept: {', '.join(kept)}")
    return Check(
        "kernelspecs",
        Level.NOTE if kept else Level.PROBLEM,
        f"not kept, because they name a provisioner of their own: {', '.join(others)}; "
        f"kept: {', '.join(kept) or 'none'}",
        'to keep one, remove "kernel_provisioner" from the metadata in its kernel.json',
    )


def _own_provisioner(folder: Path) -> str | None:
    try:
        metadata = json.loads((folder / "kernel.json").read_text(encoding="utf-8")).get("metadata", {})
        name = metadata.get("kernel_provisioner", {}).get("provisioner_name")
    except (OSError, ValueError, AttributeError):
        return None  # ipykernel's built-in kernelspec has no file; a broken one starts no kernel at all
    return None if name is None else str(name)


def _folder(name: str, folder: Path) -> Check:
    """Whether we can write into a folder and others cannot look into it. Makes nothing."""
    if os.path.lexists(folder):
        try:
            paths.private_folder(folder)
        except StoreError as error:
            return Check(name, Level.PROBLEM, str(error).removesuffix(f" ({error.hint})"), error.hint)
    existing = next(above for above in (folder, *folder.absolute().parents) if above.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check(name, Level.PROBLEM, f"{existing} cannot be written", "give yourself write permission there")
    made = "" if existing == folder else " (made when the first kernel starts)"
    return Check(name, Level.OK, f"{folder}{made}")


def _projection(config: ServerConfig) -> Check:
    how = mode(config)
    if how == "collaboration":
        return Check("notebooks", Level.OK, "jupyter-collaboration is on: outputs go into the open notebook, live")
    if how == "off":
        return Check(
            "notebooks",
            Level.NOTE,
            "OutputKeeper.project is off: outputs are recorded, but not brought into notebooks",
        )
    why = "jupyter-collaboration is not installed"
    if importlib.util.find_spec(COLLABORATION) is not None:
        why = "collaboration is switched off (YDocExtension.disable_rtc, or its extension is not enabled)"
    return Check(
        "notebooks",
        Level.NOTE,
        f"{why}: a notebook's file is completed once its page is gone",
        'pip install "output-keeper[lab]" to see a running cell grow in another browser',
    )
