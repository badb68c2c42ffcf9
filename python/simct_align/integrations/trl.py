"""SimCT in TRL: `GOLDTrainer` with this package's teacher rows, alignment and loss.

Generation, vLLM, accelerate, LoRA, checkpoints and logging stay TRL's. This module replaces the
steps between the student's sample and the loss. A teacher's row is the prompt, written by the
teacher's own chat template, followed by the sampled text in the teacher's tokens. Both sides are
aligned. All slices of a step and all processes share one normalizer.
"""

from __future__ import annotations

import copy
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from simct_align.aligner import Aligner
from simct_align.collator import SimCTCollator, pad_id
from simct_align.integrations._trl_config import TESTED_RELEASE, SimCTConfig, make_loss
from simct_align.integrations._trl_metrics import MetricSums
from simct_align.integrations._trl_side import Side, log_likelihood, read_row

# After the check of its release.
from trl.experimental.gold import GOLDTrainer  # isort: skip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from simct_align.index import AlignedIndex
    from simct_align.prepare import PreparedBatch, PreparedSide

__all__ = ["SimCTConfig", "SimCTTrainer"]


class _Slice(NamedTuple):
    """A micro-batch, with both sides and its alignment."""

    student: Side
    teacher: Side
    aligned: AlignedIndex
    #: The number of bytes of the completions' text.
    size: int
    #: The loss's normalizer: the sum over the slices of the step and over processes, divided by
    #: the number of processes.
    normalizer: Tensor
    #: The same sum for the completions' tokens.
    tokens: Tensor


