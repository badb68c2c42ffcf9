"""What the parts of the bench of the losses share: settings, memory, and real text."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from continuations import TOKENIZERS, code, gsm8k
from simct_align import Aligner
from simct_align.demo import demo_tokenizers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from simct_align import AlignedBatch

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Setting:
    """The number of units, and the device and dtype of the inputs of all cases."""

    units: int = 500
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32

    def randn(self, *shape: int, requires_grad: bool = False) -> Tensor:
        made = torch.randn(*shape, device=self.device, dtype=self.dtype)
        return made.requires_grad_(requires_grad)

    @property
    def has_bars(self) -> bool:
        """Whether the bars apply to this setting."""
        return self == Setting()

    @property
    def record(self) -> str:
        """The name of the CSV, with the name of a GPU."""
        if self.has_bars:
            return "loss"
        name = self.device.type
        if name == "cuda":
            name = torch.cuda.get_device_name(self.device)
        dtype = str(self.dtype).removeprefix("torch.")
        return "_".join(["loss", *name.lower().split(), str(self.units), dtype])

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def resident(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {name}")


def peak_extra(fn: Callable[[], object], leaves: list[Tensor]) -> int | None:
    """Return the peak memory of `fn` minus the resident memory after `fn`, in bytes."""
    for leaf in leaves:
        leaf.grad = None
    gc.collect()
    if leaves[0].device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        fn()
        gc.collect()
        return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    if not CLEAR.exists():
        return None
    trim = ctypes.CDLL(None).malloc_trim
    trim(0)
    CLEAR.write_text("5")  # resets the high-water mark
    fn()
    peak = resident("VmHWM")
    gc.collect()
    trim(0)
    return peak - resident("VmRSS")


def real_batches(units: int, *, quick: bool) -> Iterator[tuple[str, Aligner, AlignedBatch]]:
    """Yield about the first `units` units of GSM8K answers and of code, Qwen2.5 to Gemma 2.

    Args:
        units: The number of units.
        quick: Whether to take the bundled pair and its own source instead.

    Yields:
        The corpus, the pair and the batch.
    """
    if quick:
        pair: tuple[object, object] = demo_tokenizers()
        corpora = {"code": code(1)}
    else:
        pair = (TOKENIZERS / "qwen2_5", TOKENIZERS / "gemma2")
        times = -(-units // 500)
        corpora = {"GSM8K": gsm8k(40 * times), "code": code(3 * times)}
    aligner = Aligner(*pair)
    for corpus, texts in corpora.items():
        tokens = [side.encode_batch(texts) for side in (aligner.teacher, aligner.student)]
        whole = aligner.align_batch(*tokens)
        # Take whole texts if they are short, and the beginning of the first text if it is long.
        kept = max(1, int(np.searchsorted(whole.row_offsets, units + len(texts[:1])) - 1))
        if kept == 1:
            ends = [getattr(whole, f"{side}_end")[units] for side in ("teacher", "student")]
            tokens = [[ids[0][: int(end)]] for ids, end in zip(tokens, ends, strict=True)]
        yield corpus, aligner, aligner.align_batch(*(ids[:kept] for ids in tokens))
