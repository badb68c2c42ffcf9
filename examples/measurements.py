"""What a distillation is judged by: figures per prompt, before and after, none of them alone.

The reverse KL of a student's samples can fall while the text drifts to what both models find easy,
so it stands beside answers that nobody here wrote, the teacher's own samples, and what the text
looks like. Log-probabilities are sums over each model's own tokens, so no tokenizer can bend them;
every figure is a ratio of sums over prompts, and its standard error is over prompts, paired where
two are compared (delta method).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig

from simct_align import Aligner, SimCTCollator, UnitKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gguf_models import Loaded
    from simct_align.prepare import PreparedBatch, PreparedSide

#: Rows of one forward pass: 262,144 logits for each of their positions.
ROWS_AT_ONCE = 4
SAMPLED_AT_ONCE = 32
#: Two-sided 95 %, for as many prompts as are asked for here.
NORMAL_95 = 1.96

LABELS = {
    "reverse_kl": "reverse KL of the student's samples, nats per byte",
    "gold_student": "gold answers: student's NLL, nats per byte",
    "gold_teacher": "gold answers: teacher's NLL, nats per byte",
    "teacher_samples_student": "teacher's samples: student's NLL, nats per byte",
    "teacher_samples_teacher": "teacher's samples: teacher's NLL, nats per byte",
    "bytes_per_token": "bytes per student token",
    "multi_tokens": "share of student tokens in MULTI units",
    "canonical": "share of samples that the student tokenizes canonically",
    "digits": "digits per byte",
    "newlines": "newlines per byte",
    "distinct_4grams": "distinct 4-grams of words, share within a sample",
    "ended": "share of samples that end with EOS",
}


class Ratio(NamedTuple):
    """A figure: numerator and denominator of every prompt, float64 [prompts]."""

    numerator: NDArray[np.float64]
    denominator: NDArray[np.float64]

    @property
    def value(self) -> float:
        total = float(self.denominator.sum())
        return float(self.numerator.sum()) / total if total else math.nan

    def residuals(self) -> NDArray[np.float64]:
        """How far every prompt moves the figure, times the number of prompts."""
        mean = self.denominator.mean()
        if not mean:
            return np.full(len(self.denominator), math.nan)
        return (self.numerator - self.value * self.denominator) / mean

    @property
    def error(self) -> float:
        return _standard_error(self.residuals())


class Change(NamedTuple):
    """A paired difference and its standard error."""

    value: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        return self.value - NORMAL_95 * self.error, self.value + NORMAL_95 * self.error


def change(before: Ratio, after: Ratio) -> Change:
    return Change(
        after.value - before.value, _standard_error(after.residuals() - before.residuals())
    )


def _standard_error(residuals: NDArray[np.float64]) -> float:
    count = len(residuals)
    return float(residuals.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan


class Measured(NamedTuple):
    figures: dict[str, Ratio]
    #: The student's samples.
    texts: list[str]
    #: Tokens and bytes that did not reach the other model, by reason; 0 is not listed.
    left_out: dict[str, int]


class Measurer:
    """Measures students against one teacher on fixed prompts.

    Args:
        teacher: The teacher.
        student: The student as it is now; any model with its tokenizer can be measured later.
        rows: With `prompt` and `completion` (the gold answer), both texts or both messages.
        max_new_tokens: Samples are cut at so many tokens of whoever samples.
        seed: Of the samples; the same before and after.
    """

    def __init__(
        self,
        teacher: Loaded,
        student: Loaded,
        rows: Sequence[Mapping[str, Any]],
        *,
        max_new_tokens: int,
        seed: int = 0,
    ) -> None:
        self.teacher, self.student = teacher, student
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.aligner = Aligner(
            teacher.vocabulary, student.vocabulary, stop_tokens=(teacher.stops, student.stops)
        )
        collator = SimCTCollator(self.aligner, teacher.tokenizer, student.tokenizer, turns="last")
        self.teacher_prompts, self.student_prompts = (
            [row[-1] for row in side] for side in collator.prompts(list(rows))
        )
        self.gold = collator.prepare(list(rows))
        self.gold_bytes = _sizes(_completions(student, self.gold.student))
        # The teacher's own samples, and how they look to the student: the roles are swapped.
        swapped = Aligner(
            student.vocabulary, teacher.vocabulary, stop_tokens=(student.stops, teacher.stops)
        )
        sampled = sample(teacher, self.teacher_prompts, max_new_tokens, seed)
        self.teacher_samples = swapped.prepare(
            sampled.ids,
            teacher_prompt_ids=self.student_prompts,
            student_prompt_ids=self.teacher_prompts,
            truncated=sampled.truncated,
        )
        written = _completions(teacher, self.teacher_samples.student)
        self.teacher_samples_bytes = _sizes(written)
        #: How the teacher itself writes: what a student may come near to.
        self.teacher_looks = _looks(written, sampled.truncated)
        self.of_teacher = {
            "gold_teacher": Ratio(_text_nll(teacher, self.gold.teacher), self.gold_bytes),
            "teacher_samples_teacher": Ratio(
                _text_nll(teacher, self.teacher_samples.student), self.teacher_samples_bytes
            ),
        }

    def measure(self, model: Any = None) -> Measured:
        """Sample from a student and measure it; the default is the first student."""
        student = self.student if model is None else self.student._replace(model=model)
        was_training = student.model.training
        student.model.eval()
        try:
            return self._measure(student)
        finally:
            student.model.train(was_training)

    def _measure(self, student: Loaded) -> Measured:
        sampled = sample(student, self.student_prompts, self.max_new_tokens, self.seed)
        batch = self.aligner.prepare(
            sampled.ids,
            teacher_prompt_ids=self.teacher_prompts,
            student_prompt_ids=self.student_prompts,
            truncated=sampled.truncated,
        )
        log_ratio = log_probabilities(student.model, batch.student).sum(axis=1)
        log_ratio -= log_probabilities(self.teacher.model, batch.teacher).sum(axis=1)
        ids = [[token for token in row if token not in student.stops] for row in sampled.ids]
        written = _completions(student, batch.student)
        texts = _decoded(written)
        canonical = self.aligner.student.encode_batch(texts)
        size, one = _sizes(written), np.ones(len(ids))
        tokens = np.array(list(map(len, ids)), np.float64)
        figures = (
            self.of_teacher
            | _looks(written, sampled.truncated)
            | {
                "reverse_kl": Ratio(log_ratio, size),
                "gold_student": Ratio(_text_nll(student, self.gold.student), self.gold_bytes),
                "teacher_samples_student": Ratio(
                    _text_nll(student, self.teacher_samples.teacher), self.teacher_samples_bytes
                ),
                "bytes_per_token": Ratio(size, tokens),
                "multi_tokens": Ratio(_multi_tokens(batch), tokens),
                "canonical": Ratio(
                    np.array([a == b for a, b in zip(ids, canonical, strict=True)], np.float64), one
                ),
            }
        )
        counts = batch.counts
        left_out = counts.retokenized.as_dict() | {"turns_left_out": counts.turns_left_out}
        del left_out["specials"]
        return Measured(
            {name: figures[name] for name in LABELS},
            texts,
            {name: count for name, count in left_out.items() if count},
        )


class Sampled(NamedTuple):
    ids: list[list[int]]
    truncated: list[bool]


@torch.no_grad()
def sample(
    who: Loaded, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int
) -> Sampled:
    """Draws one completion per prompt from the model's own distribution, nothing cut off it."""
    torch.manual_seed(seed)
    device = who.model.device
    pad = who.stops[0]
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=list(who.stops),
        pad_token_id=pad,
    )
    sampled = Sampled([], [])
    for first in range(0, len(prompts), SAMPLED_AT_ONCE):
        part = prompts[first : first + SAMPLED_AT_ONCE]
        width = max(map(len, part))
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in part])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
        out = who.model.generate(
            ids.to(device), attention_mask=mask.to(device), generation_config=settings
        )
        for row in out[:, width:].tolist():
            end = next((place for place, token in enumerate(row) if token in who.stops), None)
            sampled.ids.append(row if end is None else row[: end + 1])
            sampled.truncated.append(end is None)
    return sampled


