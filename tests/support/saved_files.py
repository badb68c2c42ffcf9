"""A small pair that uses every table of a saved aligner, and mutations of its file."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from simct_align import Aligner, Vocabulary

if TYPE_CHECKING:
    import random

#: Magic and version.
HEADER_BYTES = 12
#: Integers at which something changes.
EDGES = (0, 1, 2, 3, 5, 12, 13, 14, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1)


def saved_pair() -> Aligner:
    """Specials, stops, a duplicate, unused ids, a dummy prefix; spellings and a text tree."""
    teacher = [b"ab", b"a", b"b", b"abc", b" x", b"c", b"", b"", b"12", b"123", b"x", b" ", b"a"]
    student = [b"a", b"bc", b"b", b"c", b" ", b"x", b"1", b"2", b"3", b"", b"23", b"cab", b""]
    aligner = Aligner(
        Vocabulary.from_token_bytes(
            teacher,
            special={6: "<e>", 7: "<s>"},
            stop_ids=[6],
            byte_fallback=[12],
            dummy_prefix=True,
        ),
        Vocabulary.from_token_bytes(student, special={9: "</s>"}, unused=[12], stop_ids=[9]),
    )
    _ = aligner.spellings
    assert len(aligner.text_tree) > 1
    return aligner


def signed(body: bytes) -> bytes:
    """A file with the right checksum."""
    return body + hashlib.sha256(body).digest()


def sections(body: bytes) -> list[slice]:
    """Where the sections of a file lie, without their lengths."""
    found, at = [], HEADER_BYTES
    while at < len(body):
        start = at + 8
        at = start + int.from_bytes(body[at:start], "little")
        found.append(slice(start, at))
    return found


def mutated(rng: random.Random, body: bytes) -> bytes:
    """A file in which bits, bytes and integers of a few sections are others."""
    data = bytearray(body)
    known = [section for section in sections(body) if section.stop > section.start]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        section = rng.choice(known)
        place = rng.randrange(section.start, section.stop)
        word = section.start + (place - section.start) // 4 * 4
        kind = rng.random()
        if kind < 0.15:
            data[place] ^= 1 << rng.randrange(8)
        elif kind < 0.3:
            data[place] = rng.randrange(256)
        elif word + 4 <= section.stop:
            old = int.from_bytes(data[word : word + 4], "little")
            new = rng.choice([*EDGES, old + 1, old - 1, rng.randrange(20)]) & 0xFFFFFFFF
            data[word : word + 4] = new.to_bytes(4, "little")
    return bytes(data)
