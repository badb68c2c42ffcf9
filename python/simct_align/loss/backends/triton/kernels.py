"""Internal: Triton kernels over the columns of rows of logits.

Kernels work on `UNITS` units at a time. The teacher's shared columns are first laid out as
`[group, column, unit of the group]` (`lay_out`): 16 logits of two bytes are one sector of memory,
so no later kernel gathers from the teacher's rows. The student's rows are read in place.

Some columns of a unit are *slots*: the stops, and, at a MULTI unit, the columns that the realized
unit changes. Their scores are computed outside, so the kernels leave them out of the sums, and
`write_slots` writes their gradients. `skips` names the slots among the shared columns.

Logarithms are binary. A row's logits are taken relative to the row's *shift*, a logit near its
largest one, before they are multiplied by `scale = log2(e) / temperature`: large logits would lose
digits as products. Log-normalizers are relative to the shift, too. `norms` has, of the teacher and
of the student, the shifts and the log-normalizers of all scores, `[2, 2, n_units]`.

A kernel's arguments are pointers and numbers; uppercase names are known when it is compiled. A
`start` is the position of a row's first logit in memory, and `stride` the step from one logit of a
row to the next. `ALIGNED` logits begin at multiples of `ALIGNED` in memory, so that a thread reads
several at once.
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
def _skips(skips, unit, is_unit, N_SKIPS: tl.constexpr):
    """Return four skips `[U, 1, 1]` of the units `[U]`, those after the first `N_SKIPS` -1."""
    none = tl.full(unit.shape, -1, tl.int32)
    first, second, third, fourth = none, none, none, none
    at = skips + unit * N_SKIPS
    first = tl.load(at, mask=is_unit, other=-1)
    if N_SKIPS > 1:
        second = tl.load(at + 1, mask=is_unit, other=-1)
        third = tl.load(at + 2, mask=is_unit, other=-1)
        fourth = tl.load(at + 3, mask=is_unit, other=-1)
    return (
        first[:, None, None], second[:, None, None], third[:, None, None], fourth[:, None, None]
    )  # fmt: skip


@triton.jit
def _is_in_sums(column, is_column, first, second, third, fourth, N_SKIPS: tl.constexpr):
    """Return whether columns `[1, T, E]` count for the units with these skips."""
    is_column = is_column & (column != first)
    if N_SKIPS > 1:
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


@triton.jit
def lay_out(z, starts, n_units, stride, column_of_id, width, tiles, n_columns,
            ALIGNED: tl.constexpr, UNITS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """`tiles[group, column, unit of the group]` of the teacher's logits `z`."""
    ids = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    group = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, UNITS)
    unit = group * UNITS + lane
    start = tl.multiple_of(tl.load(starts + unit, mask=unit < n_units, other=0), ALIGNED)
    column = tl.load(column_of_id + ids, mask=ids < width, other=-1)
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


