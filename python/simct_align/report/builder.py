"""Internal: makes a report batch by batch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from simct_align.inputs import check_text
from simct_align.readers.files import TOKENIZER_FILES
from simct_align.report import Report
from simct_align.report.facts import make_facts
from simct_align.report.sample import Sample
from simct_align.report.tally import Tally
from simct_align.terminal import Progress
from simct_align.text_input import InputText, in_batches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from simct_align import Aligner, Vocabulary


class ReportBuilder:
    """Adds up the figures of texts.

    Args:
        aligner: The aligner, with the tokenizers of both sides.
        teacher_name: What to call the teacher's tokenizer. The default is the last part of its
            path, its hub id, or "teacher".
        student_name: The same for the student.
        warned: Warnings that came with the tokenizers.
    """

    def __init__(
        self,
        aligner: Aligner,
        *,
        teacher_name: str | None = None,
        student_name: str | None = None,
        warned: Sequence[str] = (),
    ) -> None:
        self._aligner = aligner
        self._names = (
            teacher_name or _name(aligner.teacher, "teacher"),
            student_name or _name(aligner.student, "student"),
        )
        self._warned = tuple(warned)
        self._tally = Tally(aligner)
        self._sample = Sample()

    def add(
        self,
        texts: Sequence[str],
        lines: Sequence[int] | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """Add texts.

        Args:
            texts: The texts.
            lines: The line of a file that each text is from; 0 for none.
            threads: Number of threads of the alignment.
        """
        batch = self._aligner.align_texts(texts, threads=threads)
        table = self._tally.add(batch, sum(len(text.encode()) for text in texts))
        self._sample.add(batch, table, lines or [0] * len(texts))

    def facts(self) -> dict[str, Any]:
        """Return all figures of the texts so far."""
        if not self._tally.texts:
            self.add([])
        return make_facts(
            self._aligner, self._tally, self._sample, names=self._names, warned=self._warned
        )


def build_report(
    aligner: Aligner,
    texts: Iterable[str],
    *,
    teacher_name: str | None,
    student_name: str | None,
    progress: bool,
    threads: int | None,
) -> Report:
    """Make a report of texts: see `Aligner.report`."""
    if isinstance(texts, str):
        raise TypeError("texts: expected a list of strings, got one string; wrap it in a list")
    builder = ReportBuilder(aligner, teacher_name=teacher_name, student_name=student_name)
    bar = Progress(None, shown=progress)
    done = 0
    try:
        for batch in in_batches(_checked(texts), None):
            builder.add([item.text for item in batch], threads=threads)
            done += len(batch)
            bar.update(0, done)
        return Report(builder)
    finally:
        bar.close()


def _checked(texts: Iterable[str]) -> Iterator[InputText]:
    for number, text in enumerate(texts):
        check_text(f"texts[{number}]", text)
        yield InputText(0, text, 0)


def _name(vocabulary: Vocabulary, fallback: str) -> str:
    source = vocabulary._source.source if vocabulary._source is not None else None
    if not isinstance(source, (str, os.PathLike)):
        return fallback
    return source_name(os.fspath(source))


def source_name(source: str) -> str:
    """Return the last part of a path that says something, or a hub id as it is."""
    if not os.path.exists(source):
        return source
    path = os.path.abspath(source)
    is_common = os.path.isfile(path) and os.path.basename(path) in TOKENIZER_FILES
    return os.path.basename(os.path.dirname(path) if is_common else path)
