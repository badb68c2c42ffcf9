"""The metrics that the TRL trainer adds to its log."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from simct_align.loss import LossMetrics, TextMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

_OFFSETS = tuple(name for name in TextMetrics._fields if name.startswith("offsets_"))
_UNITS = ("units_shared", "units_special")
#: The fields of losses' metrics that are means, with the counts that a mean is taken over. All
#: other fields are counts.
_AVERAGED_OVER: dict[type, dict[str, tuple[str, ...]]] = {
    LossMetrics: {
        # The trainer's losses measure masses at MULTI units.
        **{name: ("units_multi",) for name in LossMetrics._fields if "mass" in name},
        "teacher_mass_unlisted": (*_UNITS, "units_multi"),
        "divergence_shared": _UNITS,
        "divergence_multi": ("units_multi",),
    },
    TextMetrics: {
        **{name: _OFFSETS for name in TextMetrics._fields if "mass" in name},
        "divergence_tree": ("offsets_tree",),
        "divergence_next_byte": ("offsets_next_byte",),
        "divergence_one_row": ("offsets_one_row",),
    },
}


class MetricSums:
    """Sums of metrics between two logs; nothing waits for a device before `collect`.

    Args:
        accelerator: The `Accelerator` that adds the metrics of all processes up.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._clear()

    def _clear(self) -> None:
        self._seconds: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._ratios: dict[str, list[Tensor]] = {}
        self._metrics: list[LossMetrics | TextMetrics] = []

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the host's seconds in the block; a device may finish the block's work later."""
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def count(self, counts: Mapping[str, int]) -> None:
        """Add to the counts."""
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + int(count)

    def ratio(self, name: str, total: Tensor, weight: float) -> None:
        """Add to the numerator (0-d) and the denominator of a metric."""
        total = total.detach().float()
        self._ratios.setdefault(name, []).append(torch.stack([total, total.new_tensor(weight)]))

    def metrics(self, metrics: LossMetrics | TextMetrics) -> None:
        """Add the metrics of a loss for a micro-batch."""
        self._metrics.append(metrics)

    def collect(self) -> dict[str, float]:
        """Return all metrics and reset the sums; seconds are those of this process only."""
        found = {f"seconds_{name}": seconds for name, seconds in self._seconds.items()}
        if self._counts:
            counts = torch.tensor(list(self._counts.values()), device=self._accelerator.device)
            found |= dict(zip(self._counts, map(float, self._sum(counts)), strict=True))
        for name, parts in self._ratios.items():
            total, weight = self._sum(torch.stack(parts).sum(dim=0))
            found[name] = total / weight if weight else float("nan")
        if self._metrics:
            found |= self._collect_metrics()
        self._clear()
        return found

    def _collect_metrics(self) -> dict[str, float]:
        names = self._metrics[0]._fields
        averaged_over = _AVERAGED_OVER[type(self._metrics[0])]
        table = torch.stack([torch.stack([v.float() for v in each]) for each in self._metrics])
        column = {name: table[:, number] for number, name in enumerate(names)}
        parts = []
        for name in names:
            weight = torch.ones_like(column[name])
            if name in averaged_over:
                weight = torch.stack([column[count] for count in averaged_over[name]]).sum(dim=0)
            weight = torch.where(column[name].isnan(), 0.0, weight)
            parts += [(column[name].nan_to_num(0.0) * weight).sum(), weight.sum()]
        values = self._sum(torch.stack(parts))
        found = {}
        for number, name in enumerate(names):
            total, weight_sum = values[2 * number : 2 * number + 2]
            if name in averaged_over:
                total = total / weight_sum if weight_sum else float("nan")
            found[name] = total
        return found

    def _sum(self, values: Tensor) -> list[float]:
        summed: list[float] = self._accelerator.reduce(values, reduction="sum").tolist()
        return summed
