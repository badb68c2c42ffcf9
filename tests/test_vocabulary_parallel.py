"""Losses from hidden states with shards of the vocabulary give what they give without shards.

Groups of two and of four processes run all cases of `support.shard_cases`, over gloo.
"""

from __future__ import annotations

import copy
import functools
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from simct_align.loss import LinearSimCTLoss, VocabularyShard
from support.shard_cases import CASES, run_process
from test_loss_linear import linear_case


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What went wrong, by rank and case, for a number of processes."""

    @functools.cache
    def run(n_ranks):
        folder = tmp_path_factory.mktemp(f"group_of_{n_ranks}")
        torch.multiprocessing.spawn(run_process, (n_ranks, str(folder)), nprocs=n_ranks)
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(n_ranks)]

    return run


@pytest.mark.parametrize("n_ranks", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_group(found, name, n_ranks):
    for rank, results in enumerate(found(n_ranks)):
        result = results.get(name, "not run, because an earlier case did not end")
        assert not result, f"rank {rank}: {result}"


def test_shards_need_a_process_group():
    with pytest.raises(RuntimeError, match=r"torch\.distributed is not initialized"):
        VocabularyShard(None, 0, 5)


def test_losses_with_shards_are_copied_and_pickled():
    loss_fn = LinearSimCTLoss(linear_case(0).pair)
    for again in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        assert again.shards is not loss_fn.shards
        assert again.shards._columns is again.columns
