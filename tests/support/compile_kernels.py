"""Compiles the Triton kernels for a GPU that need not be there, and prints what they take.

    python tests/support/compile_kernels.py 90

A line of JSON for every kernel: name, constants, registers of a thread, bytes of stack (spilled
registers), and the widest load and store.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from simct_align.loss.backends.triton import (
    kernels,
    offset_kernels,
    text_kernels,
    unit_kernels,
)
from simct_align.loss.backends.triton.computation import SLOT_UNITS
from simct_align.loss.backends.triton.heads import COLUMNS as HEAD_COLUMNS
from simct_align.loss.backends.triton.launch import ROW_T, UNITS, WARPS, E, T
from simct_align.loss.backends.triton.text_computation import (
    BLOCK_WARPS,
    BLOCKS,
    COLUMNS,
    DERIVED_ROWS,
    SPANS,
    WEIGHED_SOURCES,
)
from simct_align.loss.backends.triton.text_side import SOURCE_SPLITS, SOURCE_TILE
from simct_align.loss.text_blocks import BLOCK

UNITS_AND_COLUMNS = {"UNITS": UNITS, "T": T, "E": E, "ALIGNED": E, "COLUMNS": T * E}
ROWS = {"T": ROW_T, "E": E, "ALIGNED": E, "COLUMNS": ROW_T * E}
SLOTS = {"SPLITS": 4, "SLOTS": 8, "REALIZED": 6}
MASSES = {"MULTI": True, "MASS": True, "FILTERS": False}
CASES = [
    ("lay_out", UNITS_AND_COLUMNS),
    *(("sum_teacher", UNITS_AND_COLUMNS | {"MULTI": multi}) for multi in (True, False)),
    *(
        ("sum_student", UNITS_AND_COLUMNS | {"WITH_DIFFERENCES": differences, "MULTI": multi})
        for differences in (True, False)
        for multi in (True, False)
    ),
    *(
        (name, UNITS_AND_COLUMNS | {"MULTI": True, "DIVERGENCE": divergence, "WITH_NORM": True})
        for name in ("sum_terms", "write_gradient")
        for divergence in range(6)
    ),
    ("write_gradient", UNITS_AND_COLUMNS | {"DIVERGENCE": 0, "WITH_NORM": False}),
    ("norm_rows", ROWS),
    *(("write_path_rows", ROWS | {"WITH_NORM": with_norm}) for with_norm in (True, False)),
    *(
        (name, {"COLUMNS": HEAD_COLUMNS, "CAPS": caps, "WITH_BIAS": True})
        for name in ("finish_products", "differentiate_products")
        for caps in (True, False)
    ),
    ("clear_rows", ROWS),
    ("scale", {"COLUMNS": 8 * ROW_T * E}),
]
UNIT_CASES = [
    ("place_slots", {"UNITS": SLOT_UNITS}),
    *(
        (
            "finish_side",
            SLOTS | MASSES | {"SCORE": score, "SIDE": side, "WITH_DIFFERENCES": side == 1},
        )
        for score in range(4)
        for side in (0, 1)
    ),
    (
        "finish_side",
        SLOTS
        | {"MULTI": False, "MASS": True, "FILTERS": True}
        | {"SCORE": 0, "SIDE": 0, "WITH_DIFFERENCES": False},
    ),
    *(
        (
            "compare_units",
            SLOTS
            | {"SCORE": score, "DIVERGENCE": divergence, "GRADIENT": gradient, "MULTI": multi}
            | {"WITH_DIFFERENCES": divergence == 0},
        )
        for score, divergence, gradient, multi in (
            (0, 0, True, True), (1, 0, True, True), (2, 5, True, True), (3, 3, True, True),
            (0, 0, True, False), (0, 0, False, False),
        )
    ),
    ("write_slots", {"UNITS": SLOT_UNITS, "SLOTS": 8}),
]  # fmt: skip
TEXT = {"UNITS": UNITS, "BLOCK": BLOCK, "SPANS": SPANS, "BLOCKS": BLOCKS}
LANES = {"UNITS": UNITS, "COLUMNS": COLUMNS, "ALIGNED": E}
SOURCES = {"UNITS": UNITS, "SPLITS": SOURCE_SPLITS, "TILE": SOURCE_TILE}
TEXT_CASES = [
    ("sum_text_rows", ROWS | {"STOPS": 4}),
    ("sum_sources", SOURCES),
    ("add_rows", LANES),
    *(("add_sources", SOURCES | {"WITH_REACHED": reached}) for reached in (True, False)),
    ("close_nodes", TEXT),
    ("add_up_blocks", TEXT),
    ("close_spans", TEXT),
    *(
        (
            "compare_nodes",
            TEXT | {"DIVERGENCE": divergence, "WITH_ABSENT": absent, "GRADIENT": gradient},
        )
        for divergence, absent, gradient in (
            (0, True, True),
            (0, False, True),
            (0, False, False),
            (5, True, True),
        )
    ),
    ("finish_offsets", TEXT | {"DIVERGENCE": 0}),
    ("sum_source_gradients", SOURCES),
    ("write_text_rows", LANES),
    ("add_source_gradients", SOURCES),
]
OFFSET_CASES = [
    ("weigh_offsets", {"SOURCES": WEIGHED_SOURCES, "SPLITS": SOURCE_SPLITS}),
    ("derive_weights", {"SPLITS": SOURCE_SPLITS}),
    ("derive_tokens", {"ROWS": DERIVED_ROWS}),
]
TYPES = {
    **dict.fromkeys(("z", "tiles", "gradient", "bias"), "*bf16"),
    **dict.fromkeys(("starts", "ids", "packed", "realized_column"), "*i64"),
    **dict.fromkeys(
        ("code_of_id", "teacher_codes", "student_codes", "skips", "slot_ids", "slot_of_skip"),
        "*i32",
    ),
    **dict.fromkeys(
        (*kernels.CHANGING, "width", "n_columns", "n_codes", "n_extra", "n_slots", "per_split",
         "row_stride", "pitch", "kind_at", "step_row_at", "teacher_id_at", "teacher_offsets_at",
         "student_id_at", "student_offsets_at", "stop_column", "weight_stride"), "i32",
    ),
    "batch_stride": "i64",
    "n_values": "i64",
    **dict.fromkeys(("scale", "weight", "log_weight", "log_rest"), "fp32"),
    **dict.fromkeys(
        ("is_written", "reached", "same", "both", "deep", "counted", "has_teachers",
         "has_students", "flags"), "*i8",
    ),
    **dict.fromkeys(
        ("slot_codes", "token_ids", "suffixes", "parent", "subtree_end", "closed",
         "span_of_node", "span_node", "span_end_point", "end_points", "end_node", "covers",
         "cover_span", "child_of_node", "spans"), "*i32",
    ),
    **dict.fromkeys(
        ("own", "rows", "firsts", "ends", "exacts", "first_suffixes", "offsets", "offset_of_row",
         "place_of", "place", "sources_of_row", "source_order", "source_ends", "tokens",
         "flat_rows", "order", "stops"), "*i64",
    ),
    **{
        f"{side}_{what}": "*i64"
        for side in ("teacher", "student")
        for what in ("own", "source_ends", "source_rows", "nans_before", "offset_of_row")
    },
    **dict.fromkeys(
        ("teacher_log_weights", "student_log_weights", "log_probs", "by_weight"), "*fp64"
    ),
    **dict.fromkeys(
        ("n_nodes", "n_blocks", "n_spans", "n_ends", "n_children", "first_place", "end_place",
         "first_source", "first_row", "end_row", "n_stops", "n_rows", "n_lanes",
         "factor_stride"), "i32",
    ),
    **dict.fromkeys(("epsilon", "floor", "inverse", "min_mass", "multiplier", "softcap"), "fp32"),
    "sums_through": "*fp64",
}  # fmt: skip


def compile_kernel(name: str, constants: dict[str, object], capability: int) -> dict[str, object]:
    module = MODULES[name]
    kernel = getattr(module, name)
    names = kernel.arg_names
    # Triton takes a stride of 1 as a constant.
    known = {key: value for key, value in (constants | {"stride": 1}).items() if key in names}
    signature = {
        argument: "constexpr" if argument in known else TYPES.get(argument, "*fp32")
        for argument in names
    }
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, argument in enumerate(names)
        if signature[argument].startswith("*")
        or argument in ("width", "per_split", "n_codes", "pitch")
    }
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(key),): value for key, value in known.items()},
        attrs=aligned,
    )
    warps = 4
    if module is kernels or name in ("sum_text_rows", "write_text_rows"):
        warps = WARPS
    elif name in ("add_up_blocks", "finish_offsets"):
        warps = BLOCK_WARPS
    elif name not in ("write_slots", "derive_tokens") and module in (unit_kernels, offset_kernels):
        warps = 1
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {key: int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")}
    widths = {
        what: max(
            (
                int(size) * int(count or 1)
                for count, size in re.findall(
                    rf"{what}\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)", made.asm["ptx"]
                )
            ),
            default=0,
        )
        for what in ("ld", "st")
    }
    return {"kernel": name, **known, **found, **widths}


MODULES = {
    **{name: kernels for name, _ in CASES},
    **{name: unit_kernels for name, _ in UNIT_CASES},
    **{name: text_kernels for name, _ in TEXT_CASES},
    **{name: offset_kernels for name, _ in OFFSET_CASES},
}
for case, its_constants in CASES + UNIT_CASES + TEXT_CASES + OFFSET_CASES:
    print(json.dumps(compile_kernel(case, its_constants, int(sys.argv[1]))), flush=True)
