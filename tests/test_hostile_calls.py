"""Whatever a public call gets, it works or raises an error of Python: nothing panics or hangs."""

from __future__ import annotations

import warnings
from types import NoneType
from typing import TYPE_CHECKING, Any

import pytest

from support.hostile_values import VALUES, calls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = [
    "align_batch", "align_texts", "retokenize", "prepare", "spelling", "continuations_after",
    "continuations", "save", "load", "Aligner", "index", "index, strides", "units", "coarsen",
    "without", "sample_units", "with_aligner", "student_logprobs", "teacher_logprobs",
    "check_logits", "normalizer", "on_host", "token_bytes", "decode_bytes", "encode_batch",
    "verify", "with_tokenizer", "from_token_bytes", "from_tokenizer", "SimCTLoss", "TextLoss",
    "LinearSimCTLoss", "SimCTLoss()", "TextLoss()", "from_vllm", "from_openai", "from_sglang",
    "AlignRows", "RetokenizeRows", "TokenizeRows",
]  # fmt: skip
#: What Python and PyTorch (a RuntimeError) raise for what is no argument of the kind.
EXPECTED = (TypeError, ValueError, LookupError, OSError, AttributeError, ArithmeticError)
EXPECTED += (RuntimeError,)


def raised_by(call: Callable[..., Any], arguments: dict[str, Any]) -> BaseException | None:
    """What a call raises, a panic of Rust included, which is no `Exception`."""
    try:
        call(**arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    return None


def test_every_call_is_tried(tmp_path: Path) -> None:
    assert list(calls(tmp_path)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_hostile_arguments(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a path of these values is a file of this name
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    call, plain = calls(tmp_path)[name]
    failed = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(**plain)
        for argument in plain:
            for value in VALUES:
                error = raised_by(call, plain | {argument: value})
                if not isinstance(error, (NoneType, *EXPECTED)):
                    failed.append(f"{argument}={value!r:.60}: {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)