@triton.jit
def sum_teacher(tiles, n_units, n_columns, skips, scale, out, per_split, n_splits,
                N_SKIPS: tl.constexpr, UNITS: tl.constexpr, T: tl.constexpr,
                E: tl.constexpr):  # fmt: skip
    """`out[unit, split]`: maximum and sum of exponentials of the teacher's laid-out logits."""
    split, group = tl.program_id(0) % n_splits, (tl.program_id(0) // n_splits).to(tl.int64)
    unit = group * UNITS + tl.arange(0, UNITS)
    is_unit = unit < n_units
    skipped = _skips(skips, unit, is_unit, N_SKIPS)
    top, total = tl.full([UNITS, T], LOWEST, tl.float32), tl.zeros([UNITS, T], tl.float32)
    end = tl.minimum(split * per_split + per_split, n_columns)
    for first in range(split * per_split, end, T * E):
        flat = first + tl.arange(0, T * E)
        x = _tile(tiles, group, n_columns, flat, flat < end, UNITS, T, E)
        column = _columns_from(first, T, E)
        counts = _is_in_sums(column, column < end, *skipped, N_SKIPS)
        top, total, _, _, _ = _add_exponentials(x, counts, scale, top, total)
    _store_sums(out, unit, is_unit, split, n_splits, scale, top, total)


@triton.jit
def sum_student(z, starts, n_units, stride, ids, tiles, n_columns, skips, scale, norms, out,
                differences, per_split, n_splits, WITH_DIFFERENCES: tl.constexpr,
                N_SKIPS: tl.constexpr, UNITS: tl.constexpr, T: tl.constexpr,
                E: tl.constexpr):  # fmt: skip
    """`out[unit, split]`: maximum and sum of exponentials of the student's shared columns.

    With `WITH_DIFFERENCES` also `differences[unit, split]`: exponentials times the differences of
    the student's logit, relative to the maximum, and the teacher's log-probability.
    """
    split, group = tl.program_id(0) % n_splits, (tl.program_id(0) // n_splits).to(tl.int64)
    unit = group * UNITS + tl.arange(0, UNITS)
    is_unit = unit < n_units
    skipped = _skips(skips, unit, is_unit, N_SKIPS)
    start = tl.load(starts + unit, mask=is_unit, other=0)[:, None, None]
    shift, norm = _norms(norms, unit, is_unit, 0, n_units)
    top, total = tl.full([UNITS, T], LOWEST, tl.float32), tl.zeros([UNITS, T], tl.float32)
    sums = tl.zeros([UNITS, T], tl.float32)
    end = tl.minimum(split * per_split + per_split, n_columns)
    for first in range(split * per_split, end, T * E):
        flat = first + tl.arange(0, T * E)
        column = _columns_from(first, T, E)
        x = _student_tile(z, start, stride, ids, column, end)
        counts = _is_in_sums(column, column < end, *skipped, N_SKIPS)
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
    top_of_all = _store_sums(out, unit, is_unit, split, n_splits, scale, top, total)
    if WITH_DIFFERENCES:
        lower = (top - top_of_all[:, None]) * scale
        sums = tl.sum((sums + lower * total) * tl.exp2(lower), 1)
        tl.store(differences + unit * n_splits + split, sums, mask=is_unit)


@triton.jit
def sum_terms(z, starts, n_units, stride, ids, tiles, n_columns, skips, scale, norms, weight,
              log_weight, log_rest, out, per_split, n_splits, DIVERGENCE: tl.constexpr,
              N_SKIPS: tl.constexpr, UNITS: tl.constexpr, T: tl.constexpr,
              E: tl.constexpr):  # fmt: skip
    """`out[unit, split]`: sums of a divergence's terms over the shared columns."""
    split, group = tl.program_id(0) % n_splits, (tl.program_id(0) // n_splits).to(tl.int64)
    unit = group * UNITS + tl.arange(0, UNITS)
    is_unit = unit < n_units
    skipped = _skips(skips, unit, is_unit, N_SKIPS)
    start = tl.load(starts + unit, mask=is_unit, other=0)[:, None, None]
    teacher_shift, teacher_norm = _norms(norms, unit, is_unit, 0, n_units)
    student_shift, student_norm = _norms(norms, unit, is_unit, 1, n_units)
    values, derivatives = tl.zeros([UNITS, T], tl.float32), tl.zeros([UNITS, T], tl.float32)
    end = tl.minimum(split * per_split + per_split, n_columns)
    for first in range(split * per_split, end, T * E):
        flat = first + tl.arange(0, T * E)
        column = _columns_from(first, T, E)
        x = _student_tile(z, start, stride, ids, column, end)
        counts = _is_in_sums(column, column < end, *skipped, N_SKIPS)
        tile = _tile(tiles, group, n_columns, flat, flat < end, UNITS, T, E)
        log_teacher = tl.maximum((tile - teacher_shift) * scale - teacher_norm, FLOOR)
        log_student = tl.maximum((x - student_shift) * scale - student_norm, FLOOR)
        value, derivative = _terms(
            log_teacher, log_student, weight, log_weight, log_rest, DIVERGENCE
        )
        values += tl.sum(tl.where(counts, value, 0.0), 2)
        derivatives += tl.sum(tl.where(counts, derivative, 0.0), 2)
    at_unit = out + (unit * n_splits + split) * 2
    tl.store(at_unit, tl.sum(values, 1), mask=is_unit)
    tl.store(at_unit + 1, tl.sum(derivatives, 1), mask=is_unit)


@triton.jit
def pick_slots(z, starts, stride, skips, ids, first_other, n_slots, slot_ids, picked,
               N_SKIPS: tl.constexpr, SLOTS: tl.constexpr):  # fmt: skip
    """`slot_ids[unit, slot]`, -1 where there is no token, and the logits, -inf there."""
    unit = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    is_slot = slot < n_slots
    skip = tl.load(skips + unit * N_SKIPS + slot, mask=slot < N_SKIPS, other=-1)
    column = tl.where(slot < N_SKIPS, skip, first_other + slot - N_SKIPS)
    number = tl.load(ids + column, mask=is_slot & (column >= 0), other=-1)
    at = z + tl.load(starts + unit) + number * stride
    x = tl.load(at, mask=number >= 0, other=float("-inf")).to(tl.float32)
    tl.store(slot_ids + unit * n_slots + slot, number.to(tl.int32), mask=is_slot)
    tl.store(picked + unit * n_slots + slot, x, mask=is_slot)


@triton.jit
def finish_columns(sums, n_splits, picked, n_slots, scale, inverse, shifts, of_columns,
                   SPLITS: tl.constexpr, SLOTS: tl.constexpr):  # fmt: skip
    """Take the shifts off the logits of slots, and add the columns' exponentials up.

    `of_columns` are their log-normalizers in nats, relative to the shifts.
    """
    unit = tl.program_id(0).to(tl.int64)
    split, slot = tl.arange(0, SPLITS), tl.arange(0, SLOTS)
    at = sums + (unit * n_splits + split) * 2
    top = tl.load(at, mask=split < n_splits, other=LOWEST)
    total = tl.load(at + 1, mask=split < n_splits, other=0.0)
    at_slots = picked + unit * n_slots + slot
    x = tl.load(at_slots, mask=slot < n_slots, other=float("-inf"))
    # Near the largest logit of both: relative to another, that one would lose digits.
    shift = tl.maximum(tl.max(top, 0), tl.max(x, 0))
    shift = tl.where(shift <= 0.1 * LOWEST, 0.0, shift)
    tl.store(shifts + unit, shift)
    total = tl.sum(total * tl.exp2((top - shift) * scale), 0)
    tl.store(of_columns + unit, tl.log2(total) * LN2)
    tl.store(at_slots, (x - shift) * inverse, mask=slot < n_slots)


@triton.jit
def finish_norms(slots, n_slots, of_columns, sums, differences, n_splits, scale, shifts, norms,
                 of_differences, WITH_DIFFERENCES: tl.constexpr, SPLITS: tl.constexpr,
                 SLOTS: tl.constexpr):  # fmt: skip
    """Log-normalizers of all scores; with `WITH_DIFFERENCES` also the columns' reverse KL."""
    unit = tl.program_id(0).to(tl.int64)
    split, slot = tl.arange(0, SPLITS), tl.arange(0, SLOTS)
    z = tl.load(slots + unit * n_slots + slot, mask=slot < n_slots, other=float("-inf"))
    column = tl.load(of_columns + unit)
    top = tl.maximum(tl.max(z, 0), column)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2((z - top) * LOG2E), 0) + tl.exp2((column - top) * LOG2E)
    norm = top * LOG2E + tl.log2(total)
    tl.store(norms + unit, norm)
    if WITH_DIFFERENCES:
        is_split = split < n_splits
        at = unit * n_splits + split
        lower = tl.load(sums + at * 2, mask=is_split, other=LOWEST) - tl.load(shifts + unit)
        total = tl.load(sums + at * 2 + 1, mask=is_split, other=0.0)
        difference = tl.load(differences + at, mask=is_split, other=0.0)
        # Differences are to logits relative to the maximum of their part.
        relative = tl.exp2(lower * scale - norm)
        difference += lower * scale * total
        difference = tl.sum(difference * relative, 0) - tl.sum(total * relative, 0) * norm
        tl.store(of_differences + unit, difference * LN2)


@triton.jit
def slot_terms(teacher, student, norms, n_units, n_slots, weight, log_weight, log_rest, values,
               derivatives, DIVERGENCE: tl.constexpr, SLOTS: tl.constexpr):  # fmt: skip
    """Store a divergence's terms at slots, `[n_units, n_slots]` scores in nats above the shift."""
    unit = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    at = unit * n_slots + slot
    is_slot = slot < n_slots
    x = tl.load(teacher + at, mask=is_slot, other=0.0) * LOG2E
    log_teacher = tl.maximum(x - tl.load(norms + n_units + unit), FLOOR)
    x = tl.load(student + at, mask=is_slot, other=0.0) * LOG2E
    log_student = tl.maximum(x - tl.load(norms + 3 * n_units + unit), FLOOR)
    value, derivative = _terms(log_teacher, log_student, weight, log_weight, log_rest, DIVERGENCE)
    tl.store(values + at, value, mask=is_slot)
    tl.store(derivatives + at, derivative, mask=is_slot)


@triton.jit
def write_gradient(z, starts, n_units, stride, column_of_id, width, tiles, n_columns, scale, norms,
                   dots, factors, by_norm, row_norms, weight, log_weight, log_rest, gradient,
                   gradient_starts, per_split, n_splits, DIVERGENCE: tl.constexpr,
                   WITH_NORM: tl.constexpr, ALIGNED: tl.constexpr, UNITS: tl.constexpr,
                   T: tl.constexpr, E: tl.constexpr):  # fmt: skip
    """Whole rows of the gradient, zeros included; `write_slots` replaces the slots.

    A shared column gets `factor * (derivative - q_S * dot)`. With `WITH_NORM` every token gets
    `by_norm` times its probability in the whole row.
    """
    split, group = tl.program_id(0) % n_splits, (tl.program_id(0) // n_splits).to(tl.int64)
    unit = group * UNITS + tl.arange(0, UNITS)
    is_unit = unit < n_units
    start = tl.multiple_of(tl.load(starts + unit, mask=is_unit, other=0), ALIGNED)[:, None, None]
    out = tl.load(gradient_starts + unit, mask=is_unit, other=0)
    out = tl.multiple_of(out, ALIGNED)[:, None, None]
    teacher_shift, teacher_norm = _norms(norms, unit, is_unit, 0, n_units)
    student_shift, student_norm = _norms(norms, unit, is_unit, 1, n_units)
    dot = tl.load(dots + unit, mask=is_unit, other=0.0)[:, None, None]
    factor = tl.load(factors + unit, mask=is_unit, other=0.0)[:, None, None]
    if WITH_NORM:
        norm = tl.load(row_norms + unit, mask=is_unit, other=0.0)[:, None, None]
        by = tl.load(by_norm + unit, mask=is_unit, other=0.0)[:, None, None]
    end = tl.minimum(split * per_split + per_split, width)
    for first in range(split * per_split, end, T * E):
        flat = first + tl.arange(0, T * E)
        of_flat = tl.load(column_of_id + flat, mask=flat < end, other=-2)
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


@triton.jit
def write_slots(picked, n_units, by_norm, row_norms, ids, by_id, gradient, gradient_starts,
                WITH_NORM: tl.constexpr, N_SLOTS: tl.constexpr,
                UNITS: tl.constexpr):  # fmt: skip
    """Write the gradient at the slots: sums of `by_id[unit, slot]` over slots of the same id.

    `picked[unit, slot]` are their logits in nats, relative to the shifts: the rows of logits may be
    those of the gradient.
    """
    unit = tl.program_id(0).to(tl.int64) * UNITS + tl.arange(0, UNITS)
    is_unit = unit < n_units
    out = tl.load(gradient_starts + unit, mask=is_unit, other=0)
    for slot in range(N_SLOTS):
        number = tl.load(ids + unit * N_SLOTS + slot, mask=is_unit, other=-1)
        is_slot = number >= 0
        value = tl.zeros([UNITS], tl.float32)
        for other in range(N_SLOTS):
            at = unit * N_SLOTS + other
            is_same = tl.load(ids + at, mask=is_slot, other=-1) == number
            value += tl.load(by_id + at, mask=is_slot & is_same, other=0.0)
        if WITH_NORM:
            x = tl.load(picked + unit * N_SLOTS + slot, mask=is_slot, other=0.0)
            norm = tl.load(row_norms + unit, mask=is_slot, other=0.0)
            by = tl.load(by_norm + unit, mask=is_slot, other=0.0)
            value += by * tl.exp2(x * LOG2E - norm)
        place = gradient + out + number
        tl.store(place, value.to(gradient.dtype.element_ty), mask=is_slot)


@triton.jit
def norm_rows(z, starts, stride, column_of_id, width, scale, out, ALIGNED: tl.constexpr,
              T: tl.constexpr, E: tl.constexpr):  # fmt: skip
    """`out[row]`: shifts and log-normalizers of whole rows, without columns that are no tokens."""
    row = tl.program_id(0)
    start = tl.multiple_of(tl.load(starts + row), ALIGNED)
    top, total = tl.full([1, T], LOWEST, tl.float32), tl.zeros([1, T], tl.float32)
    for first in range(0, width, T * E):
        at = _columns_from(first, T, E)
        is_token = tl.load(column_of_id + at, mask=at < width, other=-2) > -2
        x = tl.load(z + start + at.to(tl.int64) * stride, mask=at < width, other=0.0)
        top, total, _, _, _ = _add_exponentials(x.to(tl.float32), is_token, scale, top, total)
    top_of_all = tl.max(top, 1)
    sums = tl.sum(total * tl.exp2((top - top_of_all[:, None]) * scale), 1)
    at = out + row * 2 + tl.arange(0, 1)
    tl.store(at, top_of_all)
    tl.store(at + 1, tl.log2(sums))


@triton.jit
def write_path_rows(z, starts, stride, column_of_id, width, scale, row_norms, ids, by_norm, by_id,
                    gradient, gradient_starts, per_split, n_splits, ALIGNED: tl.constexpr,
                    T: tl.constexpr, E: tl.constexpr):  # fmt: skip
    """Rows of the gradient of later steps: `by_norm` times probabilities, and `by_id` at one id."""
    split, row = tl.program_id(0) % n_splits, tl.program_id(0) // n_splits
    start = tl.multiple_of(tl.load(starts + row), ALIGNED)
    out = tl.multiple_of(tl.load(gradient_starts + row), ALIGNED)
    shift, norm = tl.load(row_norms + row * 2), tl.load(row_norms + row * 2 + 1)
    number = tl.load(ids + row)
    by, added = tl.load(by_norm + row), tl.load(by_id + row)
    end = tl.minimum(split * per_split + per_split, width)
    for first in range(split * per_split, end, T * E):
        at = first + tl.arange(0, T * E)
        inside = at < end
        is_token = tl.load(column_of_id + at, mask=inside, other=-2) > -2
        x = tl.load(z + start + at.to(tl.int64) * stride, mask=inside, other=0.0)
        value = tl.where(is_token, by * tl.exp2((x.to(tl.float32) - shift) * scale - norm), 0.0)
        value += tl.where(at == number, added, 0.0)
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
def scale(values, count, factor, COLUMNS: tl.constexpr):
    """Multiply values by a factor on the device, unless it is 1."""
    number = tl.load(factor)
    if number != 1.0:
        at = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        value = tl.load(values + at, mask=at < count, other=0.0).to(tl.float32) * number
        tl.store(values + at, value.to(values.dtype.element_ty), mask=at < count)
