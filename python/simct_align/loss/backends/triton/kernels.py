"""Internal: Triton kernels over the columns of rows of logits.

Kernels work on `UNITS` units at a time. The teacher's shared columns are first laid out as
`[group, column, unit of the group]` (`lay_out`): 16 logits of two bytes are one sector of memory,
so no later kernel gathers from the teacher's rows. The student's rows are read in place.

Some columns of a unit are *slots*: the stops, and, at a MULTI unit, the columns that the realized
unit changes. `unit_kernels` computes their scores, so the kernels leave them out of the sums.
`skips[unit, 4]` names the slots among the shared columns, -1 where there is none. A chunk is either
`MULTI` or has SHARED and SPECIAL units only, which have one skip.

Logarithms are binary. A row's logits are taken relative to the row's *shift*, a logit near its
largest one, before they are multiplied by `scale = log2(e) / temperature`: large logits would lose
digits as products. Log-normalizers are relative to the shift, too. `norms` has, of the teacher and
of the student, the shifts and the log-normalizers of all scores, `[2, 2, n_units]`.

A kernel's arguments are pointers and numbers; uppercase names are known when it is compiled. A
chunk has the units from `first_unit` to `end_unit`. `packed` is the packed index; an argument that
ends in `_at` is where a section begins in it. Row numbers are those of the index: `length`,
`batch_stride` and `row_stride` say where a row begins in memory, and `stride` is the step from one
logit of a row to the next. `ALIGNED` logits begin at multiples of `ALIGNED` in memory, so that a
thread reads several at once. `code_of_id` has, of every id below `n_codes`, the shared column, -1
for other tokens, and -2 for no token.
"""
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1.0e30)
#: `LOG_FLOOR` in binary logarithms.
FLOOR = tl.constexpr(-14426.950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)

#: Numbers that differ from batch to batch: no kernel is compiled anew for them.
CHANGING = (
    "length", "batch_stride", "row_at", "id_at", "unit_at", "offsets_at", "first_unit", "end_unit",
    "first_row", "first_step", "n_shared", "n_units", "n_splits",
)  # fmt: skip

REVERSE_KL, FORWARD_KL, TOTAL_VARIATION, JSD, SKEWED_FORWARD_KL, SKEWED_REVERSE_KL = (
    tl.constexpr(number) for number in range(6)
)


@triton.jit
def _columns_from(first, T: tl.constexpr, E: tl.constexpr):
    """Return `[1, T, E]` the columns from `first` on, as the compiler makes vectors of them."""
    return first + (tl.arange(0, T)[:, None] * E + tl.arange(0, E)[None, :])[None, :, :]


@triton.jit
def _log_mix(left, log_left_weight, right, log_right_weight):
    """Return the binary logarithm of a mixture."""
    left += log_left_weight
    right += log_right_weight
    top = tl.maximum(left, right)
    return top + tl.log2(tl.exp2(left - top) + tl.exp2(right - top))


@triton.jit
def _terms(log_teacher, log_student, weight, log_weight, log_rest, DIVERGENCE: tl.constexpr):
    """Return the terms of a divergence, in nats: their values, and `q_S dD/dq_S`.

    See `simct_align.divergence` for the formulas; `weight` is `beta` or `alpha`.
    """
    teacher, student = tl.exp2(log_teacher), tl.exp2(log_student)
    if DIVERGENCE == REVERSE_KL:
        value = student * (log_student - log_teacher) * LN2
        derivative = value
    elif DIVERGENCE == FORWARD_KL:
        value = teacher * (log_teacher - log_student) * LN2
        derivative = -teacher
    elif DIVERGENCE == TOTAL_VARIATION:
        gap = student - teacher
        value = 0.5 * tl.abs(gap)
        derivative = 0.5 * student * ((gap > 0).to(tl.float32) - (gap < 0).to(tl.float32))
    elif DIVERGENCE == JSD:
        mixed = _log_mix(log_student, log_rest, log_teacher, log_weight)
        derivative = (1.0 - weight) * student * (log_student - mixed) * LN2
        value = weight * teacher * (log_teacher - mixed) * LN2 + derivative
    elif DIVERGENCE == SKEWED_FORWARD_KL:
        mixed = _log_mix(log_teacher, log_weight, log_student, log_rest)
        value = teacher * (log_teacher - mixed) * LN2
        derivative = -teacher * tl.exp2(log_student + log_rest - mixed)
    else:
        mixed = _log_mix(log_student, log_weight, log_teacher, log_rest)
        ratio = log_student - mixed
        value = student * ratio * LN2
        derivative = student * (ratio * LN2 - weight * tl.exp2(ratio))
    return value, derivative


