"""What the tests say when real tokenizers or text are missing, and how many threads they use."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from support.paths import LEFT_OUT

if TYPE_CHECKING:
    import pytest

# Pytest runs a process for each core: more threads of torch would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    # Without a GPU, Triton's interpreter runs the kernels. Triton asks once, as it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was left out, whatever the verbosity and the number of processes."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    left_out = {reason: n for reason, n in reasons.items() if reason.startswith(LEFT_OUT)}
    if left_out:
        terminalreporter.section("left out: real tokenizers, texts and programs that are not there")
        for reason, count in sorted(left_out.items()):
            terminalreporter.line(f"{count} tests {reason}")
