"""Where alignment goes on after a difference: what is kept, and what is paired wrongly.

    python benches/resync.py [--texts DIR] [--csv CSV] [--quick]

The two sides read texts that differ in a known way, so the true partner of every byte is known:

* `NFC`: the teacher's text is composed (NFC), the student's decomposed (NFD);
* `lower`: the teacher's text is in lower case;
* `edits`: one word in ten is replaced, left out or doubled on the teacher's side.

`kept` is the share of the student's tokens in true units, of those that an alignment with the truth
in hand has. `wrong` is the share of the student's tokens that are in a unit with another text's
bytes: the same letters from another place. The texts are the messages of Django's translations, in
up to 100 languages (`--texts` is the folder of an unpacked or installed `django`), and the hard
texts of the tests.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from _common import ROOT, append_csv, print_table
from align import TOKENIZERS, load_texts
from simct_align import Aligner, Vocabulary
from simct_align.demo import demo_tokenizers
from simct_align.retokenize import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

#: Pieces of a text on the teacher's and on the student's side; pieces of a pair belong together.
Pieces = list[tuple[str, str]]
#: Values of `resync_bytes`.
RULES = (1, 2, 3, 4, 6, 8, 12, 16)
BYTES_OF_A_ROW = 1000
ROWS_OF_A_LANGUAGE = 4


def composed(text: str, _: random.Random) -> Pieces:
    """Every character with its marks is a piece."""
    pieces: list[str] = []
    for char in unicodedata.normalize("NFD", text):
        last = pieces[-1] if pieces else ""
        joins = bool(last) and unicodedata.normalize("NFC", last + char) != unicodedata.normalize(
            "NFC", last
        ) + unicodedata.normalize("NFC", char)
        if unicodedata.combining(char) or joins:
            pieces[-1:] = [last + char]
        else:
            pieces.append(char)
    return [(unicodedata.normalize("NFC", piece), piece) for piece in pieces]


def lowered(text: str, _: random.Random) -> Pieces:
    """Every character is a piece."""
    return [(char.lower(), char) for char in text]


def edited(text: str, rng: random.Random) -> Pieces:
    """Every word is a piece, and the space between two words."""
    words = re.findall(r"\s+|\S+", text)
    real = [word for word in words if not word.isspace()]
    made = []
    for word in words:
        mine = word
        if not word.isspace() and rng.random() < 0.1:
            mine = rng.choice([rng.choice(real), "", f"{word} {word}"])
        made.append((mine, word))
    return made


KINDS: dict[str, Callable[[str, random.Random], Pieces]] = {
    "NFC": composed,
    "lower": lowered,
    "edits": edited,
}


@dataclass
class Truth:
    """For every byte offset of the teacher's text the partner in the student's, or −1."""

    partner: NDArray[np.int64]
    teacher: bytes
    student: bytes

    @classmethod
    def of(cls, pieces: Pieces) -> Truth:
        teacher, student = (b"".join(piece[side].encode() for piece in pieces) for side in range(2))
        partner = np.full(len(teacher) + 1, -1)
        here = there = 0
        for mine, other in pieces:
            sizes = len(mine.encode()), len(other.encode())
            if mine == other:
                partner[here : here + sizes[0]] = np.arange(there, there + sizes[1])
            elif partner[here] < 0:
                partner[here] = there
            here, there = here + sizes[0], there + sizes[1]
        partner[here] = there
        return cls(partner, teacher, student)


def ends(vocabulary: Vocabulary, ids: list[int]) -> NDArray[np.int64]:
    """Return the byte offsets between the tokens, both ends included."""
    return np.concatenate([[0], np.cumsum([len(vocabulary.token_bytes(token)) for token in ids])])


def possible(truth: Truth, of_teacher: NDArray[np.int64], of_student: NDArray[np.int64]) -> int:
    """Count the student's tokens in units of an alignment that knows the truth."""
    place = {offset: number for number, offset in enumerate(of_student.tolist())}
    common = [
        (offset, int(truth.partner[offset]))
        for offset in of_teacher.tolist()
        if int(truth.partner[offset]) in place
    ]
    return sum(
        place[end[1]] - place[start[1]]
        for start, end in itertools.pairwise(common)
        if truth.teacher[start[0] : end[0]] == truth.student[start[1] : end[1]]
    )