@triton.jit
def _row_start(row, length, batch_stride, row_stride):
    """Return where rows begin in memory, from the first logit on."""
    return row // length * batch_stride + row % length * row_stride


@triton.jit
def _starts(packed, row_at, unit, is_unit, length, batch_stride, row_stride):
    """Return where the prefix rows of units `[U]` begin."""
    row = tl.load(packed + row_at + unit, mask=is_unit, other=0)
    return _row_start(row, length, batch_stride, row_stride)


@triton.jit
def _units(program, n_splits, first_unit, end_unit, UNITS: tl.constexpr):
    """Return a program's part of the columns, its group, its units `[U]`, and which are there."""
    group = (program // n_splits).to(tl.int64)
    unit = first_unit + group * UNITS + tl.arange(0, UNITS)
    return program % n_splits, group, unit, unit < end_unit


@triton.jit
def _skips(skips, unit, is_unit, MULTI: tl.constexpr):
    """Return the four skips `[U, 1, 1]` of the units `[U]`; SHARED units have one."""
    none = tl.full(unit.shape, -1, tl.int32)
    first, second, third, fourth = none, none, none, none
    at = skips + unit * 4
    first = tl.load(at, mask=is_unit, other=-1)
    if MULTI:
        second = tl.load(at + 1, mask=is_unit, other=-1)
        third = tl.load(at + 2, mask=is_unit, other=-1)
        fourth = tl.load(at + 3, mask=is_unit, other=-1)
    return (
        first[:, None, None], second[:, None, None], third[:, None, None], fourth[:, None, None]
    )  # fmt: skip


@triton.jit
def _is_in_sums(column, is_column, first, second, third, fourth, MULTI: tl.constexpr):
    """Return whether columns `[1, T, E]` count for the units with these skips."""
    is_column = is_column & (column != first)
    if MULTI:
        is_column = is_column & (column != second) & (column != third) & (column != fourth)
    return is_column


@triton.jit
def _tile(tiles, group, n_columns, column, is_column, UNITS: tl.constexpr, T: tl.constexpr,
          E: tl.constexpr):  # fmt: skip
    """Return the teacher's logits at columns `[T * E]` as float32 `[UNITS, T, E]`."""
    lane = tl.arange(0, UNITS)
    at = (group * n_columns + column)[:, None] * UNITS + lane[None, :]
    z = tl.load(tiles + at, mask=is_column[:, None], other=0.0)
    return tl.reshape(tl.trans(z.to(tl.float32)), [UNITS, T, E])


@triton.jit
def _student_tile(z, start, stride, ids, column, end):
    """Return the student's logits at columns `[1, T, E]` as float32 `[UNITS, T, E]`."""
    at = tl.load(ids + column, mask=column < end, other=0).to(tl.int64)
    return tl.load(z + start + at * stride, mask=column < end, other=0.0).to(tl.float32)


@triton.jit
def _norms(norms, unit, is_unit, side, n_units):
    """Return the shifts and log-normalizers of one side's units as `[U, 1, 1]`."""
    at = norms + side * 2 * n_units + unit
    shift = tl.load(at, mask=is_unit, other=0.0)[:, None, None]
    return shift, tl.load(at + n_units, mask=is_unit, other=0.0)[:, None, None]


@triton.jit(do_not_specialize=CHANGING)
def lay_out(z, length, batch_stride, row_stride, stride, packed, row_at, first_unit, end_unit,
            code_of_id, n_codes, width, tiles, n_columns, ALIGNED: tl.constexpr,
            UNITS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """`tiles[group, column, unit of the group]` of the teacher's logits `z`."""
    ids = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    lane = tl.arange(0, UNITS)
    _, group, unit, is_unit = _units(tl.program_id(1), 1, first_unit, end_unit, UNITS)
    start = _starts(packed, row_at, unit, is_unit, length, batch_stride, row_stride)
    start = tl.multiple_of(start, ALIGNED)
    column = tl.load(code_of_id + ids, mask=ids < n_codes, other=-1)
    is_column = column >= 0
    # Most sectors have a shared column: a mask by columns would only cut the loads up.
    values = tl.load(
        z + start[:, None] + ids[None, :].to(tl.int64) * stride,
        mask=(ids < width)[None, :], other=0.0, eviction_policy="evict_first",
    )  # fmt: skip
    at = (group * n_columns + column)[:, None] * UNITS + lane[None, :]
    tl.store(tiles + at, tl.trans(values), mask=is_column[:, None])


@triton.jit
def _add_exponentials(z, counts, scale, top, total):
    """Go on with maxima and sums of exponentials `[U, T]` by logits `[U, T, E]`.

    Also returns the exponents, the exponentials, and what the sums before were multiplied by.
    """
    new = tl.maximum(top, tl.max(tl.where(counts, z, LOWEST), 2))
    exponents = (z - new[:, :, None]) * scale
    exponentials = tl.where(counts, tl.exp2(exponents), 0.0)
    factor = tl.exp2((top - new) * scale)
    return new, total * factor + tl.sum(exponentials, 2), exponents, exponentials, factor


@triton.jit
def _store_sums(out, unit, is_unit, split, n_splits, scale, top, total):
    """Store maxima and sums of the lanes `[U, T]` as `out[unit, split, 2]`."""
    top_of_all = tl.max(top, 1)
    sums = tl.sum(total * tl.exp2((top - top_of_all[:, None]) * scale), 1)
    at = out + (unit * n_splits + split) * 2
    tl.store(at, top_of_all, mask=is_unit)
    tl.store(at + 1, sums, mask=is_unit)
    return top_of_all


@triton.jit(do_not_specialize=CHANGING)
def sum_teacher(first_unit, end_unit, tiles, n_columns, skips, scale, out, per_split, n_splits,
                MULTI: tl.constexpr, UNITS: tl.constexpr, T: tl.constexpr,
                E: tl.constexpr):  # fmt: skip
    """`out[unit of the chunk, split]`: maxima and sums of exponentials of the teacher's logits."""
    split, group, unit, is_unit = _units(tl.program_id(0), n_splits, first_unit, end_unit, UNITS)
    skipped = _skips(skips, unit, is_unit, MULTI)
    top, total = tl.full([UNITS, T], LOWEST, tl.float32), tl.zeros([UNITS, T], tl.float32)
    end = tl.minimum(split * per_split + per_split, n_columns)
    for first in range(split * per_split, end, T * E):
        flat = first + tl.arange(0, T * E)
        x = _tile(tiles, group, n_columns, flat, flat < end, UNITS, T, E)
        column = _columns_from(first, T, E)
        counts = _is_in_sums(column, column < end, *skipped, MULTI)
        top, total, _, _, _ = _add_exponentials(x, counts, scale, top, total)
    _store_sums(out, unit - first_unit, is_unit, split, n_splits, scale, top, total)


@triton.jit(do_not_specialize=CHANGING)
def sum_student(z, length, batch_stride, row_stride, stride, packed, row_at, first_unit, end_unit,
                n_units, ids, tiles, n_columns, skips, scale, norms, out, differences, per_split,
                n_splits, WITH_DIFFERENCES: tl.constexpr, MULTI: tl.constexpr,
                UNITS: tl.constexpr, T: tl.constexpr, E: tl.constexpr):  # fmt: skip
    """`out[unit of the chunk, split]`: the same of the student's shared columns.

    With `WITH_DIFFERENCES` also `differences`, of the same shape: exponentials times the
    differences of the student's logit, relative to the maximum, and the teacher's log-probability.
    """
    split, group, unit, is_unit = _units(tl.program_id(0), n_splits, first_unit, end_unit, UNITS)
    skipped = _skips(skips, unit, is_unit, MULTI)
    start = _starts(packed, row_at, unit, is_unit, length, batch_stride, row_stride)
    start = start[:, None, None]
    shift, norm = _norms(norms, unit, is_unit, 0, n_units)
    top, total = tl.full([UNITS, T], LOWEST, tl.float32), tl.zeros([UNITS, T], tl.float32)
    sums = tl.zeros([UNITS, T], tl.float32)
    end = tl.minimum(split * per_split + per_split, n_columns)
    for first in range(split * per_split, end, T * E):
        flat = first + tl.arange(0, T * E)
        column = _columns_from(first, T, E)
        x = _student_tile(z, start, stride, ids, column, end)
        counts = _is_in_sums(column, column < end, *skipped, MULTI)
        before, total_before = top, total
        top, total, exponents, exponentials, factor = _add_exponentials(
            x, counts, scale, top, total
        )
        if WITH_DIFFERENCES:
            tile = _tile(tiles, group, n_columns, flat, flat < end, UNITS, T, E)
            log_teacher = tl.maximum((tile - shift) * scale - norm, FLOOR)
            # Where the logit is -inf, its exponential is 0.
            difference = exponentials * (tl.maximum(exponents, LOWEST) - log_teacher)
            sums = (sums + (before - top) * scale * total_before) * factor
            sums += tl.sum(difference, 2)
    unit -= first_unit
    top_of_all = _store_sums(out, unit, is_unit, split, n_splits, scale, top, total)
    if WITH_DIFFERENCES:
        lower = (top - top_of_all[:, None]) * scale
        sums = tl.sum((sums + lower * total) * tl.exp2(lower), 1)
        tl.store(differences + unit * n_splits + split, sums, mask=is_unit)


@triton.jit(do_not_specialize=CHANGING)
def sum_terms(z, length, batch_stride, row_stride, stride, packed, row_at, first_unit, end_unit,
              n_units, ids, tiles, n_columns, skips, scale, norms, weight, log_weight, log_rest,
              out, per_split, n_splits, DIVERGENCE: tl.constexpr, MULTI: tl.constexpr,
              UNITS: tl.constexpr, T: tl.constexpr, E: tl.constexpr):  # fmt: skip
    """`out[unit of the chunk, split]`: sums of a divergence's terms over the shared columns."""
    split, group, unit, is_unit = _units(tl.program_id(0), n_splits, first_unit, end_unit, UNITS)
    skipped = _skips(skips, unit, is_unit, MULTI)
    start = _starts(packed, row_at, unit, is_unit, length, batch_stride, row_stride)
    start = start[:, None, None]
    teacher_shift, teacher_norm = _norms(norms, unit, is_unit, 0, n_units)
    student_shift, student_norm = _norms(norms, unit, is_unit, 1, n_units)
    values, derivatives = tl.zeros([UNITS, T], tl.float32), tl.zeros([UNITS, T], tl.float32)
    end = tl.minimum(split * per_split + per_split, n_columns)
    for first in range(split * per_split, end, T * E):
        flat = first + tl.arange(0, T * E)
        column = _columns_from(first, T, E)
        x = _student_tile(z, start, stride, ids, column, end)
        counts = _is_in_sums(column, column < end, *skipped, MULTI)
        tile = _tile(tiles, group, n_columns, flat, flat < end, UNITS, T, E)
        log_teacher = tl.maximum((tile - teacher_shift) * scale - teacher_norm, FLOOR)
        log_student = tl.maximum((x - student_shift) * scale - student_norm, FLOOR)
        value, derivative = _terms(
            log_teacher, log_student, weight, log_weight, log_rest, DIVERGENCE
        )
        values += tl.sum(tl.where(counts, value, 0.0), 2)
        derivatives += tl.sum(tl.where(counts, derivative, 0.0), 2)
    at_unit = out + ((unit - first_unit) * n_splits + split) * 2
    tl.store(at_unit, tl.sum(values, 1), mask=is_unit)
    tl.store(at_unit + 1, tl.sum(derivatives, 1), mask=is_unit)


@triton.jit(do_not_specialize=CHANGING)
def write_gradient(z, length, batch_stride, row_stride, stride, packed, row_at, first_unit,
                   end_unit, n_units, code_of_id, n_codes, width, tiles, n_columns,
                   scale, norms, figures, weight, log_weight, log_rest, gradient, is_written,
                   per_split, n_splits, DIVERGENCE: tl.constexpr, WITH_NORM: tl.constexpr,
                   ALIGNED: tl.constexpr, UNITS: tl.constexpr, T: tl.constexpr,
                   E: tl.constexpr):  # fmt: skip
    """Whole rows of the gradient, zeros included; `write_slots` replaces the slots.

    A shared column gets `factor * (derivative - q_S * dot)`. With `WITH_NORM` every token gets
    `by_norm` times its probability in the whole row. `figures[4, n_units]` are dots, factors,
    `by_norm` and binary log-normalizers of whole rows.
    """
    split, group, unit, is_unit = _units(tl.program_id(0), n_splits, first_unit, end_unit, UNITS)
    row = tl.load(packed + row_at + unit, mask=is_unit, other=0)
    start = _row_start(row, length, batch_stride, row_stride)
    start = tl.multiple_of(start, ALIGNED)[:, None, None]
    out = tl.multiple_of(row * width, ALIGNED)[:, None, None]
    teacher_shift, teacher_norm = _norms(norms, unit, is_unit, 0, n_units)
    student_shift, student_norm = _norms(norms, unit, is_unit, 1, n_units)
    at_unit = figures + unit
    dot = tl.load(at_unit, mask=is_unit, other=0.0)[:, None, None]
    factor = tl.load(at_unit + n_units, mask=is_unit, other=0.0)[:, None, None]
    if WITH_NORM:
        by = tl.load(at_unit + 2 * n_units, mask=is_unit, other=0.0)[:, None, None]
        norm = tl.load(at_unit + 3 * n_units, mask=is_unit, other=0.0)[:, None, None]
    if split == 0:
        tl.store(is_written + row, tl.full([UNITS], 1, tl.int8), mask=is_unit)
    end = tl.minimum(split * per_split + per_split, width)
    known = tl.minimum(end, n_codes)
    for first in range(split * per_split, end, T * E):
        flat = first + tl.arange(0, T * E)
        of_flat = tl.load(code_of_id + flat, mask=flat < known, other=-2)
        at, column = _columns_from(first, T, E), tl.reshape(of_flat, [1, T, E])
        inside = (at < end) & is_unit[:, None, None]
        x = tl.load(z + start + at.to(tl.int64) * stride, mask=inside, other=0.0)
        x = x.to(tl.float32)
        tile = _tile(tiles, group, n_columns, of_flat, of_flat >= 0, UNITS, T, E)
        log_teacher = tl.maximum((tile - teacher_shift) * scale - teacher_norm, FLOOR)
        log_student = tl.maximum((x - student_shift) * scale - student_norm, FLOOR)
        _, derivative = _terms(log_teacher, log_student, weight, log_weight, log_rest, DIVERGENCE)
        value = derivative - tl.exp2(log_student) * dot
        value = factor * tl.where(column >= 0, value, 0.0)
        if WITH_NORM:
            exponent = (x - student_shift) * scale - norm
            value += tl.where(column > -2, by * tl.exp2(exponent), 0.0)
        place = gradient + out + at.to(tl.int64)
        tl.store(place, value.to(gradient.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=CHANGING)
def norm_rows(z, length, batch_stride, row_stride, stride, packed, row_at, first_row, code_of_id,
              n_codes, scale, out, ALIGNED: tl.constexpr, T: tl.constexpr,
              E: tl.constexpr):  # fmt: skip
    """`out[row]`: shifts and log-normalizers of whole rows, without columns that are no tokens."""
    row = first_row + tl.program_id(0)
    start = _row_start(tl.load(packed + row_at + row), length, batch_stride, row_stride)
    start = tl.multiple_of(start, ALIGNED)
    top, total = tl.full([1, T], LOWEST, tl.float32), tl.zeros([1, T], tl.float32)
    for first in range(0, n_codes, T * E):
        at = _columns_from(first, T, E)
        is_token = tl.load(code_of_id + at, mask=at < n_codes, other=-2) > -2
        x = tl.load(z + start + at.to(tl.int64) * stride, mask=at < n_codes, other=0.0)
        top, total, _, _, _ = _add_exponentials(x.to(tl.float32), is_token, scale, top, total)
    top_of_all = tl.max(top, 1)
    sums = tl.sum(total * tl.exp2((top - top_of_all[:, None]) * scale), 1)
    at = out + row * 2 + tl.arange(0, 1)
    tl.store(at, top_of_all)
    tl.store(at + 1, tl.log2(sums))


@triton.jit(do_not_specialize=CHANGING)
def write_path_rows(z, length, batch_stride, row_stride, stride, packed, row_at, id_at, unit_at,
                    offsets_at, first_step, code_of_id, n_codes, width, scale, step_norms, by_rest,
                    gradient, is_written, per_split, n_splits, WITH_NORM: tl.constexpr,
                    ALIGNED: tl.constexpr, T: tl.constexpr, E: tl.constexpr):  # fmt: skip
    """Rows of the gradient of later steps, from `by_rest`, the derivatives by their sums.

    A row gets the derivative at the step's token; with `WITH_NORM`, minus the derivative times
    probabilities.
    """
    split, step = tl.program_id(0) % n_splits, first_step + tl.program_id(0) // n_splits
    unit = tl.load(packed + unit_at + step)
    if step != tl.load(packed + offsets_at + unit):
        row = tl.load(packed + row_at + step)
        start = tl.multiple_of(_row_start(row, length, batch_stride, row_stride), ALIGNED)
        out = tl.multiple_of(row * width, ALIGNED)
        shift, norm = tl.load(step_norms + step * 2), tl.load(step_norms + step * 2 + 1)
        number, by = tl.load(packed + id_at + step), tl.load(by_rest + unit)
        if split == 0:
            tl.store(is_written + row, 1)
        end = tl.minimum(split * per_split + per_split, width)
        for first in range(split * per_split, end, T * E):
            at = first + tl.arange(0, T * E)
            inside = at < end
            value = tl.where(at == number, by, 0.0)
            if WITH_NORM:
                is_token = tl.load(code_of_id + at, mask=at < n_codes, other=-2) > -2
                x = tl.load(z + start + at.to(tl.int64) * stride, mask=inside, other=0.0)
                exponent = (x.to(tl.float32) - shift) * scale - norm
                value -= tl.where(is_token, by * tl.exp2(exponent), 0.0)
            place = gradient + out + at.to(tl.int64)
            tl.store(place, value.to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def clear_rows(gradient, is_written, width, per_split, n_splits, COLUMNS: tl.constexpr):
    """Zero the rows of a contiguous gradient that nothing else writes."""
    split, row = tl.program_id(0) % n_splits, (tl.program_id(0) // n_splits).to(tl.int64)
    if tl.load(is_written + row) == 0:
        zeros = tl.zeros([COLUMNS], gradient.dtype.element_ty)
        end = tl.minimum(split * per_split + per_split, width)
        for first in range(split * per_split, end, COLUMNS):
            at = first + tl.arange(0, COLUMNS)
            tl.store(gradient + row * width + at, zeros, mask=at < end)


@triton.jit
def _tanh(x):
    # The exponential of a negative number does not overflow.
    small = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    value = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -value, value)


@triton.jit(do_not_specialize=["n_columns"])
def finish_products(z, n_columns, pitch, bias, multiplier, softcap, CAPS: tl.constexpr,
                    WITH_BIAS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Turn products `h W^T` into `softcap tanh(multiplier (h W^T + bias) / softcap)`, in place.

    Rows begin at multiples of `pitch`. What stands behind their columns is nothing.
    """
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = z + tl.program_id(0).to(tl.int64) * pitch + column
    x = tl.load(at, mask=column < pitch, other=0.0).to(tl.float32)
    if WITH_BIAS:
        x += tl.load(bias + column, mask=column < n_columns, other=0.0).to(tl.float32)
    x *= multiplier
    if CAPS:
        x = softcap * _tanh(x / softcap)
    tl.store(at, x.to(z.dtype.element_ty), mask=column < pitch)


@triton.jit
def differentiate_products(z, gradient, pitch, multiplier, softcap, CAPS: tl.constexpr,
                           COLUMNS: tl.constexpr):  # fmt: skip
    """Turn the derivatives by logits `z` into those by the products, in place."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = tl.program_id(0).to(tl.int64) * pitch + column
    by = tl.load(gradient + at, mask=column < pitch, other=0.0).to(tl.float32) * multiplier
    if CAPS:
        part = tl.load(z + at, mask=column < pitch, other=0.0).to(tl.float32) / softcap
        by *= 1.0 - part * part
    tl.store(gradient + at, by.to(gradient.dtype.element_ty), mask=column < pitch)


@triton.jit
def scale(values, n_values, factor, COLUMNS: tl.constexpr):
    """Multiply values by a factor on the device, unless it is 1."""
    number = tl.load(factor)
    if number != 1.0:
        at = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        value = tl.load(values + at, mask=at < n_values, other=0.0).to(tl.float32) * number
        tl.store(values + at, value.to(values.dtype.element_ty), mask=at < n_values)
