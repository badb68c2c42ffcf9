"""Internal: Triton kernels over the slots of units: stops, realized units, and what they change.

A unit has at most `SLOTS` slots. The first four are shared columns: that of the stops, those of the
teacher's and the student's first tokens, and that of the realized text (`place_slots`). Then come
the other stops, and in slot `REALIZED` the realized unit. A program has one unit, so a path's
tokens are read one after another.

`finish_side` makes one model's scores from the sums over columns, `compare_units` compares both
models and turns the derivatives back, and `write_slots` writes them. The formulas are those of
`simct_align.loss.scores`; scores are in nats relative to the row's shift, whole rows'
log-normalizers too. See `kernels` for all other names.
"""
# ruff: noqa: N803, SIM109

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import CHANGING, FLOOR, LN2, LOG2E, LOWEST, _row_start, _terms

MEAN, SUM, EVENT, MEAN_LOGIT = (tl.constexpr(number) for number in range(4))
#: `EVENT_FLOOR` of the formulas.
EVENT_FLOOR = tl.constexpr(1.0e-6)
#: Rows of `UnitStat`.
KEPT, TEACHER_SHARED, KEPT_SPECIAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(7)
#: `UnitKind.SPECIAL`.
SPECIAL = tl.constexpr(2)


@triton.jit
def _exp(x):
    return tl.exp2(x * LOG2E)


@triton.jit
def _log(x):
    return tl.log2(x) * LN2


@triton.jit
def _log_sum(left, right):
    """Return the logarithm of a sum from the logarithms of its terms."""
    top = tl.maximum(left, right)
    top = tl.where(top == float("-inf"), 0.0, top)
    return top + _log(_exp(left - top) + _exp(right - top))


@triton.jit
def _log_sum_with(x, one):
    """Return the logarithm of a sum of terms `[SLOTS]` and one more."""
    top = tl.maximum(tl.max(x, 0), one)
    top = tl.where(top == float("-inf"), 0.0, top)
    return top + _log(tl.sum(_exp(x - top), 0) + _exp(one - top))


@triton.jit
def _one_less(x):
    """Return `1 - exp(x)` for `x <= 0`; near 0 the difference would lose digits."""
    series = 1.0 + x / 8 * (1.0 + x / 9)
    series = 1.0 + x / 5 * (1.0 + x / 6 * (1.0 + x / 7 * series))
    series = -x * (1.0 + x / 2 * (1.0 + x / 3 * (1.0 + x / 4 * series)))
    return tl.where(x > -0.5, series, 1.0 - _exp(x))


@triton.jit
def _at(values, slot, number):
    """Return the value in one slot, 0 if there is no slot of this number."""
    return tl.sum(tl.where(slot == number, values, 0.0), 0)


@triton.jit
def _first_code(packed, id_at, offsets_at, number, is_multi, code_of_id):
    """Return the shared columns of the paths' first tokens, -1 where there is none."""
    step = tl.load(packed + offsets_at + number, mask=is_multi, other=0)
    token = tl.load(packed + id_at + step, mask=is_multi, other=0)
    return tl.maximum(tl.load(code_of_id + token, mask=is_multi, other=-1), -1)


@triton.jit(do_not_specialize=(*CHANGING, "teacher_id_at", "teacher_offsets_at", "student_id_at",
                               "student_offsets_at"))  # fmt: skip
def place_slots(packed, teacher_id_at, teacher_offsets_at, student_id_at, student_offsets_at,
                teacher_codes, student_codes, realized_column, stop_column, n_shared, n_units,
                skips, slot_of_skip, UNITS: tl.constexpr):  # fmt: skip
    """`skips[unit, 4]`, and the slots of these columns, which may be one.

    A column is the slot of the first skip that names it, and no skip names it a second time.
    """
    unit = tl.program_id(0).to(tl.int64) * UNITS + tl.arange(0, UNITS)
    is_unit = unit < n_units
    is_multi = is_unit & (unit >= n_shared)
    number = unit - n_shared
    first = tl.full([UNITS], 0, tl.int32) + stop_column
    second = _first_code(packed, teacher_id_at, teacher_offsets_at, number, is_multi, teacher_codes)
    third = _first_code(packed, student_id_at, student_offsets_at, number, is_multi, student_codes)
    fourth = tl.load(realized_column + number, mask=is_multi, other=-1).to(tl.int32)
    slot_second = tl.where(second == first, 0, 1)
    slot_third = tl.where(third == first, 0, tl.where(third == second, slot_second, 2))
    slot_fourth = tl.where(fourth == second, slot_second, tl.where(fourth == third, slot_third, 3))
    slot_fourth = tl.where(fourth == first, 0, slot_fourth)
    at, out = skips + unit * 4, slot_of_skip + unit * 4
    tl.store(at, first, mask=is_unit)
    tl.store(at + 1, tl.where(slot_second == 1, second, -1), mask=is_unit)
    tl.store(at + 2, tl.where(slot_third == 2, third, -1), mask=is_unit)
    tl.store(at + 3, tl.where(slot_fourth == 3, fourth, -1), mask=is_unit)
    tl.store(out + 1, tl.where(second < 0, -1, slot_second), mask=is_unit)
    tl.store(out + 2, tl.where(third < 0, -1, slot_third), mask=is_unit)
    tl.store(out + 3, tl.where(fourth < 0, -1, slot_fourth), mask=is_unit)


