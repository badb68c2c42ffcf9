"""Internal: the teacher's ids of the bytes that a student sampled."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from simct_align import _native
from simct_align.align import align_batch
from simct_align.inputs import RaggedIds, read_side
from simct_align.pair import VocabularyPair
from simct_align.token_kind import TokenKind
from simct_align.units import UnitClass, UnmatchedReason
from simct_align.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from simct_align.batch import AlignedBatch

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class RetokenizeCounts:
    """Counts of the student's tokens and bytes that did not go through the teacher's tokenizer.

    Attributes:
        specials: Special tokens that the aligner maps to a teacher token.
        specials_left_out: Special tokens that the aligner does not map. They have no teacher
            token.
        empty_left_out: Other ids without bytes: padding rows of an embedding, empty tokens. They
            have no teacher token.
        invalid_bytes: Bytes that are not valid UTF-8.
        respelled_bytes: Bytes that the teacher's tokenizer would have changed. They became the
            fewest teacher tokens with exactly these bytes.
        replaced_bytes: Bytes for which the teacher has no tokens. Each run of such bytes became
            one U+FFFD.
    """

    specials: int = 0
    specials_left_out: int = 0
    empty_left_out: int = 0
    invalid_bytes: int = 0
    respelled_bytes: int = 0
    replaced_bytes: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return all counts as plain integers, ready for a log."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RetokenizedIds(RaggedIds):
    """The teacher's ids of a batch of rollouts, from `Aligner.retokenize`.

    Row `i` is `values[offsets[i]:offsets[i + 1]]`. `Aligner.align_batch` takes the object as it
    is if every row has one region. With several regions in a row, positions that do not take part
    must be inserted between the regions first, as `Aligner.prepare` does.

    Attributes:
        region_offsets: Region `k` of the batch is
            `values[region_offsets[k]:region_offsets[k + 1]]`; int64 `[regions + 1]`.
        row_regions: Regions of row `i` are `row_regions[i]:row_regions[i + 1]`; int64
            `[rows + 1]`. Without a mask, every row is one region.
        counts: Counts of the tokens and bytes that did not go through the teacher's tokenizer.
    """

    region_offsets: NDArray[np.int64]
    row_regions: NDArray[np.int64]
    counts: RetokenizeCounts

    def tolist(self) -> list[list[int]]:
        """Return the ids as lists, one per row."""
        return [self.row(number).tolist() for number in range(len(self))]

    def padded(
        self, side: PaddingSide, *, pad_id: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ids as a dense array.

        Args:
            side: The side on which shorter rows are padded, `"left"` or `"right"`.
            pad_id: The id of padding positions.

        Returns:
            `(ids, mask)`, int64 `[rows, longest row]` each. The mask is 1 on ids and 0 on
            padding.

        Raises:
            ValueError: `side` is not `"left"` or `"right"`.

        Complexity:
            O(rows × longest row) time and memory.
        """
        return pad_rows(self.values, self.offsets, side, pad_id)


def retokenize(
    pair: VocabularyPair, student_ids: object, *, student_mask: object | None, threads: int | None
) -> RetokenizedIds:
    """Return the teacher's ids: see `Aligner.retokenize`."""
    student = read_side("student", student_ids, student_mask)
    _check_ids(student, len(pair.student))
    regions, row_regions = _regions(student)
    if pair.teacher.digest == pair.student.digest:
        values, region_offsets, counts = _same_vocabulary(pair, regions)
    else:
        made = _cross(pair, regions, threads)
        values, region_offsets = made.arrays()
        counts = RetokenizeCounts(**made.counts())
    return RetokenizedIds(
        values=values,
        offsets=region_offsets[row_regions],
        region_offsets=region_offsets,
        row_regions=row_regions,
        counts=counts,
    )