def measure(
    aligner: Aligner, rows: list[Pieces], rules: tuple[int, ...]
) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield, for every rule, tokens that are possible, kept and wrong, and all tokens."""
    truths = [Truth.of(pieces) for pieces in rows]
    sides = (aligner.teacher, aligner.student)
    texts = [[truth.teacher.decode() for truth in truths], [t.student.decode() for t in truths]]
    # Tokens with exactly these bytes, whatever the tokenizer would normalize.
    ids = [
        TextEncoder(side).encode(text, threads=None).tolist()
        for side, text in zip(sides, texts, strict=True)
    ]
    offsets = [[ends(side, row) for row in of] for side, of in zip(sides, ids, strict=True)]
    best = sum(
        possible(truth, mine, other) for truth, mine, other in zip(truths, *offsets, strict=True)
    )
    for rule in rules:
        batch = aligner.align_batch(*ids, resync_bytes=rule)
        kept = wrong = 0
        for row, (truth, mine, other) in enumerate(zip(truths, *offsets, strict=True)):
            units = slice(batch.row_offsets[row], batch.row_offsets[row + 1])
            start, end = other[batch.student_start[units]], other[batch.student_end[units]]
            true = (truth.partner[mine[batch.teacher_start[units]]] == start) & (
                truth.partner[mine[batch.teacher_end[units]]] == end
            )
            tokens = batch.student_end[units] - batch.student_start[units]
            kept += int(tokens[true].sum())
            wrong += int(tokens[~true].sum())
        yield rule, best, kept, wrong, sum(map(len, ids[1]))


def messages(folder: Path) -> dict[str, list[str]]:
    """Return texts of about `BYTES_OF_A_ROW` bytes by language."""
    found = {}
    for path in sorted(folder.glob("conf/locale/*/LC_MESSAGES/django.po")):
        said = re.findall(
            r'^msgstr(?:\[\d\])? ((?:".*"\n)+)', path.read_text("utf-8"), re.MULTILINE
        )
        lines = ["".join(re.findall(r'"(.*)"', each)).replace("\\n", " ") for each in said]
        rows, row = [], ""
        for line in lines[1:]:
            row = f"{row} {line}".strip()
            if len(row.encode()) >= BYTES_OF_A_ROW:
                rows.append(row)
                row = ""
        if rows:
            found[path.parts[-3]] = rows[:ROWS_OF_A_LANGUAGE]
    return found


def pairs(quick: bool) -> dict[str, Aligner]:
    """Return the pairs of tokenizers."""
    if quick:
        return {"demo": Aligner(*demo_tokenizers())}
    names = [path.name for path in sorted(TOKENIZERS.iterdir()) if path.is_dir()]
    vocabularies = {name: Vocabulary.from_tokenizer(TOKENIZERS / name) for name in names}
    return {
        f"{teacher}, {student}": Aligner(vocabularies[teacher], vocabularies[student])
        for teacher, student in itertools.permutations(names, 2)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=Path, help="the folder of a django package")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    texts = {"hard texts": load_texts(ROOT / "tests" / "data" / "hard_texts.jsonl", 1000)}
    if asked.texts is not None:
        texts |= messages(asked.texts)
    aligners = pairs(asked.quick)
    rng = random.Random(0)
    found: list[dict[str, Any]] = []
    for kind, change in KINDS.items():
        rows = [change(text, rng) for of in texts.values() for text in of]
        sums = {rule: np.zeros(4, np.int64) for rule in RULES}
        for aligner in aligners.values():
            for rule, *counts in measure(aligner, rows, RULES):
                sums[rule] += counts
        for rule, (best, kept, wrong, tokens) in sums.items():
            for name, count, of in (("kept", kept, best), ("wrong", wrong, tokens)):
                case = f"{kind}, resync_bytes={rule}, {name}"
                found.append({"case": case, "n": of, "p50": count / of, "unit": "of tokens"})
    print_table(("case", "tokens", "share"), [[r["case"], r["n"], r["p50"]] for r in found])
    if not asked.quick:
        append_csv(asked.csv or ROOT / "benches" / "record" / "resync.csv", found)


if __name__ == "__main__":
    main()
