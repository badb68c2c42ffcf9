"""Small word problems with worked answers, for runs that need prompts without a data set.

    python examples/word_problems.py 3

prints three rows as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import random
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMES = (
    "Ada", "Bruno", "Chidi", "Dana", "Emil", "Farah", "Goran", "Hana", "Ines", "Jonas",
    "Kemal", "Lena", "Mateo", "Nadia", "Oskar", "Priya", "Quinn", "Rosa", "Sven", "Tara",
)  # fmt: skip
_THINGS = (
    "apples", "stamps", "marbles", "pencils", "postcards", "shells", "buttons", "tickets",
    "seedlings", "muffins", "bricks", "candles", "records", "chairs", "lemons", "notebooks",
)  # fmt: skip
_PLACES = ("the market", "a school fair", "the station", "a farm", "the workshop", "a museum")


class Problem(NamedTuple):
    question: str
    answer: str


def _sharing(draw: random.Random) -> Problem:
    name, thing, place = draw.choice(_NAMES), draw.choice(_THINGS), draw.choice(_PLACES)
    friends, each, left = draw.randint(3, 12), draw.randint(4, 25), draw.randint(1, 30)
    total = friends * each + left
    return Problem(
        f"{name} brings {total} {thing} to {place} and gives {each} of them to each of {friends} "
        f"friends. How many {thing} does {name} have left?",
        f"{name} gives away {friends} x {each} = {friends * each} {thing}.\n"
        f"{name} has {total} - {friends * each} = {left} {thing} left.",
    )


def _shopping(draw: random.Random) -> Problem:
    name, thing, other = draw.choice(_NAMES), *draw.sample(_THINGS, 2)
    price, count = draw.randint(2, 15), draw.randint(3, 20)
    other_price, other_count = draw.randint(2, 15), draw.randint(2, 9)
    first, second = price * count, other_price * other_count
    return Problem(
        f"{name} buys {count} {thing} for ${price} each and {other_count} {other} for "
        f"${other_price} each. How much does {name} spend in total?",
        f"The {thing} cost {count} x ${price} = ${first}.\n"
        f"The {other} cost {other_count} x ${other_price} = ${second}.\n"
        f"In total, {name} spends ${first} + ${second} = ${first + second}.",
    )


def _travelling(draw: random.Random) -> Problem:
    name, place = draw.choice(_NAMES), draw.choice(_PLACES)
    speed, hours = 5 * draw.randint(3, 16), draw.randint(2, 7)
    slower, more = 5 * draw.randint(2, 10), draw.randint(1, 4)
    first, second = speed * hours, slower * more
    return Problem(
        f"On the way to {place}, {name} drives {hours} hours at {speed} miles per hour and then "
        f"{more} hours at {slower} miles per hour. How far does {name} drive?",
        f"First {name} drives {hours} x {speed} = {first} miles.\n"
        f"Then {name} drives {more} x {slower} = {second} miles.\n"
        f"Altogether that is {first} + {second} = {first + second} miles.",
    )


def _saving(draw: random.Random) -> Problem:
    name, thing = draw.choice(_NAMES), draw.choice(_THINGS)
    weeks, weekly, spent = draw.randint(4, 20), draw.randint(5, 40), draw.randint(10, 60)
    saved = weeks * weekly
    spent = min(spent, saved - 1)
    return Problem(
        f"{name} saves ${weekly} every week. After {weeks} weeks, {name} spends ${spent} on "
        f"{thing}. How much money is left?",
        f"In {weeks} weeks, {name} saves {weeks} x ${weekly} = ${saved}.\n"
        f"After buying the {thing}, ${saved} - ${spent} = ${saved - spent} is left.",
    )


def _comparing(draw: random.Random) -> Problem:
    name, other = draw.sample(_NAMES, 2)
    thing, times, own = draw.choice(_THINGS), draw.randint(2, 6), draw.randint(6, 45)
    return Problem(
        f"{name} has {own} {thing}. {other} has {times} times as many. How many {thing} do they "
        "have together?",
        f"{other} has {times} x {own} = {times * own} {thing}.\n"
        f"Together they have {own} + {times * own} = {own + times * own} {thing}.",
    )


_KINDS: tuple[Callable[[random.Random], Problem], ...] = (
    _sharing,
    _shopping,
    _travelling,
    _saving,
    _comparing,
)


def word_problems(count: int, seed: int) -> list[dict[str, Any]]:
    """Draw rows with `prompt` and `completion` as messages.

    Args:
        count: The number of rows; all rows are different.
        seed: The seed of the random choices.

    Returns:
        The rows.
    """
    draw = random.Random(seed)
    found: dict[Problem, None] = {}
    while len(found) < count:
        found[draw.choice(_KINDS)(draw)] = None
    return [conversation(problem.question, problem.answer) for problem in found]


def conversation(question: str, answer: str) -> dict[str, Any]:
    """Return one row."""
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for row in word_problems(options.count, options.seed):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
