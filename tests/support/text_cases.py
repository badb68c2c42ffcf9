"""Random small pairs with text to compare, and `TextLoss` against its twin on them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from simct_align import Aligner, Vocabulary
from simct_align.loss import TextLoss
from support.text_twin import Side, text_twin

SIDES = ("teacher", "student")
#: What computes text events on the CPU.
BACKENDS = ("native", "torch")
#: The kinds of offsets by the twin's names and the names of their counts.
KINDS = {
    "tree": "offsets_tree",
    "next byte": "offsets_next_byte",
    "one row": "offsets_one_row",
    "left out": "offsets_left_out",
    "unlisted": "offsets_unlisted",
}


def _log(x):
    """The logarithm as a loss takes it: 0 counts as exp(-1e4), without a gradient."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).log(), -1e4)


def reverse_kl(q, p):
    return (q * (_log(q) - _log(p))).sum()


def forward_kl(q, p):
    return (p * (_log(p) - _log(q))).sum()


def tvd(q, p):
    return (q - p).abs().sum() / 2


def jsd(q, p):
    m = (q + p) / 2
    return (forward_kl(m, p) + forward_kl(m, q)) / 2


DIVERGENCES = {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "tvd": tvd, "jsd": jsd}


@dataclass(eq=False)
class TextCase:
    """A pair, a batch, and logits of both sides, `[tokens, columns]` in float64."""

    aligner: Aligner
    batch: Any
    ids: dict[str, list[list[int]]]
    logits: dict[str, torch.Tensor]

    @cached_property
    def index(self):
        return self.batch.index(text_events=True)

    def vocabulary(self, side):
        return getattr(self.aligner, side)

    def run(self, student=None, *, teacher=None, index=None, normalizer=None, **keywords):
        """`TextLoss` with the sum of all offsets, unless the keywords say otherwise."""
        return TextLoss(self.aligner, **{"reduction": "sum"} | keywords)(
            teacher_logits=self.logits["teacher"] if teacher is None else teacher,
            student_logits=self.logits["student"] if student is None else student,
            index=self.index if index is None else index,
            normalizer=normalizer,
        )

    def twin(self, student, divergence=reverse_kl, temperature=1.0, lists=None, **keywords):
        """The twin's values `[offsets]` and kinds; of the teacher it may know lists only."""
        sides = [
            Side(
                name,
                self.vocabulary(name),
                getattr(self.aligner.shared, f"{name}_stop_ids").tolist(),
                self.ids[name],
                logits,
                getattr(self.batch, name).offsets.tolist(),
                temperature,
                lists if name == "teacher" else None,
            )
            for name, logits in (("teacher", self.logits["teacher"]), ("student", student))
        ]
        found = text_twin(self.batch, *sides, divergence, **keywords)
        values = [value for *_, value in found]
        kinds = [kind for _, _, kind, _ in found]
        return torch.stack(values) if values else student.new_zeros(0), kinds


def random_vocabulary(rng, alphabet, n_stops=1):
    """Every letter, longer strings, a duplicate; then stops and a control token."""
    texts = {bytes([letter]) for letter in alphabet}
    for _ in range(rng.randint(2, 8)):
        texts.add(bytes(rng.choice(alphabet) for _ in range(rng.randint(2, 4))))
    ordered = sorted(texts)
    rng.shuffle(ordered)
    ordered.append(rng.choice(ordered))
    n = len(ordered)
    control = range(n, n + n_stops + 1)
    empty = [b""] * (n_stops + 1)
    return Vocabulary.from_token_bytes(
        [*ordered, *empty], special=list(control), stop_ids=list(control)[:n_stops]
    )


def random_spelling(rng, vocabulary, text):
    """Any path of tokens with the bytes of a text, not the shortest one."""
    texts = [vocabulary.token_bytes(i) for i in range(len(vocabulary))]
    path, at = [], 0
    while at < len(text):
        path.append(rng.choice([i for i, t in enumerate(texts) if t and text.startswith(t, at)]))
        at += len(texts[path[-1]])
    return path