class TextEncoder:
    """An encoder of texts inside a conversation: the tokens have exactly the bytes of the text.

    A tokenizer alone may put a space before a text, compose characters, or read a `▁` as a space.
    This encoder retokenizes the bytes of the text as if a student had sampled them one by one, so
    that no byte changes.

    Args:
        vocabulary: The vocabulary of the tokenizer. `encode` needs its tokenizer.

    Example:
        >>> from simct_align import Vocabulary
        >>> from simct_align.demo import demo_tokenizers
        >>> vocabulary = Vocabulary.from_tokenizer(demo_tokenizers()[1])
        >>> ids = TextEncoder(vocabulary).encode(["2 + 2"], threads=1)
        >>> vocabulary.decode_bytes(ids.row(0)), vocabulary.decode_bytes(
        ...     vocabulary.encode_batch(["2 + 2"])[0]
        ... )
        (b'2 + 2', b' 2 + 2')
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._pair = VocabularyPair(
            vocabulary, Vocabulary.from_token_bytes([bytes([byte]) for byte in range(256)])
        )

    def encode(self, texts: Sequence[str], *, threads: int | None) -> RetokenizedIds:
        """Tokenize texts.

        Args:
            texts: Any number of texts. The name of a special token in a text stays text.
            threads: Number of threads that compare the bytes of text and tokens. None means all
                cores.

        Returns:
            One row of ids per text.

        Raises:
            MissingTokenizerError: The vocabulary has no tokenizer.
        """
        written = [text.encode("utf-8", "surrogatepass") for text in texts]
        offsets = np.zeros(len(written) + 1, np.int64)
        np.cumsum([len(text) for text in written], out=offsets[1:])
        values = np.frombuffer(b"".join(written), np.uint8).astype(np.int32)
        return retokenize(self._pair, (values, offsets), student_mask=None, threads=threads)


def pad_rows(
    values: NDArray[np.int64],
    offsets: NDArray[np.int64],
    side: PaddingSide,
    fill: int,
    *,
    multiple_of: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pad ragged rows to a dense array.

    Args:
        values: All rows, concatenated.
        offsets: The first index of every row in `values`, then the end, `[rows + 1]`.
        side: The side on which shorter rows are padded, `"left"` or `"right"`.
        fill: The value of padding positions.
        multiple_of: The width is rounded up to a multiple of this number.

    Returns:
        `(dense, mask)`, int64 `[rows, width]` each. The mask is 1 on values and 0 on padding.

    Raises:
        ValueError: `side` is not `"left"` or `"right"`.

    Complexity:
        O(rows × width) time and memory.
    """
    if side not in ("left", "right"):
        raise ValueError(f"padding_side: expected 'left' or 'right', got {side!r}")
    lengths = np.diff(offsets)
    width = int(lengths.max(initial=0))
    if multiple_of is not None:
        width = -(-width // multiple_of) * multiple_of
    padding = np.zeros_like(lengths) if side == "right" else width - lengths
    columns = np.arange(width) - padding[:, None]
    taken = (columns >= 0) & (columns < lengths[:, None])
    dense = np.full(taken.shape, fill, np.int64)
    dense[taken] = values
    return dense, taken.astype(np.int64)


def _cross(pair: VocabularyPair, regions: RaggedIds, threads: int | None) -> _native.RetokenizedIds:
    retokenizer = pair._retokenizer
    plan = retokenizer.split(regions.values, regions.offsets)
    encoded = _native.ids_from_lists("encoded", pair.teacher.encode_batch(plan.texts()))
    draft = retokenizer.assemble(plan, *encoded)
    aligned = align_batch(pair, draft.arrays(), regions, threads=threads)
    stretches = _differing_stretches(aligned)
    if stretches is None:
        return draft
    return retokenizer.repair(draft, regions.values, regions.offsets, stretches)


def _differing_stretches(aligned: AlignedBatch) -> NDArray[np.int64] | None:
    """Return where the tokenizer changed the text: (region, teacher range, student range) each.

    The array is flat, five entries for every stretch.
    """
    spans = aligned.unmatched
    trimmed = np.flatnonzero(aligned.unit_class & UnitClass.TRIMMED)
    # If the draft is exact, only special and empty tokens of the student are unmatched.
    exact = (spans.reason == UnmatchedReason.SPECIAL) & (spans.teacher_start == spans.teacher_end)
    if exact.all() and not len(trimmed):
        return None

    def rows(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(aligned)), np.diff(offsets))

    columns = np.stack(
        [
            np.concatenate([of_spans, of_units[trimmed]])
            for of_spans, of_units in (
                (rows(spans.row_offsets), rows(aligned.row_offsets)),
                (spans.teacher_start, aligned.teacher_start),
                (spans.teacher_end, aligned.teacher_end),
                (spans.student_start, aligned.student_start),
                (spans.student_end, aligned.student_end),
            )
        ]
    )
    order = np.lexsort((columns[3], columns[1], columns[0]))
    stretches: NDArray[np.int64] = columns[:, order].T.astype(np.int64).ravel()
    return stretches


def _same_vocabulary(
    pair: VocabularyPair, regions: RaggedIds
) -> tuple[NDArray[np.int64], NDArray[np.int64], RetokenizeCounts]:
    """Keep the sampled ids: both sides have the same tokens under the same ids."""
    shared, kinds = pair.shared, pair.student.kinds
    partner = np.full(len(kinds), -1, np.int64)
    partner[shared.student_ids] = shared.teacher_ids
    # A sampled stop stays as it is if it is also a stop of the teacher.
    stops = shared.student_stop_ids
    partner[stops] = np.where(
        np.isin(stops, shared.teacher_stop_ids), stops, shared.teacher_stop_ids[:1]
    )
    values = partner[regions.values]
    crossed = values >= 0
    special = kinds[regions.values] == TokenKind.SPECIAL
    offsets = np.concatenate([[0], np.cumsum(crossed)])[regions.offsets]
    counts = RetokenizeCounts(
        specials=int(np.count_nonzero(special & crossed)),
        specials_left_out=int(np.count_nonzero(special & ~crossed)),
        empty_left_out=int(np.count_nonzero(~special & ~crossed)),
    )
    return values[crossed], offsets, counts


def _check_ids(student: RaggedIds, vocab_size: int) -> None:
    """Raise an error if an id is not in the vocabulary, with its row and position."""
    wrong = (student.values < 0) | (student.values >= vocab_size)
    if student.mask is not None:
        wrong &= student.mask != 0
    if wrong.any():
        at = int(np.argmax(wrong))
        row = int(np.searchsorted(student.offsets, at, side="right")) - 1
        raise ValueError(
            f"row {row}, position {at - student.offsets[row]}: student id {student.values[at]} is "
            f"not in the vocabulary of {vocab_size} tokens"
        )


def _regions(side: RaggedIds) -> tuple[RaggedIds, NDArray[np.int64]]:
    """Return the regions as rows, and the first region of every row, then the end."""
    if side.mask is None:
        return side, np.arange(len(side) + 1, dtype=np.int64)
    taken = side.mask != 0
    begins = taken.copy()
    begins[1:] &= ~taken[:-1]
    row_starts = side.offsets[:-1][side.offsets[:-1] < len(taken)]
    begins[row_starts] = taken[row_starts]
    starts = np.flatnonzero(begins)
    before = np.concatenate([[0], np.cumsum(taken)])
    offsets = np.append(before[starts], before[-1])
    row_regions = np.searchsorted(starts, side.offsets)
    return RaggedIds(side.values[taken], offsets.astype(np.int64)), row_regions.astype(np.int64)