@torch.no_grad()
def log_probabilities(model: Any, side: PreparedSide) -> NDArray[np.float64]:
    """Return the log-probability of every completion token, 0 elsewhere, [rows, width]."""
    found = np.zeros(side.input_ids.shape)
    for first in range(0, len(found), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        width = int(side.attention_mask[rows].sum(axis=1).max())
        ids = torch.from_numpy(side.input_ids[rows, :width]).to(model.device)
        mask = torch.from_numpy(side.attention_mask[rows, :width]).to(model.device)
        taken = torch.from_numpy(side.completion_mask[rows, 1:width]).to(model.device) != 0
        # Logits of the prompts would be most of the work.
        begin = int(taken.any(dim=0).nonzero()[0]) if bool(taken.any()) else 0
        logits = model(
            input_ids=ids, attention_mask=mask, logits_to_keep=width - begin, use_cache=False
        ).logits[:, :-1]
        taken, targets = taken[:, begin:], ids[:, begin + 1 :]
        chosen = logits[taken].float()
        log_p = chosen.gather(1, targets[taken][:, None])[:, 0] - chosen.logsumexp(dim=1)
        place = torch.zeros(taken.shape, dtype=torch.float64, device=taken.device)
        place[taken] = log_p.double()
        found[rows, begin + 1 : width] = place.cpu().numpy()
    return found


def _text_nll(who: Loaded, side: PreparedSide) -> NDArray[np.float64]:
    """Negative log-likelihood of the completions' text, without the end of the turn, [rows]."""
    is_text = ~np.isin(side.input_ids, who.stops)
    return -(log_probabilities(who.model, side) * is_text).sum(axis=1)


def _completions(who: Loaded, side: PreparedSide) -> list[bytes]:
    """Return the texts of the completions, without stops."""
    is_text = (side.completion_mask != 0) & ~np.isin(side.input_ids, who.stops)
    return [
        who.vocabulary.decode_bytes(ids[taken])
        for ids, taken in zip(side.input_ids, is_text, strict=True)
    ]


def _looks(written: Sequence[bytes], truncated: Sequence[bool]) -> dict[str, Ratio]:
    """Return the figures of samples that need no model."""
    texts, size = _decoded(written), _sizes(written)
    grams = np.array([_four_grams(text) for text in texts], np.float64)
    return {
        "digits": Ratio(_counts(r"\d", texts), size),
        "newlines": Ratio(_counts(r"\n", texts), size),
        "distinct_4grams": Ratio(grams[:, 0], grams[:, 1]),
        "ended": Ratio(1.0 - np.array(truncated, np.float64), np.ones(len(texts))),
    }


def _decoded(written: Sequence[bytes]) -> list[str]:
    return [text.decode("utf-8", "replace") for text in written]


def _sizes(texts: Sequence[bytes]) -> NDArray[np.float64]:
    return np.array(list(map(len, texts)), np.float64)


def _multi_tokens(batch: PreparedBatch) -> NDArray[np.float64]:
    """Student tokens in MULTI units, [rows]."""
    aligned = batch.aligned
    sizes = np.where(aligned.kind == UnitKind.MULTI, aligned.student_end - aligned.student_start, 0)
    totals = np.concatenate([[0], np.cumsum(sizes)])
    return np.diff(totals[aligned.row_offsets]).astype(np.float64)


def _counts(pattern: str, texts: Sequence[str]) -> NDArray[np.float64]:
    return np.array([len(re.findall(pattern, text)) for text in texts], np.float64)


def _four_grams(text: str) -> tuple[int, int]:
    """Distinct ones and all of them."""
    words = text.split()
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return len(set(grams)), len(grams)