@triton.jit(do_not_specialize=(*CHANGING, "kind_at", "step_row_at"))
def finish_side(z, length, batch_stride, row_stride, stride, packed, row_at, kind_at, offsets_at,
                step_row_at, id_at, first_unit, n_shared, n_units, ids, n_columns, n_extra,
                code_of_id, skips, slot_of_skip, step_norms, shared_norms, sums, differences,
                n_splits, scale, inverse, min_mass, norms, scores, slot_ids, picked, paths,
                of_differences, stats, SIDE: tl.constexpr, SCORE: tl.constexpr,
                REALIZED: tl.constexpr, MULTI: tl.constexpr, MASS: tl.constexpr,
                FILTERS: tl.constexpr, WITH_DIFFERENCES: tl.constexpr, SPLITS: tl.constexpr,
                SLOTS: tl.constexpr):  # fmt: skip
    """One model's scores at the slots, `scores[unit, SLOTS]`, its norms and its masses.

    Of the teacher (`SIDE` 0) also whether a unit is kept. Of the student also `slot_ids` and
    `picked`, the tokens of the slots and their logits, with the path's first token in slot
    `REALIZED`; `paths[unit, 3]`: what `compare_units` needs of a realized path; and, with
    `WITH_DIFFERENCES`, `of_differences[unit]`, the columns' part of the reverse KL.
    """
    unit = first_unit + tl.program_id(0).to(tl.int64)
    split, slot = tl.arange(0, SPLITS), tl.arange(0, SLOTS)
    is_split = split < n_splits
    row = tl.load(packed + row_at + unit)
    start = _row_start(row, length, batch_stride, row_stride)

    at_split = tl.program_id(0) * n_splits + split
    top = tl.load(sums + at_split * 2, mask=is_split, other=LOWEST)
    total = tl.load(sums + at_split * 2 + 1, mask=is_split, other=0.0)
    skip = tl.load(skips + unit * 4 + slot, mask=slot < 4, other=-1)
    is_other = (slot >= 4) & (slot < 4 + n_extra)
    column = tl.where(slot < 4, skip, n_columns + slot - 4)
    number = tl.load(ids + column, mask=(slot < 4 + n_extra) & (column >= 0), other=-1)
    x = tl.load(z + start + number * stride, mask=number >= 0, other=float("-inf")).to(tl.float32)
    # Near the largest logit of both: relative to another, that one would lose digits.
    shift = tl.maximum(tl.max(top, 0), tl.max(x, 0))
    shift = tl.where(shift <= 0.1 * LOWEST, 0.0, shift)
    x = (x - shift) * inverse
    of_columns = _log(tl.sum(total * tl.exp2((top - shift) * scale), 0))
    mass_of_all = _log_sum_with(x, of_columns)

    # All stops are one candidate, in the slot of the first.
    is_stop = (slot == 0) | is_other
    score = x
    if n_extra > 0:
        stops = _log_sum_with(tl.where(is_stop, x, float("-inf")), float("-inf"))
        score = tl.where(slot == 0, stops, tl.where(is_other, float("-inf"), x))
    number = number.to(tl.int32)
    norm_of_row, realized_mass = 0.0, 0.0
    if MULTI:
        begin = tl.load(packed + offsets_at + unit - n_shared)
        end = tl.load(packed + offsets_at + unit - n_shared + 1)
        first_id = tl.load(packed + id_at + begin)
        first = tl.load(z + start + first_id * stride).to(tl.float32)
        first = (first - shift) * inverse
        log_rest, rest_logits = 0.0, 0.0
        for step in range(begin + 1, end):
            step_row = tl.load(packed + step_row_at + step)
            at_row = _row_start(step_row, length, batch_stride, row_stride)
            logit = tl.load(z + at_row + tl.load(packed + id_at + step) * stride).to(tl.float32)
            relative = (logit - tl.load(step_norms + step * 2)) * inverse
            log_rest += relative - tl.load(step_norms + step * 2 + 1) * LN2
            rest_logits += logit * inverse
        norm_of_row = (tl.load(step_norms + begin * 2) - shift) * inverse
        norm_of_row += tl.load(step_norms + begin * 2 + 1) * LN2
        tokens = (end - begin).to(tl.float32)
        slot_of_first = tl.load(slot_of_skip + unit * 4 + 1 + SIDE)
        target = tl.load(slot_of_skip + unit * 4 + 3)
        share, odds = 0.0, 0.0
        if SCORE == MEAN or SCORE == MEAN_LOGIT:
            if SCORE == MEAN:
                own = (first + log_rest - norm_of_row) / tokens + norm_of_row
            else:
                # A mean of logits moves by the shift as the others do.
                own = (first + rest_logits + (1.0 - tokens) * shift * inverse) / tokens
            score = tl.where(slot == target, float("-inf"), score)
        else:
            own = first + log_rest
            if SCORE == EVENT:
                is_child = (slot_of_first >= 0) & (tokens > 1.0)
                left = _one_less(log_rest)
                floored = tl.maximum(left, EVENT_FLOOR)
                score = tl.where((slot == slot_of_first) & is_child, score + _log(floored), score)
                odds = tl.where(is_child & (left > EVENT_FLOOR), _exp(log_rest) / floored, 0.0)
            if target >= 0:
                at_target = _at(score, slot, target)
                if slot_of_first != target:
                    merged = _log_sum(at_target, own)
                    share = tl.where(merged == float("-inf"), 0.0, _exp(own - merged))
                    score = tl.where(slot == target, merged, score)
            own = tl.where(target >= 0, float("-inf"), own)
        score = tl.where(slot == REALIZED, own, score)
        number = tl.where(slot == REALIZED, first_id.to(tl.int32), number)
        x = tl.where(slot == REALIZED, first, x)
        # The probability of a shared token includes that of paths that begin with it.
        realized_mass = _exp(first - norm_of_row + log_rest)
        realized_mass = tl.where(tl.load(code_of_id + first_id) >= 0, 0.0, realized_mass)
        if SIDE == 1:
            tl.store(paths + unit * 3, norm_of_row)
            tl.store(paths + unit * 3 + 1, share)
            tl.store(paths + unit * 3 + 2, odds)
    elif MASS or FILTERS:
        norm_of_row = (tl.load(shared_norms + unit * 2) - shift) * inverse
        norm_of_row += tl.load(shared_norms + unit * 2 + 1) * LN2

    at_slots = unit * SLOTS + slot
    tl.store(scores + at_slots, score)
    if SIDE == 1:
        tl.store(slot_ids + at_slots, number)
        tl.store(picked + at_slots, x)
    norm = _log_sum_with(score, of_columns) * LOG2E
    tl.store(norms + SIDE * 2 * n_units + unit, shift)
    tl.store(norms + (SIDE * 2 + 1) * n_units + unit, norm)
    if WITH_DIFFERENCES:
        difference = tl.load(differences + at_split, mask=is_split, other=0.0)
        # Differences are to logits relative to the maximum of their part.
        lower = top - shift
        relative = tl.exp2(lower * scale - norm)
        difference += lower * scale * total
        difference = tl.sum(difference * relative, 0) - tl.sum(total * relative, 0) * norm
        tl.store(of_differences + unit, difference * LN2)

    mass = _exp(mass_of_all - norm_of_row)
    if MASS or FILTERS:
        at_mass = stats + (TEACHER_SHARED + 3 * SIDE) * n_units + unit
        tl.store(at_mass, mass)
        tl.store(at_mass + n_units, mass + realized_mass)
        tl.store(at_mass + 2 * n_units, mass + realized_mass)
    if SIDE == 0:
        kept = 1.0
        if FILTERS:
            kept = tl.where(mass + realized_mass >= min_mass, 1.0, 0.0)
        tl.store(stats + KEPT * n_units + unit, kept)
        is_special = tl.load(packed + kind_at + unit) == SPECIAL
        tl.store(stats + KEPT_SPECIAL * n_units + unit, tl.where(is_special, kept, 0.0))


