"""What holds for the whole repository: format, lint, types, layers, and documents that say what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from output_keeper._version import __version__
from output_keeper.cli import kernel
from output_keeper.cli.main import _parser
from output_keeper.server.extension import OutputKeeper

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CLI = (ROOT / "docs" / "cli.md").read_text()


def succeeds(*command: str) -> None:
    """Fail with everything the tool says unless it ends with 0."""
    ended = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}{ended.stderr}"


def test_lint() -> None:
    succeeds("ruff", "check")


def test_format() -> None:
    succeeds("ruff", "format", "--check", "--diff")


@pytest.mark.timeout(600)
def test_types() -> None:
    succeeds("mypy")


def test_layers() -> None:
    succeeds("lint-imports")


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    own = dict(OutputKeeper.class_own_traits(config=True).items())
    assert own
    rows = dict(re.findall(r"^\| `OutputKeeper\.(\w+)` \| `([^`]*)` \|", README, re.MULTILINE))
    assert rows == {
        name: f'"{trait.default_value}"' if isinstance(trait.default_value, str) else str(trait.default_value)
        for name, trait in own.items()
    }


def test_every_command_and_option_is_in_the_documents() -> None:
    (verbs,) = [action.choices for action in _parser()._actions if isinstance(action.choices, dict)]
    assert set(verbs) == set(re.findall(r"^## output-keeper (\w+)$", CLI, re.MULTILINE))
    options = {
        option
        for parser in [kernel._parser(), *verbs.values()]
        for action in parser._actions
        if action.help != "==SUPPRESS=="
        for option in action.option_strings
    }
    assert "--connection-file" in options
    assert [option for option in sorted(options - {"-h", "--help"}) if f"`{option}`" not in CLI] == []


@pytest.mark.parametrize("named", re.findall(r"`(tests/\S+::\w+)`", README))
def test_every_test_that_the_readme_names_exists(named: str) -> None:
    file, name = named.split("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_every_link_between_documents_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_changelog_says_which_record_format_each_version_has() -> None:
    versions = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    assert versions[0].startswith(("[Unreleased]", f"[{__version__}]"))
    assert all("\nRecord format: " in version for version in versions)
