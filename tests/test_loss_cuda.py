"""The losses on a real GPU: the same figures as on the CPU, without a single synchronization."""

from __future__ import annotations

import pytest
import torch

from test_loss_linear import linear_case
from test_loss_system import KEYWORDS, both_losses

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device here: the tests on a GPU are left out"
)


@pytest.mark.parametrize("keywords", KEYWORDS, ids=str)
def test_cuda_equals_cpu(keywords):
    c = linear_case(3, extra_columns=2)
    results = []
    for device in ("cpu", "cuda"):
        for run, leaves in both_losses(device, c, keywords):
            out = run()
            out.loss.backward()
            results.append([out.per_unit, *(leaf.grad for leaf in leaves)])
    for cpu, cuda in zip(results[:2], results[2:], strict=True):
        for a, b in zip(cpu, cuda, strict=True):
            torch.testing.assert_close(a, b.cpu())


def test_no_synchronization():
    c = linear_case(3)
    for run, _ in both_losses("cuda", c, {}):
        run().loss.backward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run().loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
