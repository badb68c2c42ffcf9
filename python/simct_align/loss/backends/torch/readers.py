"""Internal: readers of the rows of either model, in whatever form it came."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol import Head, Lists, Logits
from .linear_rows import LinearRows, StudentLinearRows
from .list_rows import ListRows
from .rows import LogitsRows, StudentLogitsRows

if TYPE_CHECKING:
    from ...columns import SideColumns
    from ..protocol import RowSettings
    from .rows import Rows, StudentRows, Workspace


def teacher_rows(
    source: Logits | Head | Lists, columns: SideColumns, work: Workspace, settings: RowSettings
) -> Rows:
    """Return a reader of the teacher's rows.

    Args:
        source: The teacher.
        columns: Its ids.
        work: Scratch buffers.
        settings: Compute dtype, temperature, and the workspace to aim for.
    """
    if isinstance(source, Lists):
        return ListRows(source, columns, work, settings)
    if isinstance(source, Head):
        return LinearRows(source, columns, work, settings)
    return LogitsRows(source.logits, columns, work, settings)


def student_rows(
    source: Logits | Head | Lists, columns: SideColumns, work: Workspace, settings: RowSettings
) -> StudentRows:
    """Return a reader of the student's rows, with their gradient; see `teacher_rows`."""
    if isinstance(source, Head):
        return StudentLinearRows(source, columns, work, settings)
    assert isinstance(source, Logits)  # a student is never known by lists
    return StudentLogitsRows(source.logits, columns, work, settings)
