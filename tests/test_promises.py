"""The promises of docs/promises.md name tests, and targets of make, that are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "promises.md"


def test_every_promise_names_tests_that_are_there() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    promises = [row for row in rows if not row.startswith(("| promise", "| ---"))]
    assert len(promises) > 25
    makefile = (TESTS.parent / "Makefile").read_text(encoding="utf-8")
    for promise in promises:
        held_by = promise.rsplit("|", 2)[1]
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", held_by)
        targets = re.findall(r"`make ([a-z-]+)`", held_by)
        assert named or targets or "rust/core" in promise, promise
        for target in targets:
            assert f"\n{target}:" in makefile, target
        for file, test in named:
            assert f"def {test}(" in (TESTS / file).read_text(encoding="utf-8"), (file, test)
