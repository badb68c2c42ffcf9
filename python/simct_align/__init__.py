"""Byte-exact alignment of two tokenizations, for on-policy distillation across tokenizers.

Start with `Aligner`: build it from two tokenizers, then align batches of token ids::

    aligner = Aligner("path/to/teacher", "path/to/student")
    batch = aligner.align_batch(teacher_ids, student_ids)

The losses `SimCTLoss`, `TextLoss` and their linear forms need PyTorch. They are imported on first
use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simct_align._native import AlignmentError, __version__
from simct_align.aligner import Aligner
from simct_align.batch import AlignedBatch, AlignmentCounts, UnmatchedSpans
from simct_align.collator import SimCTCollator
from simct_align.continuations import Continuation, Continuations, PairSpellings, Spellings
from simct_align.errors import (
    MissingAlignerError,
    MissingTokenizerError,
    SlowTokenizerError,
    UnsupportedTokenizerError,
)
from simct_align.index import AlignedIndex
from simct_align.inputs import RaggedIds
from simct_align.packing import packed_rows
from simct_align.pair import SharedVocabulary
from simct_align.prepare import PreparedBatch
from simct_align.retokenize import RetokenizedIds
from simct_align.token_kind import TokenKind
from simct_align.units import Unit, UnitClass, UnitKind, UnmatchedReason
from simct_align.vocabulary import Difference, VerifyReport, Vocabulary

if TYPE_CHECKING:
    from simct_align.loss import LinearSimCTLoss as LinearSimCTLoss
    from simct_align.loss import LinearTextLoss as LinearTextLoss
    from simct_align.loss import SimCTLoss as SimCTLoss
    from simct_align.loss import TextLoss as TextLoss

#: The names that need PyTorch, with the modules that define them.
_TORCH_NAMES = {
    "LinearSimCTLoss": "simct_align.loss",
    "LinearTextLoss": "simct_align.loss",
    "SimCTLoss": "simct_align.loss",
    "TextLoss": "simct_align.loss",
}

__all__ = [
    "AlignedBatch",
    "AlignedIndex",
    "Aligner",
    "AlignmentCounts",
    "AlignmentError",
    "Continuation",
    "Continuations",
    "Difference",
    "LinearSimCTLoss",
    "LinearTextLoss",
    "MissingAlignerError",
    "MissingTokenizerError",
    "PairSpellings",
    "PreparedBatch",
    "RaggedIds",
    "RetokenizedIds",
    "SharedVocabulary",
    "SimCTCollator",
    "SimCTLoss",
    "SlowTokenizerError",
    "Spellings",
    "TextLoss",
    "TokenKind",
    "Unit",
    "UnitClass",
    "UnitKind",
    "UnmatchedReason",
    "UnmatchedSpans",
    "UnsupportedTokenizerError",
    "VerifyReport",
    "Vocabulary",
    "__version__",
    "packed_rows",
]


def __getattr__(name: str) -> object:
    if name not in _TORCH_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    try:
        module = importlib.import_module(_TORCH_NAMES[name])
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        message = f"{name} needs PyTorch: pip install 'simct-align[torch]'"
        raise ModuleNotFoundError(message, name="torch") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