@triton.jit(do_not_specialize=(*CHANGING, "weight_stride"))
def compare_units(packed, offsets_at, first_unit, n_shared, n_units, n_extra, teacher_scores,
                  student_scores, norms, of_columns, n_splits, weights, weight_stride, inverse,
                  weight, log_weight, log_rest, slot_of_skip, slot_ids, picked, paths, stats,
                  per_unit, figures, by_slot, by_rest, DIVERGENCE: tl.constexpr,
                  WITH_DIFFERENCES: tl.constexpr, GRADIENT: tl.constexpr, SCORE: tl.constexpr,
                  REALIZED: tl.constexpr, MULTI: tl.constexpr, SPLITS: tl.constexpr,
                  SLOTS: tl.constexpr):  # fmt: skip
    """Divergences of a chunk, `per_unit`, and with `GRADIENT` their derivatives.

    `of_columns` are the columns' parts: `[unit]` of the reverse KL with `WITH_DIFFERENCES`, else
    `[unit of the chunk, split, 2]` values and derivatives. `figures` are those that
    `write_gradient` reads, `by_slot[unit, SLOTS]` the gradient at the tokens of the slots, and
    `by_rest` the derivatives by the sums over later steps.
    """
    unit = first_unit + tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    at_slots = unit * SLOTS + slot
    log_teacher = tl.load(teacher_scores + at_slots) * LOG2E - tl.load(norms + n_units + unit)
    score = tl.load(student_scores + at_slots)
    log_student = score * LOG2E - tl.load(norms + 3 * n_units + unit)
    values, derivatives = _terms(
        tl.maximum(log_teacher, FLOOR), tl.maximum(log_student, FLOOR), weight, log_weight,
        log_rest, DIVERGENCE,
    )  # fmt: skip
    if WITH_DIFFERENCES:
        value = tl.load(of_columns + unit)
        dot = value
    else:
        split = tl.arange(0, SPLITS)
        at_split = of_columns + (tl.program_id(0) * n_splits + split) * 2
        value = tl.sum(tl.load(at_split, mask=split < n_splits, other=0.0), 0)
        dot = tl.sum(tl.load(at_split + 1, mask=split < n_splits, other=0.0), 0)
    value += tl.sum(values, 0)
    dot += tl.sum(derivatives, 0)
    kept = tl.load(stats + KEPT * n_units + unit)
    # A unit that is left out adds exactly 0, even if its divergence is not finite.
    tl.store(per_unit + unit, tl.where(kept > 0.0, value, 0.0))
    if GRADIENT:
        factor = tl.load(weights + unit * weight_stride) * kept
        by = (derivatives - tl.exp2(log_student) * dot) * factor
        x = tl.load(picked + at_slots)
        by_norm, norm_of_row = 0.0, 0.0
        if MULTI:
            norm_of_row = tl.load(paths + unit * 3)
            own = _at(by, slot, REALIZED)
            if SCORE == MEAN or SCORE == MEAN_LOGIT:
                begin = tl.load(packed + offsets_at + unit - n_shared)
                end = tl.load(packed + offsets_at + unit - n_shared + 1)
                by_first = own / (end - begin).to(tl.float32)
                rest = by_first
                if SCORE == MEAN:
                    by_norm = own - by_first
            else:
                target = tl.load(slot_of_skip + unit * 4 + 3)
                share = tl.load(paths + unit * 3 + 1)
                slot_of_first = tl.load(slot_of_skip + unit * 4 + 2)
                by_first = own + share * _at(by, slot, target)
                rest = by_first
                if SCORE == EVENT:
                    rest = by_first - _at(by, slot, slot_of_first) * tl.load(paths + unit * 3 + 2)
                by = tl.where(slot == target, (1.0 - share) * by, by)
            by = tl.where(slot == REALIZED, by_first, by)
            tl.store(by_rest + unit - n_shared, rest * inverse)
        if n_extra > 0:
            # The stops' scores are those of the merged one, each by its share.
            is_stop = (slot == 0) | ((slot >= 4) & (slot < 4 + n_extra))
            stops = _at(score, slot, 0)
            shares = tl.where(stops == float("-inf"), 0.0, _exp(x - stops))
            by = tl.where(is_stop, _at(by, slot, 0) * shares, by)
        # Several slots may be one token.
        number = tl.load(slot_ids + at_slots)
        is_same = number[:, None] == number[None, :]
        found = tl.sum(tl.where(is_same, by[None, :], 0.0), 1)
        if MULTI and SCORE == MEAN:
            found += by_norm * _exp(x - norm_of_row)
            tl.store(figures + 2 * n_units + unit, by_norm * inverse)
            tl.store(figures + 3 * n_units + unit, norm_of_row * LOG2E)
        tl.store(by_slot + at_slots, found * inverse)
        tl.store(figures + unit, dot)
        tl.store(figures + n_units + unit, factor * inverse)


@triton.jit(do_not_specialize=CHANGING)
def write_slots(packed, row_at, first_unit, end_unit, slot_ids, by_slot, gradient, width,
                UNITS: tl.constexpr, SLOTS: tl.constexpr):  # fmt: skip
    """Write the gradient at the tokens of the slots."""
    place = tl.program_id(0).to(tl.int64) * UNITS * SLOTS + tl.arange(0, UNITS * SLOTS)
    unit = first_unit + place // SLOTS
    is_unit = unit < end_unit
    at = first_unit * SLOTS + place
    number = tl.load(slot_ids + at, mask=is_unit, other=-1)
    row = tl.load(packed + row_at + unit, mask=is_unit, other=0)
    value = tl.load(by_slot + at, mask=is_unit, other=0.0)
    out = gradient + row * width + number
    tl.store(out, value.to(gradient.dtype.element_ty), mask=number >= 0)