def random_case(
    seed,
    *,
    alphabet=b"ab",
    scale=2.0,
    rows=3,
    same=False,
    regions=2,
    stops=None,
    longest=9,
    extra=2,
    cut=9.0,
):
    """Rows that begin with a control token, of one or two regions, most of them with a stop.

    Args:
        seed: Everything is drawn from it.
        alphabet: The letters.
        scale: The standard deviation of logits, before they are cut.
        rows: The number of rows.
        same: Whether both sides have one vocabulary and one tokenization.
        regions: The largest number of regions of a row.
        stops: The number of stops of either side; None draws it.
        longest: The largest number of letters of a region.
        extra: Columns after the last token.
        cut: The largest absolute value of a logit.
    """
    rng = random.Random(seed)
    stops = stops or (rng.randint(1, 2), rng.randint(1, 2))
    teacher = random_vocabulary(rng, alphabet, stops[0])
    student = teacher if same else random_vocabulary(rng, alphabet, stops[1])
    vocabularies = {"teacher": teacher, "student": student}
    ids, masks = {side: [] for side in SIDES}, {side: [] for side in SIDES}
    for _ in range(rows):
        row, mask = {side: [] for side in SIDES}, {side: [] for side in SIDES}
        for _ in range(rng.randint(1, regions)):
            text = bytes(rng.choice(alphabet) for _ in range(rng.randint(1, longest)))
            ends, path = rng.random() < 0.7, None
            for side, vocabulary in vocabularies.items():
                if not (same and side == "student"):
                    path = random_spelling(rng, vocabulary, text)
                end = [rng.choice(vocabulary.stop_ids)] if ends and vocabulary.stop_ids else []
                row[side] += [len(vocabulary) - 1, *path, *end]
                mask[side] += [0, *[1] * len(path + end)]
        for side in SIDES:
            ids[side].append(row[side])
            masks[side].append(mask[side])
    aligner = Aligner(teacher, student)
    batch = aligner.align_batch(
        ids["teacher"], ids["student"],
        teacher_mask=masks["teacher"], student_mask=masks["student"],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    logits = {}
    for side, vocabulary in vocabularies.items():
        shape = len(getattr(batch, side).values), len(vocabulary) + extra
        z = torch.randn(shape, generator=generator, dtype=torch.float64)
        # Beyond 9 a node's mass may be within the rounding of the whole offset's.
        logits[side] = (scale * z).clamp(-cut, cut)
    return TextCase(aligner, batch, ids, logits)


def compare(c, *, divergence="reverse_kl", chunk_bytes=None, teacher=None, lists=None, **keywords):
    """Compare values, counts by kind and gradients of both back ends with the twin.

    Args:
        c: The case.
        divergence: The name of a divergence.
        chunk_bytes: The workspace.
        teacher: In place of the case's logits of the teacher.
        lists: The twin's form of a teacher of which only lists are known.
        **keywords: Keywords of the loss.

    Returns:
        The number of offsets of every kind.
    """
    has_zero = []

    def of_twin(q, p):
        has_zero.append(bool((q == 0).any()))
        return DIVERGENCES[divergence](q, p)

    plain = c.logits["student"].clone().requires_grad_()
    expected, kinds = c.twin(plain, of_twin, lists=lists, **keywords)
    counts = Counter(kinds)
    kept = torch.ones_like(expected)
    if divergence == "forward_kl":
        # The logarithm of a student's mass of 0 counts as -1e4 and has no derivative.
        kept[[kind not in ("left out", "unlisted") for kind in kinds]] = (
            1.0 - torch.tensor(has_zero).double()
        )
    gradient = torch.zeros_like(plain)
    if expected.requires_grad:
        (gradient,) = torch.autograd.grad((expected * kept).sum(), plain)
    for backend in BACKENDS:
        ours = c.logits["student"].clone().requires_grad_()
        out = c.run(
            ours,
            teacher=teacher,
            divergence=divergence,
            chunk_bytes=chunk_bytes,
            backend=backend,
            **keywords,
        )
        torch.testing.assert_close(out.per_unit, expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(out.loss, expected.sum(), rtol=1e-8, atol=1e-10)
        for kind, name in KINDS.items():
            assert getattr(out.metrics, name) == counts[kind], (backend, kind)
        assert out.metrics.offsets_spoiled == 0
        (out.loss if kept.all() else (out.per_unit * kept).sum()).backward()
        torch.testing.assert_close(ours.grad, gradient, rtol=1e-7, atol=1e-10)
    return counts