class _Collator:
    """Turns rows into the student's entries of GOLD's buffer, and adds the teacher's prompts."""

    def __init__(self, collator: SimCTCollator) -> None:
        self.collator = collator

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        rows = [read_row(number, example) for number, example in enumerate(examples)]
        written = self.collator.prepare(rows)
        student = written.student
        teacher_prompts, student_prompts = self.collator.prompts(rows)
        prompts = [row[-1] for row in student_prompts]
        for number, prompt in enumerate(prompts):
            if len(prompt) == 0:
                raise ValueError(
                    f"row {number}: expected a prompt of at least one token, got an empty one: "
                    f"no logits would predict the completion's first token"
                )
        tokenizer: Any = self.collator.student_tokenizer
        width = max(map(len, prompts))
        padded = np.full((len(prompts), width), pad_id(tokenizer), np.int64)
        mask = np.zeros((len(prompts), width), np.int64)
        for row, prompt in enumerate(prompts):
            padded[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        labels = student.labels
        return {
            "input_ids": torch.from_numpy(student.input_ids),
            "attention_mask": torch.from_numpy(student.attention_mask),
            "labels": torch.from_numpy(labels),
            "prompts": torch.from_numpy(padded),
            "prompt_attention_mask": torch.from_numpy(mask),
            # GOLD needs these for rows whose completions come from the data set.
            "original_prompt_text": tokenizer.batch_decode(prompts),
            "original_completion_text": tokenizer.batch_decode(
                [ids[label >= 0] for ids, label in zip(student.input_ids, labels, strict=True)]
            ),
            "teacher_prompt_ids": [list(row[-1]) for row in teacher_prompts],
            "teacher_written_prompt_ids": _before_completions(written.teacher),
            "student_prompt_lengths": list(map(len, prompts)),
        }


def _before_completions(side: PreparedSide) -> list[list[int]]:
    """Return the ids before the completion of every row, with the template's headers of a text."""
    taken = side.completion_mask != 0
    size = np.where(taken.any(axis=1), taken.argmax(axis=1), side.attention_mask.sum(axis=1))
    rows = zip(side.input_ids, size.tolist(), strict=True)
    return [ids[:length].tolist() for ids, length in rows]


class SimCTTrainer(GOLDTrainer):  # type: ignore[misc]
    """A `GOLDTrainer` that distills across tokenizers with SimCT.

    Rows of the data set have `messages`, whose last assistant turn is trained, or `prompt` with
    `completion`. Where every slice is sampled (`lmbda=1`), `prompt` alone is enough.

    The trainer adds metrics to the log, under `simct/`: the metrics of the loss, the counts of
    tokens that were left out, and seconds. Counts and seconds are sums since the previous log.
    Masses and divergences are means over units, or over offsets with `objective="text"`. Seconds
    are those of one process; all other metrics cover all processes.

    `simct/log_ratio_per_byte` is mean[log p_S(y|x) − log p_T(y|x)] over the bytes of the
    completions; each log-probability is a sum over the model's own tokens. On sampled completions
    this is an estimate of the reverse KL per byte, which compares runs with different objectives,
    provided that no token was cut or left out on the teacher's side.

    Args:
        model: The student.
        teacher_model: The teacher.
        args: A `SimCTConfig`.
        teacher_tokenizer: The teacher's tokenizer; None reads it from
            `args.teacher_tokenizer_name_or_path` or from the teacher's name.
        aligner: The pair of vocabularies; None makes it from the two tokenizers. Give an `Aligner`
            where control tokens or stops must be named.
        processing_class: The student's tokenizer, as for `GOLDTrainer`.
        **keywords: Further keywords of `GOLDTrainer`, except `data_collator`.

    Raises:
        TypeError: `args` is not a `SimCTConfig`.
        ValueError: There is no teacher, or no tokenizer for it; a `data_collator` came; or one
            process drives more than one GPU.
    """

    def __init__(
        self,
        model: Any = None,
        teacher_model: Any = None,
        args: SimCTConfig | None = None,
        *,
        teacher_tokenizer: Any = None,
        aligner: Aligner | None = None,
        processing_class: Any = None,
        **keywords: Any,
    ) -> None:
        if not isinstance(args, SimCTConfig):
            raise TypeError(f"args: expected a SimCTConfig, got {type(args).__name__}")
        if keywords.get("data_collator") is not None:
            raise ValueError(
                f"data_collator: expected None, because SimCTTrainer has its own; "
                f"got {type(keywords['data_collator']).__name__}"
            )
        if args.n_gpu > 1:
            raise ValueError(
                f"args.n_gpu: expected at most one GPU for each process, got {args.n_gpu}: start "
                f"the training with `accelerate launch`"
            )
        if teacher_model is None:
            raise ValueError("teacher_model: expected a model or the name of one, got None")
        if teacher_tokenizer is None and not _teacher_name(teacher_model, args):
            raise ValueError(
                "teacher_tokenizer: expected the teacher's tokenizer, because the teacher model "
                "has no name to load one from; give teacher_tokenizer=, or "
                "args.teacher_tokenizer_name_or_path"
            )
        keywords["data_collator"] = self._collate
        with tempfile.TemporaryDirectory() as folder:
            named = args.teacher_tokenizer_name_or_path
            if teacher_tokenizer is not None:
                # GOLD takes the teacher's tokenizer as a path or a name only.
                teacher_tokenizer.save_pretrained(folder)
                args.teacher_tokenizer_name_or_path = folder
            super().__init__(
                model, teacher_model, args, processing_class=processing_class, **keywords
            )
            if teacher_tokenizer is not None:
                args.teacher_tokenizer_name_or_path = named
                self.teacher_tokenizer = teacher_tokenizer
        self._metric_sums = MetricSums(self.accelerator)
        self.aligner = aligner or Aligner(self.teacher_tokenizer, self._tokenizer)
        self.loss_fn = make_loss(self.aligner, args).to(self.accelerator.device)
        self._rows = _Collator(
            SimCTCollator(
                self.aligner,
                self.teacher_tokenizer,
                self._tokenizer,
                turns="last",
                history="sampled",
            )
        )
        self._initial_model: Any = None
        if args.initial_kl_weight and not _has_adapters(self.model):
            initial = copy.deepcopy(self.model).eval().requires_grad_(False)
            # TRL sets a forward on the model instance; a copy of that forward runs the original.
            vars(initial).pop("forward", None)
            self._initial_model = self.accelerator.prepare_model(initial, evaluation_mode=True)
        self.uld_loss_fn.use_extended_uld = False
        # A slice's loss is already divided by the normalizer of the whole step.
        self.loss_is_scaled_for_ga = True
        stops = self.aligner.shared.student_stop_ids.tolist()
        known = self.generation_config.eos_token_id
        known = [] if known is None else known if isinstance(known, list) else [known]
        self.generation_config.eos_token_id = sorted({*known, *stops}) or None
        self._ends = np.array(self.generation_config.eos_token_id or [], np.int64)

    def _collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self._rows(examples)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Return the rows as they are: the collator tokenizes them for both sides."""
        return dataset

    def _fill_buffer(self, generation_batch: Any, buffer_steps: int) -> None:
        with self._metric_sums.timed("generation"):
            super()._fill_buffer(generation_batch, buffer_steps)
        with self._metric_sums.timed("alignment"):
            slices = self._align(self._buffered_inputs, self._buffered_on_policy)
        for inputs, ready in zip(self._buffered_inputs, slices, strict=True):
            inputs["_simct"] = ready

    def _align(self, buffered: Sequence[dict[str, Any]], on_policy: Sequence[bool]) -> list[_Slice]:
        """Return both sides of every slice, with the normalizers of the step."""
        device = self.accelerator.device
        ready = []
        for inputs, is_sampled in zip(buffered, on_policy, strict=True):
            batch = self._prepare_slice(inputs, is_sampled=is_sampled)
            student = Side.read(batch.student, self.model, device)
            teacher = Side.read(batch.teacher, self.teacher_model, device)
            index = batch.aligned.index(
                student_row_starts=student.row_starts,
                teacher_row_starts=teacher.row_starts,
                **self.loss_fn.index_options,
            )
            ready.append((student, teacher, index, self._size(batch.student)))
        units = sum(self.loss_fn.normalizer(index) for _, _, index, _ in ready)
        tokens = sum(len(student.predicting) for student, *_ in ready)
        totals = torch.tensor([units, tokens], dtype=torch.float32, device=device)
        if self.model.training:
            totals = self.accelerator.reduce(totals, reduction="sum")
            # Gradients are averaged over processes; the normalizer makes up for that division.
            totals = totals / self.accelerator.num_processes
        by_units, by_tokens = totals.clamp(min=torch.finfo(torch.float32).tiny).unbind()
        return [
            _Slice(student, teacher, index.to(device), size, by_units, by_tokens)
            for student, teacher, index, size in ready
        ]

    def _size(self, side: PreparedSide) -> int:
        """Return the number of bytes of the completions; special tokens have none."""
        return len(self.aligner.student.decode_bytes(side.input_ids[side.completion_mask != 0]))

    def _prepare_slice(self, inputs: dict[str, Any], *, is_sampled: bool = True) -> PreparedBatch:
        _check_slice(inputs)
        ids, attention, labels = (
            inputs[name].cpu().numpy() for name in ("input_ids", "attention_mask", "labels")
        )
        completion = labels != -100
        prompt = (attention != 0) & ~completion
        # Embeddings may have more rows than the tokenizer has tokens. Such an id adds no text, and
        # the tokens sampled after it depend on it: the completion ends before the id.
        after_unknown = completion & ((ids >= len(self.aligner.student)).cumsum(axis=1) > 0)
        completion &= ~after_unknown
        # GOLD cuts the front of a prompt that leaves no room for a sampled completion.
        cut = sum(inputs["student_prompt_lengths"]) - int(prompt.sum()) if is_sampled else 0
        teacher_prompts = inputs["teacher_prompt_ids"]
        if not is_sampled:
            # Templates may write headers between the generation prompt and the data's completion.
            teacher_prompts = inputs.get("teacher_written_prompt_ids", teacher_prompts)
        last = np.where(completion, np.arange(ids.shape[1]), -1).max(axis=1)
        ended = (last >= 0) & np.isin(ids[np.arange(len(ids)), last], self._ends)
        batch = self.aligner.prepare(
            ids,
            completion_mask=completion,
            student_prompt_ids=ids,
            student_prompt_mask=prompt,
            teacher_prompt_ids=teacher_prompts,
            truncated=~ended,
            teacher_pad_id=pad_id(self.teacher_tokenizer),
            student_pad_id=pad_id(self._tokenizer),
            teacher_max_length=self.args.teacher_max_length,
            student_max_length=self.args.max_length,
        )
        self._metric_sums.count(
            {
                "tokens_behind_unknown_ids": int(after_unknown.sum()),
                "student_prompt_tokens_cut": cut,
            }
            | batch.counts.as_dict()
        )
        return batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss of a slice, with a forward pass of both models.

        Args:
            model: The student, as the trainer wraps it.
            inputs: A slice of the buffer, or a collated batch in evaluation.
            return_outputs: Whether to return the student's output too.
            num_items_in_batch: Not used, because it counts the tokens of the data set's
                completions and not those of the sampled ones.

        Returns:
            The loss, 0-d; with `return_outputs` the pair of the loss and the student's output. The
            output has no logits of positions before the completions.
        """
        del num_items_in_batch
        ready = inputs.get("_simct")
        if ready is None:
            (ready,) = self._align([inputs], [False])
        with self._metric_sums.timed("student"):
            outputs = ready.student.forward(model)
        self.teacher_model.eval()
        with self._metric_sums.timed("teacher"), torch.no_grad():
            teacher = ready.teacher.forward(self.teacher_model)
        with self._metric_sums.timed("loss"):
            out = self.loss_fn(
                teacher_logits=teacher.logits,
                student_logits=outputs.logits,
                index=ready.aligned,
                normalizer=ready.normalizer,
            )
        self._metric_sums.metrics(out.metrics)
        self._compare_log_likelihoods(outputs.logits, teacher.logits, ready)
        loss = out.loss
        if self.args.initial_kl_weight:
            divergence = self._divergence_from_initial(model, outputs.logits, ready)
            loss = loss + self.args.initial_kl_weight * divergence / ready.tokens
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _compare_log_likelihoods(self, student: Tensor, teacher: Tensor, ready: _Slice) -> None:
        """Add log p_S(y|x) − log p_T(y|x) of the completions to the metrics."""
        with self._metric_sums.timed("log_ratio"):
            ratio = log_likelihood(student, ready.student)
            ratio -= log_likelihood(teacher, ready.teacher)
        self._metric_sums.ratio("log_ratio_per_byte", ratio, ready.size)

    def _divergence_from_initial(self, model: nn.Module, logits: Tensor, ready: _Slice) -> Tensor:
        """Return KL(student ‖ student before training), summed over the completions' tokens."""
        with self._metric_sums.timed("initial"), torch.no_grad():
            if self._initial_model is not None:
                initial = ready.student.forward(self._initial_model).logits
            else:
                with self.accelerator.unwrap_model(model).disable_adapter():
                    initial = ready.student.forward(model).logits
        before, now = (
            each.flatten(0, 1).index_select(0, ready.student.predicting).float().log_softmax(dim=-1)
            for each in (initial, logits)
        )
        divergence = torch.nn.functional.kl_div(before, now, reduction="sum", log_target=True)
        self._metric_sums.ratio("initial_kl", divergence, len(ready.student.predicting))
        return divergence

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the trainer's metrics, with those of this class under `simct/`.

        Args:
            logs: The trainer's metrics; those of this class are added.
            start_time: The start of the training, for the trainer.
        """
        prefix = "simct/" if self.model.training else "eval_simct/"
        logs |= {prefix + name: value for name, value in self._metric_sums.collect().items()}
        super().log(logs, start_time)


def _teacher_name(teacher_model: Any, args: SimCTConfig) -> str | None:
    """Return where GOLD would load the teacher's tokenizer from."""
    named: str | None = args.teacher_tokenizer_name_or_path
    if named is None and isinstance(teacher_model, str):
        return teacher_model
    return named or getattr(teacher_model.config, "_name_or_path", None)


def _check_slice(inputs: dict[str, Any]) -> None:
    """Raise an error if a slice lacks what the trainer's own collator writes."""
    missing = [
        name for name in ("teacher_prompt_ids", "student_prompt_lengths") if name not in inputs
    ]
    if missing:
        raise ValueError(
            f"inputs: expected {' and '.join(map(repr, missing))}, which the collator of "
            f"SimCTTrainer adds to a batch, got only {sorted(inputs)}; take batches from "
            "trainer.get_train_dataloader(), leave trainer.data_collator as it is, and if both are "
            f"so, install the tested {TESTED_RELEASE}"
        )


def _has_adapters(model: Any) -> bool:
    return hasattr(model, "disable_adapter")
