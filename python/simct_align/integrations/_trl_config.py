"""The configuration of the TRL trainer, its loss, and the releases of trl that it works with."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from simct_align.divergence import JSD
from simct_align.loss import Loss, SimCTLoss, TextLoss, baselines

if TYPE_CHECKING:
    from simct_align.aligner import Aligner

#: The release series that the trainer is tested with.
_TESTED = (1, 16)
#: What to install, for messages.
TESTED_RELEASE = f"trl=={_TESTED[0]}.{_TESTED[1]}.*"


def _check_version() -> None:
    """Refuse releases of trl that are too old, and warn of those that are newer than the tests."""
    try:
        found = version("trl")
    except PackageNotFoundError:
        raise ImportError(
            f"simct_align.integrations.trl needs trl: pip install '{TESTED_RELEASE}'"
        ) from None
    from packaging.version import Version

    release = Version(found).release[:2]
    if release == _TESTED:
        return
    message = (
        "simct_align.integrations.trl overrides methods of trl's experimental GOLDTrainer and "
        f"is tested with {TESTED_RELEASE}; found trl {found}"
    )
    if release < _TESTED:
        raise ImportError(message)
    warnings.warn(f"{message}: if something fails, pip install '{TESTED_RELEASE}'", stacklevel=3)


_check_version()

from transformers.utils import (  # noqa: E402
    is_torch_bf16_gpu_available,
    is_torch_xla_available,
)
from trl.experimental.gold import GOLDConfig  # noqa: E402

_OBJECTIVES: dict[str, Any] = {
    "simct": SimCTLoss,
    "text": TextLoss,
    "shared": functools.partial(SimCTLoss, candidates="shared"),
    "uld": baselines.ULDLoss,
    "alm": baselines.ALMLoss,
    "gold": baselines.GOLDLoss,
    "bpm": baselines.BPMLoss,
    "strict": baselines.StrictLoss,
    "escd": baselines.ESCDLoss,
}
#: The objectives that take a divergence and a temperature.
_WITH_DIVERGENCE = ("simct", "text", "shared")


@dataclass
class SimCTConfig(GOLDConfig):  # type: ignore[misc]
    """Arguments of `SimCTTrainer`: GOLD's arguments, some with other defaults, and the loss's.

    `use_uld_loss` and `use_extended_uld` are fixed. GOLD's `uld_*` and `seq_kd` are not read and
    must keep their defaults. `temperature` is the temperature of sampling. `beta` is the weight of
    a Jensen-Shannon divergence: 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher).

    Args:
        learning_rate: The learning rate of AdamW.
        bf16: Whether to train in mixed precision. The default is True on an accelerator that
            computes in bfloat16, else False.
        lmbda: The share of slices whose completions are sampled from the student.
        objective: The loss: `"simct"`; `"text"` for `TextLoss`, the divergence over text events; or
            a baseline: `"shared"`, `"uld"`, `"alm"`, `"gold"`, `"bpm"`, `"strict"`, `"escd"`.
        candidates: The candidate set of `"simct"`: `"shared"`, `"realized"` or `"on_path"`.
        score: The score of `"simct"`: `"mean"`, `"sum"`, `"event"` or `"mean_logit"`.
        divergence: The divergence of `"simct"`, `"text"` and `"shared"`: a name that `SimCTLoss`
            takes. `"jsd"` reads `beta`, as the objectives `"gold"` and `"bpm"` do.
        loss_temperature: The number that the logits of both sides are divided by, for `"simct"`,
            `"text"` and `"shared"`.
        initial_kl_weight: The weight of KL(student ‖ student before training) over the student's
            own vocabulary, per completion token; 0 leaves the KL out. The trainer keeps a copy of
            the student for this KL, except for a student that is trained through adapters.
        teacher_max_length: The largest number of tokens of a teacher's row; longer rows are cut.

    Raises:
        ValueError: A field that is not read was set, a fixed field was changed, the objective is
            unknown, or `initial_kl_weight` is negative.

    Example:
        >>> config = SimCTConfig("out", candidates="on_path", score="event")
        >>> config.lmbda, config.learning_rate
        (1.0, 1e-05)
        >>> SimCTConfig("out", uld_crossentropy_weight=1.0)
        Traceback (most recent call last):
        ValueError: uld_crossentropy_weight: SimCTTrainer does not read this field; leave it out
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "AdamW's learning rate."})
    bf16: bool | None = field(default=None, metadata={"help": "Mixed precision in bfloat16."})
    lmbda: float = field(default=1.0, metadata={"help": "Share of on-policy slices."})
    use_uld_loss: bool = field(default=True, metadata={"help": "Fixed."})
    use_extended_uld: bool = field(default=False, metadata={"help": "Fixed."})
    objective: str = field(default="simct", metadata={"help": "simct, text, or a baseline."})
    candidates: str = field(default="realized", metadata={"help": "Candidate set of simct."})
    score: str = field(default="mean", metadata={"help": "Score of a path, of simct."})
    divergence: str = field(default="reverse_kl", metadata={"help": "Divergence to minimize."})
    loss_temperature: float = field(default=1.0, metadata={"help": "Divisor of both logits."})
    initial_kl_weight: float = field(
        default=0.0, metadata={"help": "Weight of a KL to the student before training."}
    )
    teacher_max_length: int | None = field(
        default=None, metadata={"help": "Longest teacher row, in tokens."}
    )

    def __post_init__(self) -> None:
        if not self.use_uld_loss or self.use_extended_uld:
            raise ValueError("use_uld_loss and use_extended_uld are fixed: True and False")
        if self.objective not in _OBJECTIVES:
            raise ValueError(
                f"objective: expected one of {', '.join(_OBJECTIVES)}, got {self.objective!r}"
            )
        has_divergence = self.objective in _WITH_DIVERGENCE
        is_read = {
            "candidates": self.objective == "simct",
            "score": self.objective == "simct",
            "divergence": has_divergence,
            "loss_temperature": has_divergence,
            "beta": self.objective in ("gold", "bpm")
            or (has_divergence and self.divergence == "jsd"),
        }
        for each in fields(self):
            never = each.name.startswith("uld_") or each.name == "seq_kd"
            if getattr(self, each.name) == each.default or is_read.get(each.name, not never):
                continue
            if never:
                raise ValueError(
                    f"{each.name}: SimCTTrainer does not read this field; leave it out"
                )
            raise ValueError(
                f"{each.name}: objective={self.objective!r} with divergence={self.divergence!r} "
                f"does not read this field; leave it out"
            )
        if not self.initial_kl_weight >= 0:
            raise ValueError(
                f"initial_kl_weight: expected a number >= 0, got {self.initial_kl_weight!r}"
            )
        if self.bf16 is None and (self.use_cpu or not _has_bf16_accelerator()):
            self.bf16 = False
        super().__post_init__()


def _has_bf16_accelerator() -> bool:
    return bool(is_torch_bf16_gpu_available() or is_torch_xla_available())


def make_loss(aligner: Aligner, args: SimCTConfig) -> Loss:
    """Return the loss that a configuration describes."""
    if args.objective in _WITH_DIVERGENCE:
        divergence = JSD(args.beta) if args.divergence == "jsd" else args.divergence
        keywords: dict[str, Any] = {"divergence": divergence, "temperature": args.loss_temperature}
        if args.objective == "simct":
            keywords |= {"candidates": args.candidates, "score": args.score}
    elif args.objective in ("gold", "bpm"):
        keywords = {"beta": args.beta}
    else:
        keywords = {}
    loss_fn: Loss = _OBJECTIVES[args.objective](aligner, **keywords)
    return loss_fn
