"""Reports on two tokenizers and texts: what a loss can compare, as a page and as numbers."""

from __future__ import annotations

import html
import json
import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simct_align.report.builder import ReportBuilder

__all__ = ["Report"]


class Report:
    """What two tokenizers do to a body of texts, from `Aligner.report`.

    In a notebook a report shows itself. The page needs the extra `report`
    (`pip install 'simct-align[report]'`); the numbers do not.

    Example:
        >>> from simct_align import Aligner
        >>> from simct_align.demo import demo_passage, demo_tokenizers
        >>> report = Aligner(*demo_tokenizers()).report(demo_passage())
        >>> report
        <Report on 8 texts: 68.0 % of the student's tokens in shared units, 31.7 % in multi units>
        >>> report.to_dict()["coverage"]["units"]["special"]
        0
    """

    def __init__(self, builder: ReportBuilder) -> None:
        self._facts = builder.facts()

    def __repr__(self) -> str:
        facts = self._facts
        tokens = max(facts["coverage"]["student_tokens"], 1)
        shared, multi = (
            facts["methods"][kind]["student_tokens"] / tokens for kind in ("shared", "multi")
        )
        return (
            f"<Report on {facts['data']['texts']:,} texts: {100 * shared:.1f} % of the student's "
            f"tokens in shared units, {100 * multi:.1f} % in multi units>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers of the report as plain Python objects, ready for JSON.

        Returns:
            A new dictionary. `docs/report.md` describes its keys. `coverage` has the numbers of
            `AlignedBatch.coverage()` of all texts together.

        Complexity:
            O(size of the report).
        """
        copied: dict[str, Any] = json.loads(json.dumps(self._facts))
        return copied

    @cached_property
    def html(self) -> str:
        """The page: one HTML document that needs no other file and no network.

        Raises:
            ModuleNotFoundError: The extra `report` is not installed.
        """
        from simct_align.report.page import make_page

        return make_page(self._facts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file.

        Args:
            path: The file. An existing file is replaced, at once and only when the page is
                complete.

        Raises:
            ModuleNotFoundError: The extra `report` is not installed.
            OSError: The file cannot be written.

        Complexity:
            A second at most.
        """
        page, target = self.html.encode(), Path(path)
        if (
            target.exists() and not target.is_file()
        ):  # such as /dev/stdout, or a directory: an error
            target.write_bytes(page)
            return
        handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(page)
            # As the file would be if it were opened: `mkstemp` gives rights to its owner alone.
            umask = os.umask(0)
            os.umask(umask)
            Path(draft).chmod(target.stat().st_mode if target.exists() else 0o666 & ~umask)
            Path(draft).replace(target)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    def _repr_html_(self) -> str:
        """Return the page in a frame, so that its styles stay its own."""
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="Report on two tokenizers" '
            'style="width: 100%; height: 80vh; border: 0"></iframe>'
        )
