"""The public modules with their exact names, and the mark of all other modules."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import simct_align

PACKAGE = Path(simct_align.__file__).parent

#: Every public module with its exact public names.
PUBLIC = {
    "simct_align": (
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
    ),
    "simct_align.chat": ("ChatTokenizer", "Message", "prompt_ids"),
    "simct_align.demo": ("demo_passage", "demo_tokenizers"),
    "simct_align.divergence": (
        "JSD",
        "LOG_FLOOR",
        "Divergence",
        "ForwardKL",
        "ReverseKL",
        "SkewedForwardKL",
        "SkewedReverseKL",
        "TermwiseDivergence",
        "TotalVariation",
        "as_divergence",
    ),
    "simct_align.integrations.kdflow": ("SimCTAlgorithm",),
    "simct_align.integrations.ms_swift": ("SimCTGKDTrainer",),
    "simct_align.integrations.nemo_rl": (
        "TokenAligner",
        "alignment_fields",
        "batch_fields",
        "write_projection",
    ),
    "simct_align.integrations.prime_rl": ("with_other_tokenizer",),
    "simct_align.integrations.slime": ("SlimeTeacher",),
    "simct_align.integrations.trl": ("SimCTConfig", "SimCTTrainer"),
    "simct_align.integrations.verl": (
        "SimCTAgentLoopManager",
        "SimCTAgentLoopWorker",
        "unit_loss",
    ),
    "simct_align.loss": (
        "Backend",
        "LinearSimCTLoss",
        "LinearTextLoss",
        "Loss",
        "LossMetrics",
        "LossOutput",
        "MultiTeacherLoss",
        "MultiTeacherOutput",
        "SimCTLoss",
        "TextLoss",
        "TextLossOutput",
        "TextMetrics",
        "TorchBackend",
        "VocabularyShard",
        "register_backend",
    ),
    "simct_align.loss.backends": (
        "AutoBackend",
        "Backend",
        "Computation",
        "Head",
        "Lists",
        "Logits",
        "NativeBackend",
        "Problem",
        "Scores",
        "Settings",
        "Side",
        "SideProblem",
        "StudentSide",
        "TextBackend",
        "TextProblem",
        "TextRun",
        "TextSettings",
        "TextSide",
        "TorchBackend",
        "TritonBackend",
        "UnitRun",
        "backend_names",
        "choose_backend",
        "register_backend",
    ),
    "simct_align.loss.baselines": (
        "ALMLoss",
        "BPMLoss",
        "Baseline",
        "ESCDLoss",
        "GOLDLoss",
        "StrictLoss",
        "ULDLoss",
        "UnitRows",
    ),
    "simct_align.pipelines": ("AlignRows", "RetokenizeRows", "TokenizeRows"),
    "simct_align.report": ("Report",),
    "simct_align.served": (
        "ServedLogprobs",
        "TopKLogprobs",
        "from_openai",
        "from_sglang",
        "from_vllm",
    ),
}
#: The optional dependency that a public module imports.
NEEDS = {
    "simct_align.divergence": "torch",
    "simct_align.integrations.kdflow": "torch",
    "simct_align.integrations.ms_swift": "swift",
    "simct_align.integrations.prime_rl": "torch",
    "simct_align.integrations.slime": "torch",
    "simct_align.integrations.trl": "trl",
    "simct_align.integrations.verl": "verl",
    "simct_align.loss": "torch",
    "simct_align.loss.backends": "torch",
    "simct_align.loss.baselines": "torch",
}
#: Names that a public module takes from a module with an optional dependency, by that dependency.
NAMES_THAT_NEED = {
    "simct_align": dict.fromkeys(
        ("LinearSimCTLoss", "LinearTextLoss", "SimCTLoss", "TextLoss"), "torch"
    )
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


#: The files are parsed, not imported: an import may need an optional dependency.
MODULES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def declared_names(module: str) -> list[str] | None:
    """Return the value of `__all__` in the source of a module; None without one."""
    for node in MODULES[module].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def first_line(module: str) -> str:
    return (ast.get_docstring(MODULES[module]) or "").partition("\n")[0]


def is_private(module: str) -> bool:
    return any(part.startswith("_") for part in module.split("."))


def test_the_walk_finds_the_package() -> None:
    assert set(PUBLIC) <= set(MODULES)
    assert len(MODULES) > 50


@pytest.mark.parametrize("module", PUBLIC)
def test_public_modules_declare_these_names(module: str) -> None:
    assert declared_names(module) == list(PUBLIC[module])
    assert not first_line(module).startswith("Internal:")


@pytest.mark.parametrize("module", PUBLIC)
def test_declared_names_exist(module: str) -> None:
    if module in NEEDS:
        pytest.importorskip(NEEDS[module])
    imported = importlib.import_module(module)
    for name in PUBLIC[module]:
        if name in NAMES_THAT_NEED.get(module, ()):
            pytest.importorskip(NAMES_THAT_NEED[module][name])
        value = getattr(imported, name)
        assert not isinstance(value, type(importlib)), f"{module}.{name} is a module"


@pytest.mark.parametrize("module", sorted(set(MODULES) - set(PUBLIC)))
def test_all_other_modules_are_marked(module: str) -> None:
    assert is_private(module) or first_line(module).startswith("Internal:"), (
        f"{module}: expected a public module in the table, a name with a leading underscore, or a "
        f"docstring that begins with 'Internal:', got {first_line(module)!r}"
    )
