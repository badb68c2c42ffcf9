"""Internal: Triton kernels over single offsets and rows of text events.

`weigh_offsets` finds what every offset multiplies the probabilities of its rows by, and what kind
of offset it is; `text_weights` of the back end "torch" has the same formulas as operations on all
offsets. `derive_weights` and `derive_tokens` turn derivatives back through the weights. See
`text_kernels` for names.
"""
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from .text_kernels import CHANGING

#: Rows of `OffsetStat`.
TREE, NEXT_BYTE, ONE_ROW, LEFT_OUT, SPOILED, ENDED, STRADDLING, CONTROL = (
    tl.constexpr(number) for number in range(8)
)
#: Behind every number of a text row.
NO_ROW = tl.constexpr(1 << 62)


@triton.jit
def _log_sources(source, is_source, rows, log_weights, sums, SPLITS: tl.constexpr):
    """Return of sources `[S]` their rows and these rows' log-weights, and the masses of tokens.

    The masses are those of tokens that end at the offset, and of those that go on. The last value
    is the log-weight of both.
    """
    row = tl.load(rows + source, mask=is_source, other=0)
    log_weight = tl.load(log_weights + row, mask=is_source, other=0.0)
    at = sums + (source[:, None] * SPLITS + tl.arange(0, SPLITS)[None, :]) * 2
    ended = tl.sum(tl.load(at, mask=is_source[:, None], other=0.0), 1)
    goes_on = tl.sum(tl.load(at + 1, mask=is_source[:, None], other=0.0), 1)
    log_mass = log_weight + tl.log((ended + goes_on).to(tl.float64))
    return row, log_weight, ended, goes_on, tl.where(is_source, log_mass, float("-inf"))


@triton.jit
def _weight(log_weight, log_mass, log_total):
    """Return weights. Without any mass a weight does not matter, but must be finite."""
    weight = tl.exp(tl.minimum(log_weight - log_total, 80.0))
    return tl.where(log_mass == float("-inf"), 0.0, weight).to(tl.float32)


@triton.jit
def _weigh_side(offset, own, source_ends, source_rows, norms, stops, log_weights, nans_before, sums,
                own_weights, source_weights, sources_ended, stop_masses, offset_of_row,
                SOURCES: tl.constexpr, SPLITS: tl.constexpr):  # fmt: skip
    """Weigh one side of an offset, and store the weights.

    Returns:
        Whether there is a row at the offset; whether there is any mass; whether a row that the
        offset reads holds NaN; the mass of earlier tokens that end at the offset; that of those
        that go on; and the probability of control tokens other than stops.
    """
    row = tl.load(own + offset)
    has_own = row >= 0
    norm = tl.load(norms + row * 3 + 1, mask=has_own, other=0.0)
    stop = tl.load(stops + row, mask=has_own, other=0.0)
    own_total = tl.load(norms + row * 3 + 2, mask=has_own, other=0.0) + stop
    log_row = tl.load(log_weights + row, mask=has_own, other=0.0)
    log_own = tl.where(has_own, log_row + tl.log(own_total.to(tl.float64)), float("-inf"))
    begin, end = tl.load(source_ends + offset), tl.load(source_ends + offset + 1)
    nth = tl.arange(0, SOURCES)
    top, first_row, last_row = log_own, tl.full([], NO_ROW, tl.int64), row
    for first in range(begin, end, SOURCES):
        is_source = first + nth < end
        of_source, _, _, _, log_mass = _log_sources(
            first + nth, is_source, source_rows, log_weights, sums, SPLITS
        )
        top = tl.maximum(top, tl.max(log_mass, 0))
        first_row = tl.minimum(first_row, tl.min(tl.where(is_source, of_source, NO_ROW), 0))
        last_row = tl.maximum(last_row, tl.max(tl.where(is_source, of_source, -1), 0))
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.exp(log_own - top)
    for first in range(begin, end, SOURCES):
        _, _, _, _, log_mass = _log_sources(
            first + nth, first + nth < end, source_rows, log_weights, sums, SPLITS
        )
        total += tl.sum(tl.exp(log_mass - top), 0)
    has_mass = total > 0.0
    log_total = tl.where(has_mass, tl.log(total) + top, 0.0)
    own_weight = _weight(log_row, log_own, log_total)
    tl.store(own_weights + offset, own_weight)
    tl.store(stop_masses + offset, stop * own_weight)
    tl.store(offset_of_row + row, offset, mask=has_own)
    sum_ended, sum_going = 0.0, 0.0
    for first in range(begin, end, SOURCES):
        is_source = first + nth < end
        _, log_weight, ended, goes_on, log_mass = _log_sources(
            first + nth, is_source, source_rows, log_weights, sums, SPLITS
        )
        weight = _weight(log_weight, log_mass, log_total)
        tl.store(source_weights + first + nth, weight, mask=is_source)
        tl.store(sources_ended + first + nth, ended, mask=is_source)
        sum_ended += tl.sum(tl.where(is_source, ended * weight, 0.0), 0)
        sum_going += tl.sum(tl.where(is_source, goes_on * weight, 0.0), 0)
    # A source's weight against the others' depends on all rows in between.
    has_sources = end > begin
    after = tl.load(nans_before + last_row + 1, mask=has_sources, other=0)
    before = tl.load(nans_before + first_row, mask=has_sources, other=0)
    is_spoiled = (has_own & (norm != norm)) | (after > before)
    control = tl.where(has_own, 1.0 - own_total, 0.0)
    return has_own, has_mass, is_spoiled, sum_ended, sum_going, control


