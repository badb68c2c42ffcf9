"""Two small tokenizers and a passage of texts, bundled for a first try without any file.

The script `tools/make_demo_tokenizers.py` made the tokenizers from text that it generates.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo_passage", "demo_tokenizers"]

_PASSAGE = (
    "Tom sells 48 cookies for $2.75 each and gives 12 away. How much money does he make?",
    "Step 1: 48 − 12 = 36 cookies are sold.\nStep 2: 36 × 2.75 = 99.\n#### 99",
    "∑_{k=1}^{n} k² = n(n+1)(2n+1)/6 ≤ n³ for all n ∈ ℕ; at n = 2024 that is 2,765,871,900.",
    "def area(radius: float) -> float:\n    return 3.14159 * radius**2  # in cm²\n",
    "小明今天买了365个苹果，还剩多少？ 先生は駅で128枚の切符を買いました。",
    "Наша соседка считает 1917 книг. Η δασκάλα βρίσκει 300 εισιτήρια, naïve café.",
    "الطالب اشترى 25 كتابا. मेरे मित्र ने 108 किताबें गिने।",
    "Well done! 🎉🙂 See you at 07:45 🚲👩‍🔬 …",
)


def demo_tokenizers() -> tuple[Path, Path]:
    """Return the directories of the two bundled tokenizers, teacher and student.

    Use them for a first try, in examples and in tests. They are read like any other pair. The
    teacher is a byte-level BPE that splits numbers into single digits (EOS `<|end|>`). The student
    is a SentencePiece-style BPE with byte fallback; it puts a space before a text and has tokens
    of up to three digits (EOS `</s>`). Both have 4,096 tokens.

    Returns:
        `(teacher, student)`, each a directory with `tokenizer.json.gz` and
        `tokenizer_config.json`.

    Complexity:
        O(1); no file is read.

    Example:
        >>> from simct_align.demo import demo_tokenizers
        >>> [path.name for path in demo_tokenizers()]
        ['byte_level', 'byte_fallback']
    """
    here = Path(__file__).resolve().parent
    return here / "byte_level", here / "byte_fallback"


def demo_passage() -> tuple[str, ...]:
    """Return short texts that the bundled tokenizers cut differently.

    They contain mathematics, code, several writing systems and emoji. Use them to see what units
    look like, or as a small but hard input of a test.

    Returns:
        The texts; none is empty.

    Complexity:
        O(1).

    Example:
        >>> from simct_align.demo import demo_passage
        >>> any("def area" in text for text in demo_passage())
        True
    """
    return _PASSAGE
