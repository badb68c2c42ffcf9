"""Values that nobody expects, and public calls to pass them to, one argument at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from simct_align import Aligner, LinearSimCTLoss, SimCTLoss, TextLoss, Vocabulary
from simct_align.demo import demo_tokenizers
from simct_align.pipelines import AlignRows, RetokenizeRows, TokenizeRows
from simct_align.served import from_openai, from_sglang, from_vllm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Call = tuple["Callable[..., Any]", dict[str, Any]]

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30,
    0.0, 1.5, float("nan"), float("inf"), complex(1, 2), "", "x", "\ud800", "\x00", b"", b"\xff",
    [], [[]], [[], []], [[0]], [[-1]], [[2**31]], [[2**63]], [[0.5]], [[None]], [["x"]], [[[0]]],
    [[0], [0, [1]]], (), ([0], [0]), ([0, 1], [0, 5]), ([0, 1], [0, -1, 2]), ([0], [1, 0]),
    (np.zeros(3, np.int64), np.array([0, 2**40])), (np.zeros(3, np.int64), np.array([3, 0])),
    np.zeros(0, np.int64), np.zeros((0, 5), np.int64), np.zeros((5, 0), np.int64),
    np.zeros((2, 3, 4), np.int64), np.full((2, 3), -1), np.full((2, 3), 2**62),
    np.full((2, 3), 2**63, np.uint64), np.array([[np.nan]]), np.array([["a"]]), np.array(3),
    np.array([[1, 2]], dtype=">i8"), np.zeros((2, 6), np.int64)[:, ::2], np.array([[True]]),
    np.array([[0]], dtype=object), np.array(["2020-01-01"], dtype="M8[D]"),
    torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), torch.tensor(0), torch.zeros(0),
    torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.int64, device="meta"),
    torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0), (3,)),
    {}, {0: 1}, {"a": b""}, {-1: 2**40}, {2**40: "x"}, {"x": {"y": []}}, {1, 2}, range(3),
    iter([[0]]), (x for x in [[0]]), object(), len, type, Exception("x"),
)  # fmt: skip


def small_aligner() -> Aligner:
    teacher = Vocabulary.from_token_bytes([b"12", b"+", b""], special={2: "<e>"}, stop_ids=[2])
    student = Vocabulary.from_token_bytes(
        [b"1", b"2", b"+", b""], special={3: "</s>"}, stop_ids=[3]
    )
    return Aligner(teacher, student)


def calls(folder: Path) -> dict[str, Call]:
    """Public calls that work, with all of their arguments by name."""
    aligner = small_aligner()
    demo = Aligner(*demo_tokenizers())
    teacher, student = [[1, 0, 1, 2]], [[2, 0, 1, 2, 3]]
    batch = aligner.align_batch(teacher, student)
    index = batch.index(max_path=8, text_events=True, first_ids=True)
    logits = {"teacher_logits": torch.zeros(4, 3), "student_logits": torch.zeros(5, 4)}
    hidden = {
        "teacher_hidden": torch.zeros(4, 2),
        "teacher_weight": torch.zeros(3, 2),
        "student_hidden": torch.zeros(5, 2),
        "student_weight": torch.zeros(4, 2),
    }
    path = str(folder / "pair")
    aligner.save(path)
    prompts = {"teacher_prompt_ids": [[5]], "student_prompt_ids": [[6]]}
    ids = {"teacher_ids": teacher, "student_ids": student}
    masks = {"teacher_mask": [[1] * 4], "student_mask": [[1] * 5]}
    served = {"answers": [], "teacher_ids": [], "attention_mask": None, "top_k": None}
    columns = {"teacher_ids": teacher, "student_ids": student}
    return {
        "align_batch": (
            aligner.align_batch,
            {**ids, **masks, "on_mismatch": "skip", "resync_bytes": 8, "threads": 1},
        ),
        "align_texts": (demo.align_texts, {"texts": ["a"], "threads": 1}),
        "retokenize": (
            demo.retokenize,
            {
                "student_ids": [[5, 6]],
                "student_mask": [[1, 1]],
                "padding_side": "left",
                "pad_id": 0,
            },
        ),
        "prepare": (demo.prepare, {"completion_ids": [[5, 6]], **prompts}),
        "spelling": (aligner.spelling, {"token_id": 0, "side": "teacher"}),
        "continuations_after": (aligner.continuations_after, {"path": [0], "side": "student"}),
        "continuations": (aligner.continuations, {"batch": batch, "max_path": 8, "threads": 1}),
        "save": (aligner.save, {"path": path}),
        "load": (
            Aligner.load,
            {"path": path, "teacher_tokenizer": None, "student_tokenizer": None},
        ),
        "Aligner": (
            Aligner,
            {
                "teacher": aligner.teacher,
                "student": aligner.student,
                "special_tokens": {},
                "stop_tokens": ([2], [3]),
            },
        ),
        "index": (
            batch.index,
            {
                "teacher_row_starts": [0],
                "student_row_starts": [0],
                "max_path": 8,
                "first_ids": True,
                "text_events": True,
                "threads": 1,
            },
        ),
        "index, strides": (batch.index, {"teacher_stride": 4, "student_stride": 5}),
        "units": (batch.units, {"row": 0, "max_path": 8}),
        "coarsen": (batch.coarsen, {"n": 2, "seed": 1}),
        "without": (batch.without, {"kind": "multi"}),
        "sample_units": (batch.sample_units, {"fraction": 0.5, "seed": 1}),
        "with_aligner": (batch.with_aligner, {"aligner": aligner}),
        "student_logprobs": (batch.student_logprobs, {"teacher_logprobs": [np.zeros(4)]}),
        "teacher_logprobs": (batch.teacher_logprobs, {"student_logprobs": [np.zeros(5)]}),
        "check_logits": (index.check_logits, {"side": "student", "argument": "x", "shape": (5, 4)}),
        "normalizer": (index.normalizer, {"reduction": "unit", "candidates": "realized"}),
        "on_host": (index.on_host, {"name": "unit"}),
        "token_bytes": (aligner.teacher.token_bytes, {"token_id": 0}),
        "decode_bytes": (aligner.teacher.decode_bytes, {"ids": [0]}),
        "encode_batch": (demo.teacher.encode_batch, {"texts": ["a"]}),
        "verify": (demo.teacher.verify, {"texts": ["a"]}),
        "with_tokenizer": (aligner.teacher.with_tokenizer, {"source": demo_tokenizers()[0]}),
        "from_token_bytes": (
            Vocabulary.from_token_bytes,
            {
                "token_bytes": [b"a", b"b", b"c", b""],
                "special": {3: "<e>"},
                "byte_fallback": [1],
                "unused": [],
                "dummy_prefix": False,
                "stop_ids": [3],
            },
        ),
        "from_tokenizer": (
            Vocabulary.from_tokenizer,
            {"source": demo_tokenizers()[0], "vocab_size": 5000, "special": []},
        ),
        "SimCTLoss": (
            SimCTLoss(aligner, candidates="on_path"),
            {**logits, "index": index, "normalizer": 3},
        ),
        "TextLoss": (TextLoss(aligner), {**logits, "index": index, "normalizer": 3}),
        "LinearSimCTLoss": (LinearSimCTLoss(aligner), {**hidden, "index": index}),
        "SimCTLoss()": (
            SimCTLoss,
            {
                "aligner": aligner,
                "candidates": "realized",
                "score": "mean",
                "divergence": "jsd",
                "temperature": 1.0,
                "reduction": "unit",
                "min_teacher_mass": 0.1,
                "chunk_bytes": 1000,
                "backend": "torch",
                "metrics": "full",
            },
        ),
        "TextLoss()": (
            TextLoss,
            {"aligner": aligner, "epsilon": 0.1, "floor": 1e-6, "straddled": "tree"},
        ),
        "from_vllm": (from_vllm, served),
        "from_openai": (from_openai, served),
        "from_sglang": (from_sglang, {**served, "start": 0}),
        "AlignRows": (AlignRows(aligner), {"batch": columns}),
        "RetokenizeRows": (RetokenizeRows(demo), {"batch": {"student_ids": [[5, 6]]}}),
        "TokenizeRows": (TokenizeRows(demo), {"batch": {"text": ["a"]}}),
    }