@triton.jit(do_not_specialize=CHANGING)
def weigh_offsets(teacher_own, teacher_source_ends, teacher_source_rows, teacher_norms,
                  teacher_stops, teacher_log_weights, teacher_nans_before, teacher_sums,
                  teacher_weights, teacher_source_weights, teacher_sources_ended,
                  teacher_stop_masses, teacher_offset_of_row, student_own, student_source_ends,
                  student_source_rows, student_norms, student_stops, student_log_weights,
                  student_nans_before, student_sums, student_weights, student_source_weights,
                  student_sources_ended, student_stop_masses, student_offset_of_row, epsilon,
                  factors, factor_stride, ended, flags, counted_factors, stats, pitch,
                  SOURCES: tl.constexpr, SPLITS: tl.constexpr):  # fmt: skip
    """Weigh both sides of an offset. Figures of a kind are `pitch` from those of the next one.

    `ended[side, offset]` are masses of earlier rows' tokens that end at the offset.
    `flags[5, offset]` say whether both sides have a row there, whether nodes may be opened, whether
    the offset counts, and whether each side has a row. `counted_factors` are the factors of offsets
    that count, 0 for others. `stats` are the rows of `OffsetStat`.
    """
    offset = tl.program_id(0).to(tl.int64)
    has_teacher, known_teacher, spoiled_teacher, ended_teacher, going_teacher, control_teacher = (
        _weigh_side(
            offset, teacher_own, teacher_source_ends, teacher_source_rows, teacher_norms,
            teacher_stops, teacher_log_weights, teacher_nans_before, teacher_sums, teacher_weights,
            teacher_source_weights, teacher_sources_ended, teacher_stop_masses,
            teacher_offset_of_row, SOURCES, SPLITS,
        )
    )  # fmt: skip
    has_student, known_student, spoiled_student, ended_student, going_student, control_student = (
        _weigh_side(
            offset, student_own, student_source_ends, student_source_rows, student_norms,
            student_stops, student_log_weights, student_nans_before, student_sums, student_weights,
            student_source_weights, student_sources_ended, student_stop_masses,
            student_offset_of_row, SOURCES, SPLITS,
        )
    )  # fmt: skip
    tl.store(ended + offset, ended_teacher)
    tl.store(ended + pitch + offset, ended_student)
    most_ended = tl.maximum(ended_teacher, ended_student)
    straddling = tl.maximum(going_teacher, going_student)
    is_both = has_teacher & has_student
    is_spoiled = spoiled_teacher | spoiled_student
    is_deep = is_both & (straddling <= epsilon)
    counts = known_teacher & known_student & (is_spoiled == 0) & (most_ended <= epsilon)
    tl.store(flags + offset, is_both.to(tl.int8))
    tl.store(flags + pitch + offset, is_deep.to(tl.int8))
    tl.store(flags + 2 * pitch + offset, counts.to(tl.int8))
    tl.store(flags + 3 * pitch + offset, has_teacher.to(tl.int8))
    tl.store(flags + 4 * pitch + offset, has_student.to(tl.int8))
    factor = tl.load(factors + offset * factor_stride).to(tl.float32)
    tl.store(counted_factors + offset, tl.where(counts, factor, 0.0))
    of_offset = stats + offset
    tl.store(of_offset + TREE * pitch, (counts & is_deep).to(tl.float32))
    is_next_byte = counts & is_both & (is_deep == 0)
    tl.store(of_offset + NEXT_BYTE * pitch, is_next_byte.to(tl.float32))
    tl.store(of_offset + ONE_ROW * pitch, (counts & (is_both == 0)).to(tl.float32))
    is_left_out = (counts == 0) & (is_spoiled == 0)
    tl.store(of_offset + LEFT_OUT * pitch, is_left_out.to(tl.float32))
    tl.store(of_offset + SPOILED * pitch, is_spoiled.to(tl.float32))
    tl.store(of_offset + ENDED * pitch, most_ended)
    tl.store(of_offset + STRADDLING * pitch, straddling)
    tl.store(of_offset + CONTROL * pitch, control_teacher)
    tl.store(of_offset + (CONTROL + 1) * pitch, control_student)


