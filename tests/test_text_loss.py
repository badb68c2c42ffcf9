"""`TextLoss` against its twin from the definition, and its properties."""

from __future__ import annotations

import pytest

from support.text_cases import DIVERGENCES, compare, random_case

#: The kinds of pairs and logits: peaky logits close few nodes, flat ones leave offsets out.
SHAPES = {
    "two letters": {"scale": 6.0},
    "three letters": {"alphabet": b"abc", "scale": 4.0},
    "peaky": {"scale": 12.0},
    "flat": {"alphabet": b"abc", "scale": 1.0},
    "one vocabulary": {"scale": 3.0, "same": True},
}


@pytest.mark.parametrize("straddled", ["byte", "tree"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_its_twin(shape, straddled):
    counts = None
    for seed in range(12):
        found = compare(
            random_case(seed, **SHAPES[shape]),
            straddled=straddled,
            epsilon=(0.02, 0.3, 0.1, 0.0)[seed % 4],
            chunk_bytes=1 if seed % 2 else None,
            temperature=(1.0, 1.7, 0.5)[seed % 3],
            floor=(1e-6, 0.0)[seed // 2 % 2],
        )
        counts = found if counts is None else counts + found
    kinds = {"tree", "one row", "left out"} if shape != "one vocabulary" else {"tree"}
    kinds |= {"next byte"} if straddled == "byte" and shape != "one vocabulary" else set()
    assert kinds <= set(counts)


@pytest.mark.parametrize("floor", [0.0, 1e-6])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equals_its_twin_under_every_divergence(divergence, floor):
    for seed in range(20, 24):
        for scale in (2.0, 6.0):
            c = random_case(seed, alphabet=b"abc", scale=scale)
            compare(c, divergence=divergence, floor=floor, epsilon=0.1)


def test_sides_without_stops():
    for seed in range(6):
        for stops in ((0, 0), (1, 0), (0, 1)):
            compare(random_case(seed, stops=stops, scale=4.0), epsilon=0.1)
