"""What the tests say when real tokenizers or text are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support import paths

if TYPE_CHECKING:
    import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was left out, whatever the verbosity."""
    if paths.missing:
        terminalreporter.section("left out: real tokenizers or data that are not there")
        for path in sorted(paths.missing):
            terminalreporter.line(path)