@triton.jit
def _by_log(source, sums, first_source, offsets, by_root, ended, weights, SPLITS: tl.constexpr):
    """Return the derivative by the logarithm of a source's weight."""
    at = sums + (source - first_source) * SPLITS + tl.arange(0, SPLITS)
    by_mass = tl.sum(tl.load(at), 0)
    by_mass += tl.load(by_root + tl.load(offsets + source)) * tl.load(ended + source)
    return (by_mass * tl.load(weights + source)).to(tl.float64)


@triton.jit(do_not_specialize=CHANGING)
def derive_weights(first_row, first_source, first_place, end_place, sources_of_row, source_order,
                   source_ends, offsets, place, offset_of_row, sums, by_root, ended, weights, out,
                   SPLITS: tl.constexpr):  # fmt: skip
    """`out[row of the chunk]`: derivatives by the logarithms of rows' weights.

    To scale the weights of all rows of an offset changes nothing, so the derivative by its own
    row's is minus the sum of its sources'.
    """
    row = first_row + tl.program_id(0)
    by = tl.full([], 0.0, tl.float64)
    for nth in range(tl.load(sources_of_row + row), tl.load(sources_of_row + row + 1)):
        source = tl.load(source_order + nth)
        at = tl.load(place + tl.load(offsets + source))
        if (at >= first_place) & (at < end_place):
            by += _by_log(source, sums, first_source, offsets, by_root, ended, weights, SPLITS)
    offset = tl.load(offset_of_row + row)
    if offset >= 0:
        at = tl.load(place + offset)
        if (at >= first_place) & (at < end_place):
            for source in range(tl.load(source_ends + offset), tl.load(source_ends + offset + 1)):
                by -= _by_log(source, sums, first_source, offsets, by_root, ended, weights, SPLITS)
    tl.store(out + tl.program_id(0), by)


@triton.jit(do_not_specialize=CHANGING)
def derive_tokens(by_weight, tokens, first_row, n_rows, by_norm, by_token, ROWS: tl.constexpr):
    """Find the derivatives by the log-normalizers of rows and by their realized tokens.

    A realized token is part of the weights of all later rows.
    """
    nth = tl.arange(0, ROWS)
    after = tl.full([], 0.0, tl.float64)
    for first in range(0, n_rows, ROWS):
        is_row = first + nth < n_rows
        after += tl.sum(tl.load(by_weight + first + nth, mask=is_row, other=0.0), 0)
    for first in range(0, n_rows, ROWS):
        is_row = first + nth < n_rows
        by = tl.load(by_weight + first + nth, mask=is_row, other=0.0)
        of_token = after - tl.cumsum(by, 0)
        token = tl.load(tokens + first_row + first + nth, mask=is_row, other=-1)
        of_token = tl.where(token >= 0, of_token, 0.0)
        tl.store(by_norm + first + nth, (by + of_token).to(tl.float32), mask=is_row)
        tl.store(by_token + first + nth, of_token.to(tl.float32), mask=is_row)
        after -= tl.sum(by, 0)
