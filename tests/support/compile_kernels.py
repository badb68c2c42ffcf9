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

from simct_align.loss.backends.triton import kernels, text_kernels
from simct_align.loss.backends.triton.launch import ROW_T, UNITS, WARPS, E, T
from simct_align.loss.backends.triton.text_computation import BLOCKS, COLUMNS, SPANS
from simct_align.loss.backends.triton.text_side import SOURCE_SPLITS, SOURCE_TILE
from simct_align.loss.text_blocks import BLOCK

UNITS_AND_COLUMNS = {"UNITS": UNITS, "T": T, "E": E, "ALIGNED": E, "COLUMNS": T * E}
ROWS = {"T": ROW_T, "E": E, "ALIGNED": E, "COLUMNS": ROW_T * E}
SHARED, MULTI = {"N_SKIPS": 1, "N_SLOTS": 2}, {"N_SKIPS": 4, "N_SLOTS": 7}
CASES = [
    ("lay_out", UNITS_AND_COLUMNS),
    *(("sum_teacher", UNITS_AND_COLUMNS | kind) for kind in (SHARED, MULTI)),
    *(
        ("sum_student", UNITS_AND_COLUMNS | kind | {"WITH_DIFFERENCES": differences})
        for kind in (SHARED, MULTI)
        for differences in (True, False)
    ),
    *(
        (name, UNITS_AND_COLUMNS | MULTI | {"DIVERGENCE": divergence, "WITH_NORM": True})
        for name in ("sum_terms", "write_gradient")
        for divergence in range(6)
    ),
    ("write_gradient", UNITS_AND_COLUMNS | {"DIVERGENCE": 0, "WITH_NORM": False}),
    ("write_slots", {"UNITS": 32, "WITH_NORM": True, "N_SLOTS": 7}),
    ("slot_terms", {"DIVERGENCE": 0, "SLOTS": 8}),
    ("pick_slots", {"N_SKIPS": 4, "SLOTS": 8}),
    ("finish_columns", {"SPLITS": 4, "SLOTS": 8}),
    ("finish_norms", {"SPLITS": 4, "SLOTS": 8, "WITH_DIFFERENCES": True}),
    ("norm_rows", ROWS),
    ("write_path_rows", ROWS),
    ("clear_rows", ROWS),
    ("scale", {"COLUMNS": 8 * ROW_T * E}),
]
TEXT = {"UNITS": UNITS, "BLOCK": BLOCK, "SPANS": SPANS, "BLOCKS": BLOCKS}
LANES = {"UNITS": UNITS, "COLUMNS": COLUMNS, "ALIGNED": E}
SOURCES = {"UNITS": UNITS, "SPLITS": SOURCE_SPLITS, "TILE": SOURCE_TILE}
TEXT_CASES = [
    ("sum_text_rows", ROWS),
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
TYPES = {
    **dict.fromkeys(("z", "tiles", "gradient"), "*bf16"),
    **dict.fromkeys(("starts", "gradient_starts", "ids"), "*i64"),
    **dict.fromkeys(("column_of_id", "skips", "slot_ids"), "*i32"),
    **dict.fromkeys(
        ("n_units", "width", "n_columns", "per_split", "n_splits", "n_slots", "first_other"), "i32"
    ),
    "count": "i64",
    **dict.fromkeys(("scale", "weight", "log_weight", "log_rest"), "fp32"),
    **dict.fromkeys(("is_written", "reached", "same", "both", "deep", "absent"), "*i8"),
    **dict.fromkeys(
        ("slot_of_id", "token_ids", "suffixes", "parent", "subtree_end", "closed",
         "span_of_node", "span_node", "span_end_point", "end_points", "end_node", "covers",
         "cover_span", "child_of_node", "spans"), "*i32",
    ),
    **dict.fromkeys(
        ("own", "rows", "firsts", "ends", "exacts", "realized", "first_suffixes", "offsets",
         "offset_of_row", "place_of_row", "sources_of_row", "source_order", "tokens", "flat_rows",
         "order", "places"), "*i64",
    ),
    **dict.fromkeys(
        ("n_nodes", "n_blocks", "n_spans", "n_ends", "n_children", "first_place", "end_place",
         "first_source", "first_row", "end_row"), "i32",
    ),
    **dict.fromkeys(("epsilon", "floor", "inverse"), "fp32"),
    "sums_through": "*fp64",
}  # fmt: skip


def compile_kernel(name: str, constants: dict[str, object], capability: int) -> dict[str, object]:
    is_text = any(name == case for case, _ in TEXT_CASES)
    kernel = getattr(text_kernels if is_text else kernels, name)
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
        if signature[argument].startswith("*") or argument in ("width", "per_split")
    }
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(key),): value for key, value in known.items()},
        attrs=aligned,
    )
    warps = 4
    if not is_text or name in ("sum_text_rows", "write_text_rows", "slot_terms"):
        warps = 1 if name == "slot_terms" else WARPS
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


for case, its_constants in CASES + TEXT_CASES:
    print(json.dumps(compile_kernel(case, its_constants, int(sys.argv[1]))), flush=True)
