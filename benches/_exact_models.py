"""Exact language models over a finite set of texts, and their logits for the losses.

A finite set of texts with probabilities, encoded with a tokenizer, gives the exact next-token
distribution of that tokenizer after every prefix: of the texts that begin with the prefix, the
share that continues with each token. The end of a text is the tokenizer's stop. By the chain rule,
the probabilities of a text's tokens multiply to the text's probability. Two tokenizers over the
same texts therefore give two models that agree on every text.

A token that no text continues with has no probability. Logits are finite: such a token gets the
log-probability `LOG_ABSENT`.

**Used columns.** A real vocabulary has up to 256,000 tokens, of which a small set of texts uses a
few hundred. `Pair.used` keeps the stops and every token whose bytes occur in a text. This set has
all tokens of all rows. It also has, for each of them, the same bytes on the other side, every token
that begins it or ends it, and every token that spells a unit. The other columns have probability
1e-12 at all positions. A test compares the losses with those over all columns. Spellings of
one-sided tokens use the tokenizers themselves, so `"on_path"` needs all columns.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from simct_align import Aligner, TokenKind, UnmatchedReason, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from simct_align import AlignedBatch
    from simct_align.loss import Loss

LOG_ABSENT = math.log(1e-12)
#: Bytes of the logits of both sides together.
LOGIT_BYTES = 1 << 28


class ExactModel:
    """The exact language model of one tokenizer over a set of texts.

    A node is a prefix that some text has; an edge is a token that continues it. Nodes and edges
    depend on the texts alone. Their probabilities also depend on those of the texts.

    Args:
        vocabulary: The tokenizer's vocabulary, with a stop.
        texts: The distinct texts.

    Raises:
        ValueError: The tokens of a text do not spell the text, or the vocabulary has no stop.
    """

    def __init__(self, vocabulary: Vocabulary, texts: Sequence[str]) -> None:
        if not vocabulary.stop_ids:
            raise ValueError("vocabulary: expected one with a stop, got one without stops")
        self.vocabulary = vocabulary
        self.stop = vocabulary.stop_ids[0]
        self.ids = [[*ids, self.stop] for ids in vocabulary.encode_batch(texts)]
        before = b" " if vocabulary.dummy_prefix else b""
        children: dict[tuple[int, int], int] = {}
        self.nodes: list[NDArray[np.int64]] = []
        for text, ids in zip(texts, self.ids, strict=True):
            if (spelled := vocabulary.decode_bytes(ids)) != before + text.encode():
                raise ValueError(f"texts: expected tokens that spell {text!r}, got {spelled!r}")
            path = [0]
            for token in ids:
                path.append(children.setdefault((path[-1], token), len(children) + 1))
            self.nodes.append(np.array(path))
        # The edge to node n + 1 is the n-th one.
        parents, tokens = np.array(list(children), np.int64).T
        self._order = np.argsort(parents, kind="stable")
        self._parents = parents
        self.edge_token = tokens[self._order]
        self.edge_offsets = np.searchsorted(
            parents[self._order], np.arange(len(children) + 2), side="left"
        )

    def edge_log_probs(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log-probability of every edge, for texts of probabilities `p`."""
        mass = np.zeros(len(self._parents) + 1)
        for path, share in zip(self.nodes, p, strict=True):
            mass[path] += share
        return (np.log(mass[1:]) - np.log(mass[self._parents]))[self._order]

    def text_probabilities(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the product of the probabilities of every text's tokens."""
        by_child = np.empty(len(self._parents) + 1)
        by_child[self._order + 1] = self.edge_log_probs(p)
        return np.exp([by_child[path[1:]].sum() for path in self.nodes])

    def row(self, node: int, p: NDArray[np.float64]) -> dict[int, float]:
        """Return the next-token distribution after a prefix."""
        edges = slice(self.edge_offsets[node], self.edge_offsets[node + 1])
        probabilities = np.exp(self.edge_log_probs(p)[edges])
        return dict(zip(self.edge_token[edges].tolist(), probabilities.tolist(), strict=True))


class Edges(NamedTuple):
    """The entries of a batch of rows that are not absent: row, token and number of the edge."""

    row: torch.Tensor
    token: torch.Tensor
    edge: NDArray[np.int64]

    @classmethod
    def of(cls, model: ExactModel, new_id: NDArray[np.int64], texts: range) -> Edges:
        nodes = np.concatenate([model.nodes[text] for text in texts])
        start = model.edge_offsets[nodes]
        count = model.edge_offsets[nodes + 1] - start
        before = np.cumsum(count) - count
        edge = np.arange(int(count.sum())) + np.repeat(start - before, count)
        row, token = np.repeat(np.arange(len(nodes)), count), new_id[model.edge_token[edge]]
        return cls(torch.from_numpy(row), torch.from_numpy(token), edge)


class Columns(NamedTuple):
    """The columns of the logits: a pair of vocabularies, and what every id became in it."""

    aligner: Aligner
    teacher_id: NDArray[np.int64]
    student_id: NDArray[np.int64]


class PartOfLoss(NamedTuple):
    """A loss on a batch of texts.

    Attributes:
        loss: The name of the loss.
        case: The number of the case.
        sums: `[texts]` the sum over units or offsets of every text, 0 outside of the batch.
        offsets: The number of offsets of text events, 0 for other losses.
        left_out: How many of them the loss leaves out.
    """

    loss: str
    case: int
    sums: NDArray[np.float64]
    offsets: int
    left_out: float


class Distributions(NamedTuple):
    """Probabilities of the texts under either model."""

    teacher: NDArray[np.float64]
    student: NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two exact models over the same texts.

    Attributes:
        texts: The distinct texts.
        teacher: The teacher's model.
        student: The student's model.
    """

    texts: tuple[str, ...]
    teacher: ExactModel
    student: ExactModel

    @classmethod
    def of(cls, teacher: Vocabulary, student: Vocabulary, texts: Mapping[str, float]) -> Pair:
        """Build both models."""
        chosen = tuple(texts)
        return cls(chosen, _model(teacher, chosen), _model(student, chosen))

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """The bytes of every text."""
        return np.array([len(text.encode()) for text in self.texts])

    @cached_property
    def whole(self) -> Columns:
        """All columns of both vocabularies."""
        teacher, student = self.teacher.vocabulary, self.student.vocabulary
        return Columns(
            whole_aligner(teacher, student), np.arange(len(teacher)), np.arange(len(student))
        )

    @cached_property
    def used(self) -> Columns:
        """The columns that texts use; see the head of this file."""
        found = _substrings(self.texts)
        teacher, teacher_id = restricted(self.teacher.vocabulary, found)
        student, student_id = restricted(self.student.vocabulary, found)
        return Columns(_aligner(teacher, student), teacher_id, student_id)

    @cached_property
    def units(self) -> tuple[int, int]:
        """The units that losses compare, and those left out because of a trimmed token."""
        index = self._aligned(self.used, range(len(self.texts))).index()
        return len(index), index.dropped_dummy_prefix

    def losses(
        self,
        objectives: Mapping[str, Loss],
        columns: Columns,
        cases: Sequence[Distributions],
        *,
        dtype: torch.dtype = torch.float64,
        count: int | None = None,
    ) -> Iterator[PartOfLoss]:
        """Compute losses on the models, a batch of texts at a time.

        Args:
            objectives: The losses by name, made for `columns.aligner`, with reduction `"none"`.
                Their `per_unit` is in the order of the index.
            columns: The columns of the logits.
            cases: The probabilities of the texts under both models, once for every case.
            dtype: The dtype of the logits.
            count: How many texts to compute, from the first on; None for all of them.

        Yields:
            A loss on a batch, for every loss, case and batch.
        """
        sides = ((self.teacher, columns.teacher_id), (self.student, columns.student_id))
        widths = [len(columns.aligner.teacher), len(columns.aligner.student)]
        logs = [
            [model.edge_log_probs(p) for (model, _), p in zip(sides, case, strict=True)]
            for case in cases
        ]
        options: dict[str, Any] = {}
        for loss in objectives.values():
            options |= loss.index_options
        batches = list(self._batches(widths, dtype, len(self.texts) if count is None else count))
        longest = [
            max(sum(len(model.nodes[text]) for text in texts) for texts in batches)
            for model, _ in sides
        ]
        # Filled once: a batch writes the entries that are not absent, and takes them back.
        memory = [
            torch.full(shape, LOG_ABSENT, dtype=dtype)
            for shape in zip(longest, widths, strict=True)
        ]
        for texts in batches:
            batch = self._aligned(columns, texts)
            index = batch.index(**options).to("cpu")
            text_of_unit = np.searchsorted(batch.row_offsets, index.unit.numpy(), side="right") - 1
            text_of_unit += texts.start
            text_of_offset = None
            if "text_events" in index.groups:
                text_of_offset = index.text_offset_batch_row.numpy() + texts.start
            edges = [Edges.of(model, new_id, texts) for model, new_id in sides]
            logits = [
                z[: sum(len(model.nodes[text]) for text in texts)]
                for z, (model, _) in zip(memory, sides, strict=True)
            ]
            for number, case_logs in enumerate(logs):
                for z, entries, log_probs in zip(logits, edges, case_logs, strict=True):
                    values = torch.from_numpy(log_probs[entries.edge]).to(dtype)
                    z[entries.row, entries.token] = values
                for name, loss in objectives.items():
                    with torch.no_grad():
                        out = loss(teacher_logits=logits[0], student_logits=logits[1], index=index)
                    sums = np.zeros(len(self.texts))
                    is_text = "text_events" in loss.index_groups
                    text_of = text_of_offset if is_text else text_of_unit
                    np.add.at(sums, text_of, out.per_unit.double().numpy())
                    offsets = len(out.per_unit) if is_text else 0
                    left_out = float(out.metrics.offsets_left_out) if is_text else 0.0
                    yield PartOfLoss(name, number, sums, offsets, left_out)
            for z, entries in zip(logits, edges, strict=True):
                z[entries.row, entries.token] = LOG_ABSENT

    def _aligned(self, columns: Columns, texts: range) -> AlignedBatch:
        """Align rows of one position for the prompt, the text and the stop."""
        sides = ((self.teacher, columns.teacher_id), (self.student, columns.student_id))
        ids = [
            [new_id[[model.stop, *model.ids[text]]].tolist() for text in texts]
            for model, new_id in sides
        ]
        masks = [[[False] + [True] * (len(row) - 1) for row in rows] for rows in ids]
        batch = columns.aligner.align_batch(
            *ids, teacher_mask=masks[0], student_mask=masks[1], on_mismatch="error"
        )
        only_prefix = batch.unmatched.reason == UnmatchedReason.DUMMY_PREFIX
        assert only_prefix.all(), "tokens outside of units are dummy prefixes"
        return batch

    def _batches(self, widths: Sequence[int], dtype: torch.dtype, count: int) -> Iterator[range]:
        row_bytes = [width * dtype.itemsize for width in widths]
        start, size = 0, 0
        for text in range(count):
            models = (self.teacher, self.student)
            needed = sum(n * len(m.nodes[text]) for n, m in zip(row_bytes, models, strict=True))
            if size and size + needed > LOGIT_BYTES:
                yield range(start, text)
                start, size = text, 0
            size += needed
        yield range(start, count)


@functools.lru_cache(maxsize=32)
def _model(vocabulary: Vocabulary, texts: tuple[str, ...]) -> ExactModel:
    return ExactModel(vocabulary, texts)


@functools.lru_cache(maxsize=32)
def _token_bytes(vocabulary: Vocabulary) -> list[bytes]:
    return [vocabulary.token_bytes(token) for token in range(len(vocabulary))]


@functools.lru_cache(maxsize=1)
def _substrings(texts: tuple[str, ...]) -> frozenset[bytes]:
    """Return all byte strings that occur in a text, or in a text after a dummy prefix."""
    return frozenset(
        data[start:end]
        for data in (b" " + text.encode() for text in texts)
        for start in range(len(data))
        for end in range(start + 1, len(data) + 1)
    )


@functools.lru_cache(maxsize=8)
def whole_aligner(teacher: Vocabulary, student: Vocabulary) -> Aligner:
    """Return the aligner of all tokens of two vocabularies."""
    return _aligner(teacher, student)


def _aligner(teacher: Vocabulary, student: Vocabulary) -> Aligner:
    """Pair two vocabularies whose texts end with the canonical stop of either side."""
    return Aligner(teacher, student, stop_tokens=([teacher.stop_ids[0]], [student.stop_ids[0]]))


def restricted(
    vocabulary: Vocabulary, texts: Collection[bytes]
) -> tuple[Vocabulary, NDArray[np.int64]]:
    """Keep the canonical stop and the tokens whose bytes are among `texts`.

    Returns:
        The vocabulary of the kept tokens, in the order of their ids, and the new id of every old
        id, -1 for tokens that are not kept.
    """
    stop = vocabulary.stop_ids[0]
    token_bytes, kinds = _token_bytes(vocabulary), vocabulary.kinds.tolist()
    text_kinds = (TokenKind.NORMAL, TokenKind.BYTE)
    kept = [
        (token, data, kind)
        for token, (data, kind) in enumerate(zip(token_bytes, kinds, strict=True))
        if token == stop or (kind in text_kinds and data in texts)
    ]
    new_id = np.full(len(vocabulary), -1)
    new_id[[token for token, _, _ in kept]] = np.arange(len(kept))
    fallbacks = [new for new, (_, _, kind) in enumerate(kept) if kind == TokenKind.BYTE]
    return Vocabulary.from_token_bytes(
        [data for _, data, _ in kept],
        special=[int(new_id[stop])],
        byte_fallback=fallbacks,
        dummy_prefix=vocabulary.dummy_prefix,
        stop_ids=[int(new_id[stop])],
    ), new_id
