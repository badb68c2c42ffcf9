"""Internal: what a user should know of a pair and data, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simct_align.report.numbers import share_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_FEW_TOKENS = 1_000
_MUCH_MULTI = 0.05
_MUCH_STRADDLED = 0.02
_MANY_UNMATCHED = 0.001

#: What to do about unmatched tokens, by reason.
_UNMATCHED = {
    "bytes_differ": "A tokenizer changes such texts (Unicode normalization, case, characters "
    "that it does not know). Look at the texts below; normalize the data before both models "
    "read it, or leave such texts out.",
    "one_side_ended": "One side's tokens end earlier. Look for texts that a tokenizer cuts off.",
    "special": "Control tokens without a partner: map them with special_tokens={teacher's: "
    "student's}, or leave them out of the masks.",
    "no_resync": "The texts differ to their ends. Look at the texts below: the two tokenizers "
    "did not read the same text.",
    "dummy_prefix": "One tokenizer puts a space before a text. It happens at the start of a "
    "text only, and nothing is lost: keep the prompt in front of the completion, as in training.",
}


def advise(facts: dict[str, Any], warned: Sequence[str]) -> list[dict[str, str]]:
    """Return the warnings of a report, the most important first.

    Args:
        facts: The figures.
        warned: Warnings that came with the tokenizers.

    Returns:
        Each with `level` ("warning" or "note"), `title`, `text` and `do`.
    """
    found = [item for check in _CHECKS for item in check(facts)]
    found += [
        _item(
            "warning",
            "A warning of the tokenizers' readers",
            message,
            "The message says what to do.",
        )
        for message in warned
    ]
    return sorted(found, key=lambda item: item["level"] != "warning")


def _item(level: str, title: str, text: str, do: str) -> dict[str, str]:
    return {"level": level, "title": title, "text": text, "do": do}


def _stops(facts: dict[str, Any]) -> Iterator[dict[str, str]]:
    if not facts["student"]["ends_of_turn"]:
        without = [side for side in ("teacher", "student") if not facts[side]["stops"]]
        of = f" of the {' and the '.join(without)}" if without else ""
        yield _item(
            "warning",
            f"No token that ends a turn is known{of}",
            "Ends of turn are not compared, so a student does not learn from the teacher "
            "when to stop.",
            "Name them: Aligner(..., stop_tokens=([teacher's], [student's])).",
        )


def _amount(facts: dict[str, Any]) -> Iterator[dict[str, str]]:
    tokens = facts["student"]["tokens"]
    if tokens < _FEW_TOKENS:
        yield _item(
            "warning",
            f"Little data: {tokens:,} student tokens",
            "Shares of so few tokens say little about other texts.",
            "Give some hundred texts of the kind that you train on.",
        )


def _same(facts: dict[str, Any]) -> Iterator[dict[str, str]]:
    if facts["teacher"]["digest"] == facts["student"]["digest"]:
        yield _item(
            "note",
            "Both sides have the same vocabulary",
            "All tokens are shared.",
            "No alignment is needed: use the plain divergence of each token.",
        )


def _unmatched(facts: dict[str, Any]) -> Iterator[dict[str, str]]:
    coverage = facts["coverage"]
    tokens = coverage["teacher_tokens"] + coverage["student_tokens"]
    for reason, do in _UNMATCHED.items():
        teacher, student = (
            coverage[f"{side}_unmatched"][reason] for side in ("teacher", "student")
        )
        if not teacher + student:
            continue
        important = reason != "dummy_prefix" and teacher + student >= _MANY_UNMATCHED * tokens
        yield _item(
            "warning" if important else "note",
            f"Unmatched tokens: {reason}",
            f"{teacher:,} teacher and {student:,} student tokens are in no unit. No objective "
            "compares them.",
            do,
        )


def _multi(facts: dict[str, Any]) -> Iterator[dict[str, str]]:
    tokens = facts["coverage"]["student_tokens"]
    lost = facts["methods"]["multi"]["student_tokens"]
    if tokens and lost >= _MUCH_MULTI * tokens:
        worst = max(facts["classes"], key=lambda row: row["student_tokens"]["multi"])
        yield _item(
            "warning",
            f"{share_text(lost / tokens)} of the student's tokens are in no shared unit",
            "A method that compares shared tokens alone has no signal there. The class with most "
            f"of them is “{worst['name']}”.",
            'Use text events (TextLoss, objective="text"), or SimCT with candidates="realized".',
        )


def _straddled(facts: dict[str, Any]) -> Iterator[dict[str, str]]:
    found = facts["straddling"]
    units = found["shared_units"]
    if units and found["straddled_units"] >= _MUCH_STRADDLED * units:
        first = found["tokens"][0]
        yield _item(
            "warning",
            f"{share_text(found['straddled_units'] / units)} of the shared units are straddled",
            "There both models have the same token, and it stands for different texts: for one "
            "of them the token excludes a longer token that the other lacks. Objectives over "
            "tokens report a difference even where the models agree. The most telling such token "
            f"is “{first['text']}”.",
            'Use text events (TextLoss, objective="text"), which compare what the texts say.',
        )


def _specials(facts: dict[str, Any]) -> Iterator[dict[str, str]]:
    if (
        not facts["shared"]["mapped_specials"]
        and facts["teacher"]["digest"] != facts["student"]["digest"]
    ):
        yield _item(
            "note",
            "No control tokens are mapped onto each other",
            "Stops are compared; other control tokens, such as those around tool calls, are not.",
            "If completions contain such tokens, map them: Aligner(..., special_tokens={teacher's: "
            "student's}).",
        )


_CHECKS: tuple[Callable[[dict[str, Any]], Iterator[dict[str, str]]], ...] = (
    _stops,
    _multi,
    _straddled,
    _unmatched,
    _amount,
    _same,
    _specials,
)
