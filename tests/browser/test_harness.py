"""What the browser tests themselves promise."""

from __future__ import annotations

import pytest
from harness.page import chromium_path


def test_a_missing_chromium_fails_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", "no-such-browser")
    with pytest.raises(AssertionError, match="install chromium"):
        chromium_path()
