"""Internal: Triton kernels over text events.

Kernels work on *lanes*: the offsets of a chunk, `UNITS` in a group. What either side says at the
offsets of a chunk is collected in its *slots*, `[group, slot, lane]`: see `TreeTensors`. A program
then works on a block of nodes and a group of lanes; sums over the subtrees that end in a block are
products with a matrix of zeros and ones, which only add, so that small masses keep their digits.
`text_blocks` describes blocks and spans.

A row's tokens have the probabilities `2^((z - shift) * scale - norm)`; `norms` has, for every text
row, the shift, the binary log-normalizer, and the probability of all text tokens.

`slot_codes` says what the first `n_codes` logit columns are: see `TextSideTable`. Other columns are
no tokens. `place` has the place of every offset in the order of the lanes.
"""
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from ... import text_layout
from .kernels import FLOOR, LN2, LOWEST, _add_exponentials, _columns_from, _terms

#: The share of an offset's mass below which the masses of nodes are not told apart.
NEGLIGIBLE = tl.constexpr(1e-12)
SEVERAL, STOP, NO_TOKEN = (
    tl.constexpr(code) for code in (text_layout.SEVERAL, text_layout.STOP, text_layout.NO_TOKEN)
)
_NODE = tl.constexpr(0x7FFFFFFF)
#: Numbers that differ from batch to batch, or from chunk to chunk, and sections of the index, which
#: begin anywhere in it: no kernel is compiled anew for them.
CHANGING = (
    "first_row", "end_row", "first_place", "end_place", "first_source", "n_lanes", "n_rows",
    "n_splits", "factor_stride", "own", "rows", "tokens", "flat_rows", "firsts", "ends", "exacts",
    "first_suffixes", "source_ends",
    *(
        f"{side}_{section}"
        for side in ("teacher", "student")
        for section in ("own", "source_ends", "source_rows")
    ),
)  # fmt: skip
#: Sign, exponent and the first 10 bits of a float32's fraction.
HIGH_BITS = tl.constexpr(-(1 << 13))
#: What the slots keep in place of `dD/dq_S` where the student has no mass, and where a slot belongs
#: to the root's leaf. Powers of two survive products in parts.
NO_MASS, OF_ROOT, LARGEST = (
    tl.constexpr(2.0**126),
    tl.constexpr(-(2.0**126)),
    tl.constexpr(2.0**125),
)


@triton.jit
def _probability(z, shift, norm, scale):
    """Return probabilities, 0 in a row that holds NaN."""
    p = tl.exp2((z.to(tl.float32) - shift) * scale - norm)
    return tl.where(p == p, p, 0.0)


@triton.jit
def _lanes(group, order, first_place, end_place, UNITS: tl.constexpr):
    """Return the lanes, their offsets, and which of them are offsets of the chunk."""
    lane = tl.arange(0, UNITS)
    place = first_place + group.to(tl.int32) * UNITS + lane
    is_offset = place < end_place
    return lane, tl.load(order + place, mask=is_offset, other=0), is_offset


@triton.jit(do_not_specialize=CHANGING)
def sum_text_rows(z, starts, stride, slot_codes, n_codes, scale, first_row, tokens, stops, n_stops,
                  norms, stop_masses, log_probs, ALIGNED: tl.constexpr, T: tl.constexpr,
                  E: tl.constexpr, STOPS: tl.constexpr):  # fmt: skip
    """`norms[row]` of whole rows, the mass of the stops, and the realized token's log-probability.

    The last is float64, for sums over many rows, and in nats. Masses of a row that holds NaN are 0,
    and so is its log-probability, and that of a row without a token.
    """
    row = first_row + tl.program_id(0)
    start = tl.multiple_of(tl.load(starts + row), ALIGNED)
    top, total = tl.full([1, T], LOWEST, tl.float32), tl.zeros([1, T], tl.float32)
    text = tl.zeros([1, T], tl.float32)
    for first in range(0, n_codes, T * E):
        at = _columns_from(first, T, E)
        slot = tl.load(slot_codes + at, mask=at < n_codes, other=NO_TOKEN)
        x = tl.load(z + start + at.to(tl.int64) * stride, mask=at < n_codes, other=0.0)
        top, total, _, exponentials, factor = _add_exponentials(
            x.to(tl.float32), slot != NO_TOKEN, scale, top, total
        )
        text = text * factor + tl.sum(tl.where(slot >= 0, exponentials, 0.0), 2)
    shift = tl.max(tl.max(top, 1), 0)
    lower = tl.exp2((top - shift) * scale)
    total_of_all = tl.sum(tl.sum(total * lower, 1), 0)
    norm = tl.log2(total_of_all)
    text_of_all = tl.sum(tl.sum(text * lower, 1), 0) / total_of_all
    at = norms + row * 3
    tl.store(at, shift)
    tl.store(at + 1, norm)
    tl.store(at + 2, tl.where(norm == norm, text_of_all, 0.0))
    nth = tl.arange(0, STOPS)
    stop = tl.load(stops + nth, mask=nth < n_stops, other=0)
    x = tl.load(z + start + stop * stride, mask=nth < n_stops, other=float("-inf"))
    tl.store(stop_masses + row, tl.sum(_probability(x, shift, norm, scale), 0))
    token = tl.load(tokens + row)
    x = tl.load(z + start + token * stride, mask=token >= 0, other=0.0).to(tl.float32)
    log_prob = tl.maximum(((x - shift) * scale - norm).to(tl.float64) * LN2, FLOOR * LN2)
    is_known = (token >= 0) & (norm == norm)
    tl.store(log_probs + row, tl.where(is_known, log_prob, 0.0))


@triton.jit
def _source_tokens(z, starts, norms, stride, token_ids, row, place, inside, scale):
    """Return the ids of tokens of a source, by their places in token order, and probabilities."""
    ids = tl.load(token_ids + place, mask=inside, other=0)
    start = tl.load(starts + row)
    x = tl.load(z + start + ids.to(tl.int64) * stride, mask=inside, other=0.0)
    p = _probability(x, tl.load(norms + row * 3), tl.load(norms + row * 3 + 1), scale)
    return ids, tl.where(inside, p, 0.0)


@triton.jit
def _taken(own, tokens, row, offset):
    """Return the realized token of a source's row if it ends at the offset, else -1."""
    return tl.load(tokens + row, mask=tl.load(own + offset) == row + 1, other=-1)


@triton.jit(do_not_specialize=CHANGING)
def sum_sources(z, starts, norms, stride, token_ids, rows, firsts, ends, exacts, offsets, own,
                tokens, scale, first_row, end_row, out, SPLITS: tl.constexpr,
                TILE: tl.constexpr):  # fmt: skip
    """`out[source, split]`: probability of tokens that end at the offset, and that go on.

    Sources of other rows than those from `first_row` to `end_row` are left as they are.
    """
    source, split = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + source)
    taken = _taken(own, tokens, row, tl.load(offsets + source))
    is_read = (row >= first_row) & (row < end_row)
    begin = tl.load(firsts + source)
    end = tl.where(is_read, tl.load(ends + source), begin)
    going = begin + tl.load(exacts + source)
    ended, goes_on = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
    for first in range(begin + split * TILE, end, SPLITS * TILE):
        place = first + tl.arange(0, TILE)
        ids, p = _source_tokens(z, starts, norms, stride, token_ids, row, place, place < end, scale)
        # The realized token, which ends at its own boundary, is in no mass.
        ended += tl.where((place < going) & (ids != taken), p, 0.0)
        goes_on += tl.where(place >= going, p, 0.0)
    at = out + (source * SPLITS + split) * 2
    tl.store(at, tl.sum(ended, 0), mask=is_read)
    tl.store(at + 1, tl.sum(goes_on, 0), mask=is_read)


@triton.jit(do_not_specialize=CHANGING)
def add_rows(z, starts, norms, stride, slot_codes, n_codes, own, weights, order, first_place,
             end_place, scale, slots, n_slots, ALIGNED: tl.constexpr, UNITS: tl.constexpr,
             COLUMNS: tl.constexpr):  # fmt: skip
    """Add the own rows of the lanes to slots that are zero."""
    ids = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    group = tl.program_id(1).to(tl.int64)
    lane, offset, is_offset = _lanes(group, order, first_place, end_place, UNITS)
    row = tl.load(own + offset, mask=is_offset, other=-1)
    has_row = row >= 0
    start = tl.multiple_of(tl.load(starts + row, mask=has_row, other=0), ALIGNED)
    shift = tl.load(norms + row * 3, mask=has_row, other=0.0)
    norm = tl.load(norms + row * 3 + 1, mask=has_row, other=0.0)
    weight = tl.load(weights + offset, mask=has_row, other=0.0)
    slot = tl.load(slot_codes + ids, mask=ids < n_codes, other=NO_TOKEN)
    x = tl.load(
        z + start[:, None] + ids[None, :].to(tl.int64) * stride,
        mask=has_row[:, None] & (ids < n_codes)[None, :], other=0.0, eviction_policy="evict_first",
    )  # fmt: skip
    p = _probability(x, shift[:, None], norm[:, None], scale) * weight[:, None]
    mass = tl.trans(tl.where(has_row[:, None], p, 0.0))
    is_several = (slot & SEVERAL) != 0
    at = slots + (group * n_slots + (slot & ~SEVERAL))[:, None] * UNITS + lane[None, :]
    tl.store(at, mass, mask=((slot >= 0) & (is_several == 0))[:, None])
    tl.atomic_add(at, mass, mask=((slot >= 0) & is_several)[:, None], sem="relaxed")


@triton.jit
def _source_slots(suffixes, at, inside, n_nodes):
    """Return the slots that tokens of sources go on in, and their nodes."""
    suffix = tl.load(suffixes + at, mask=inside, other=0)
    node = suffix & _NODE
    return tl.where(suffix < 0, n_nodes, 0) + node, node


@triton.jit(do_not_specialize=CHANGING)
def add_sources(z, starts, norms, stride, token_ids, suffixes, rows, firsts, ends, exacts,
                first_suffixes, offsets, place_of, weights, first_source, first_place, scale, slots,
                n_nodes, child_of_node, reached, n_children, WITH_REACHED: tl.constexpr,
                UNITS: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Add the straddling tokens of the sources to the slots.

    With `WITH_REACHED` also set `reached[offset, child]` where they begin with a child of the root.
    """
    source, split = first_source + tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(firsts + source), tl.load(ends + source)
    going = begin + tl.load(exacts + source)
    row, weight = tl.load(rows + source), tl.load(weights + source)
    from_first = tl.load(place_of + tl.load(offsets + source)) - first_place
    group, lane = from_first // UNITS, from_first % UNITS
    of_lane = slots + group * 2 * n_nodes * UNITS + lane
    first_suffix = tl.load(first_suffixes + source) - going
    for first in range(going + split * TILE, end, SPLITS * TILE):
        place = first + tl.arange(0, TILE)
        inside = place < end
        _, p = _source_tokens(z, starts, norms, stride, token_ids, row, place, inside, scale)
        slot, node = _source_slots(suffixes, first_suffix + place, inside, n_nodes)
        tl.atomic_add(of_lane + slot * UNITS, p * weight, mask=inside, sem="relaxed")
        if WITH_REACHED:
            child = tl.load(child_of_node + node, mask=inside, other=-1)
            ones = tl.full([TILE], 1, tl.int8)
            tl.store(reached + from_first * n_children + child, ones, mask=child >= 0)


@triton.jit
def _slot_masses(slots, group, node, is_node, n_nodes, UNITS: tl.constexpr):
    """Return masses `[BLOCK, UNITS]` of what goes on after nodes' strings, and of the strings."""
    at = (group * 2 * n_nodes + node)[:, None] * UNITS + tl.arange(0, UNITS)[None, :]
    goes_on = tl.load(slots + at, mask=is_node[:, None], other=0.0)
    return goes_on, tl.load(slots + at + n_nodes * UNITS, mask=is_node[:, None], other=0.0)


@triton.jit
def _bits(is_true, UNITS: tl.constexpr):
    """Return `[n]` the lanes `[n, UNITS]` as bits."""
    return tl.sum(is_true.to(tl.int32) << tl.arange(0, UNITS)[None, :], 1)


@triton.jit
def _sum_where(is_member, values):
    """Return sums `[n, UNITS]` of the values `[BLOCK, UNITS]` over the members `[n, BLOCK]`.

    Tensor cores read 11 bits of a factor. Two parts have 22 bits of a value, and what they are
    multiplied by is 0 or 1.
    """
    members = is_member.to(tl.float32)
    high = (values.to(tl.int32, bitcast=True) & HIGH_BITS).to(tl.float32, bitcast=True)
    sums = tl.dot(members, values - high, input_precision="tf32")
    return tl.dot(members, high, sums, input_precision="tf32")


@triton.jit
def _subtree_sums(node, end, mass):
    """Return `[BLOCK, UNITS]` the masses of subtrees, of their nodes in the block."""
    return _sum_where((node[None, :] >= node[:, None]) & (node[None, :] < end[:, None]), mass)


@triton.jit
def _store_sums(mass, node, of_side, lane, block, n_blocks, block_sums, first_span, end_span,
                span_node, n_spans, span_masses, first_point, end_point, end_node, n_ends,
                end_sums, UNITS: tl.constexpr):  # fmt: skip
    """Store the sum of a block, and its parts that spans begin and end with."""
    tl.store(block_sums + (of_side * n_blocks + block) * UNITS + lane, tl.sum(mass, 0))
    for span in range(first_span, end_span):
        is_part = node >= tl.load(span_node + span)
        part = tl.sum(tl.where(is_part[:, None], mass, 0.0), 0)
        tl.store(span_masses + (of_side * n_spans + span) * UNITS + lane, part)
    for point in range(first_point, end_point):
        is_part = node < tl.load(end_node + point)
        part = tl.sum(tl.where(is_part[:, None], mass, 0.0), 0)
        tl.store(end_sums + (of_side * n_ends + point) * UNITS + lane, part)


@triton.jit(do_not_specialize=CHANGING)
def close_nodes(teacher, student, n_nodes, n_blocks, parent, subtree_end, same, order, first_place,
                end_place, both, deep, epsilon, closed, block_sums, spans, span_of_node, span_node,
                n_spans, span_masses, end_points, end_node, n_ends, end_sums,
                BLOCK: tl.constexpr, UNITS: tl.constexpr):  # fmt: skip
    """Close the nodes of a block but spans, and sum up what the masses of spans are made of."""
    block = tl.program_id(0) % n_blocks
    group = (tl.program_id(0) // n_blocks).to(tl.int64)
    lane, offset, is_offset = _lanes(group, order, first_place, end_place, UNITS)
    is_both = tl.load(both + offset, mask=is_offset, other=0) != 0
    is_deep = tl.load(deep + offset, mask=is_offset, other=0) != 0
    node = block * BLOCK + tl.arange(0, BLOCK)
    is_node = node < n_nodes
    span = tl.load(span_of_node + node, mask=is_node, other=-1)
    is_child = (tl.load(parent + node, mask=is_node, other=-1) == 0) & (node > 0)
    first_span, end_span = tl.load(spans + block), tl.load(spans + block + 1)
    first_point, end_point = tl.load(end_points + block), tl.load(end_points + block + 1)
    teacher_goes, teacher_exact = _slot_masses(teacher, group, node, is_node, n_nodes, UNITS)
    teacher_mass = teacher_goes + teacher_exact
    _store_sums(
        teacher_mass, node, group * 2, lane, block, n_blocks, block_sums, first_span, end_span,
        span_node, n_spans, span_masses, first_point, end_point, end_node, n_ends, end_sums, UNITS,
    )  # fmt: skip
    student_goes, student_exact = _slot_masses(student, group, node, is_node, n_nodes, UNITS)
    student_mass = student_goes + student_exact
    _store_sums(
        student_mass, node, group * 2 + 1, lane, block, n_blocks, block_sums, first_span, end_span,
        span_node, n_spans, span_masses, first_point, end_point, end_node, n_ends, end_sums, UNITS,
    )  # fmt: skip
    is_closed = is_child[:, None] & (is_deep == 0)[None, :]
    if tl.max(is_deep.to(tl.int32), 0) != 0:
        end = tl.load(subtree_end + node, mask=is_node, other=0)
        is_same = tl.load(same + node, mask=is_node, other=0) != 0
        below = _subtree_sums(node, end, teacher_mass)
        ends = teacher_exact > epsilon * tl.maximum(below, NEGLIGIBLE)
        below = _subtree_sums(node, end, student_mass)
        ends = ends | (student_exact > epsilon * tl.maximum(below, NEGLIGIBLE))
        is_closed = is_closed | (ends & ((is_same[:, None] & is_both[None, :]) == 0))
    is_closed = is_closed & ((span < 0) & (node > 0))[:, None]
    tl.store(closed + group * n_nodes + node, _bits(is_closed, UNITS), mask=is_node)


@triton.jit(do_not_specialize=CHANGING)
def add_up_blocks(block_sums, n_blocks, sums_through, BLOCKS: tl.constexpr,
                  UNITS: tl.constexpr):  # fmt: skip
    """`sums_through[group, side, block]`: sums of all blocks through every one."""
    of_side = tl.program_id(0).to(tl.int64) * n_blocks
    lane = tl.arange(0, UNITS)
    before = tl.zeros([UNITS], tl.float64)
    for first in range(0, n_blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        at = (of_side + block)[:, None] * UNITS + lane[None, :]
        is_block = (block < n_blocks)[:, None]
        mass = tl.load(block_sums + at, mask=is_block, other=0.0).to(tl.float64)
        tl.store(sums_through + at, before[None, :] + tl.cumsum(mass, 0), mask=is_block)
        before += tl.sum(mass, 0)


@triton.jit(do_not_specialize=CHANGING)
def close_spans(teacher, student, n_nodes, n_blocks, parent, subtree_end, same, order, first_place,
                end_place, both, deep, epsilon, closed, sums_through, span_node, n_spans,
                span_masses, span_end_point, n_ends, end_sums, BLOCK: tl.constexpr,
                SPANS: tl.constexpr, UNITS: tl.constexpr):  # fmt: skip
    """Complete the masses of spans, and close them."""
    span = tl.program_id(0) * SPANS + tl.arange(0, SPANS)
    group = tl.program_id(1).to(tl.int64)
    lane, offset, is_offset = _lanes(group, order, first_place, end_place, UNITS)
    is_both = tl.load(both + offset, mask=is_offset, other=0) != 0
    is_deep = tl.load(deep + offset, mask=is_offset, other=0) != 0
    is_span = span < n_spans
    node = tl.load(span_node + span, mask=is_span, other=0)
    end = tl.load(subtree_end + node, mask=is_span, other=BLOCK)
    point = tl.load(span_end_point + span, mask=is_span, other=-1)
    is_same = tl.load(same + node, mask=is_span, other=0) != 0
    is_child = tl.load(parent + node, mask=is_span, other=-1) == 0
    is_closed = tl.zeros([SPANS, UNITS], tl.int1)
    for side in tl.static_range(2):
        of_side = group * 2 + side
        through = sums_through + of_side * n_blocks * UNITS + lane[None, :]
        last = tl.load(through + (end // BLOCK - 1)[:, None] * UNITS, mask=is_span[:, None])
        first = tl.load(through + (node // BLOCK)[:, None] * UNITS, mask=is_span[:, None])
        at = span_masses + (of_side * n_spans + span)[:, None] * UNITS + lane[None, :]
        below = tl.load(at, mask=is_span[:, None], other=0.0) + (last - first).to(tl.float32)
        of_point = end_sums + (of_side * n_ends + point)[:, None] * UNITS + lane[None, :]
        below += tl.load(of_point, mask=(point >= 0)[:, None], other=0.0)
        tl.store(at, below, mask=is_span[:, None])
        _, exact = _slot_masses(
            teacher if side == 0 else student, group, node, is_span, n_nodes, UNITS
        )
        is_closed = is_closed | (exact > epsilon * tl.maximum(below, NEGLIGIBLE))
    is_closed = is_closed & ((is_same[:, None] & is_both[None, :]) == 0)
    is_closed = is_closed | (is_child[:, None] & (is_deep == 0)[None, :])
    tl.store(closed + group * n_nodes + node, _bits(is_closed, UNITS), mask=is_span)


@triton.jit
def _leaf_terms(teacher, student, floor, weight, log_weight, log_rest,
                DIVERGENCE: tl.constexpr):  # fmt: skip
    """Return a divergence's values at leaves, and `q_S dD/dq_S` at leaves with student mass."""
    log_teacher = tl.maximum(tl.log2(tl.maximum(teacher, floor)), FLOOR)
    log_student = tl.maximum(tl.log2(student), FLOOR)
    value, derivative = _terms(log_teacher, log_student, weight, log_weight, log_rest, DIVERGENCE)
    is_leaf = (teacher > 0) | (student > 0)
    return tl.where(is_leaf, value, 0.0), tl.where(student > 0, derivative, 0.0)


@triton.jit
def _ratio(derivative, student):
    """Return `dD/dq_S` of leaves as slots keep it."""
    ratio = derivative / tl.where(student > 0, student, 1.0)
    ratio = tl.minimum(tl.maximum(ratio, -LARGEST), LARGEST)
    return tl.where(student > 0, ratio, NO_MASS)


@triton.jit
def _by_mass(ratio, excess, factor, root):
    """Return the derivative by masses, from what slots keep and the values of their offsets."""
    by_mass = tl.where(ratio == OF_ROOT, root, (ratio - excess) * factor)
    by_mass = tl.where(ratio == NO_MASS, 0.0, by_mass)
    return tl.where(factor == 0, 0.0, by_mass)


@triton.jit
def _is_absent(reached, has_teacher, has_student, child_of_node, node, is_child, lane_of_chunk,
               n_lanes, n_children):  # fmt: skip
    """Return whether a side without a row has no tokens for children of the root.

    Lanes that are no offsets count as lanes with both rows.
    """
    child = tl.load(child_of_node + node, mask=is_child, other=0)
    at = reached + lane_of_chunk * n_children + child
    of_teacher = tl.load(at, mask=is_child & (has_teacher == 0), other=1)
    at += n_lanes * n_children
    return (of_teacher == 0) | (tl.load(at, mask=is_child & (has_student == 0), other=1) == 0)


@triton.jit
def _cover(closed, group, block, n_nodes, covers, cover_span, span_node, lane):
    """Return `[UNITS]` the topmost closed span that begins before a block and reaches into it."""
    found = tl.full(lane.shape, -1, tl.int32)
    for at in range(tl.load(covers + block), tl.load(covers + block + 1)):
        span = tl.load(cover_span + at)
        bits = tl.load(closed + group * n_nodes + tl.load(span_node + span))
        found = tl.where((found < 0) & (((bits >> lane) & 1) != 0), span, found)
    return found


@triton.jit(do_not_specialize=CHANGING)
def compare_nodes(teacher, student, n_nodes, n_blocks, parent, subtree_end, same, order,
                  first_place, end_place, both, has_teachers, has_students, closed, span_of_node,
                  span_node, n_spans, span_masses, covers, cover_span, child_of_node, reached,
                  n_lanes, n_children, floor, weight, log_weight, log_rest, out,
                  DIVERGENCE: tl.constexpr, WITH_ABSENT: tl.constexpr, GRADIENT: tl.constexpr,
                  BLOCK: tl.constexpr, UNITS: tl.constexpr):  # fmt: skip
    """`out[group, block]` of the leaves in a block, without the root's.

    Rows are the values of the divergence, its derivatives, the student's largest leaf, and what
    belongs to the root's leaf: the teacher's mass, and the student's. With `GRADIENT` the slots of
    the student get `dD/dq_S` of the leaf that they belong to.
    """
    block = tl.program_id(0) % n_blocks
    group = (tl.program_id(0) // n_blocks).to(tl.int64)
    lane, offset, is_offset = _lanes(group, order, first_place, end_place, UNITS)
    lane_of_chunk = group.to(tl.int32) * UNITS + lane
    node = block * BLOCK + tl.arange(0, BLOCK)
    is_node = node < n_nodes
    at_slots = (group * 2 * n_nodes + node)[:, None] * UNITS + lane[None, :]
    at_out = out + (group * n_blocks + block) * 5 * UNITS + lane

    cover = _cover(closed, group, block, n_nodes, covers, cover_span, span_node, lane)
    has_cover = cover >= 0
    top = tl.load(span_node + cover, mask=has_cover, other=0)
    cover_end = tl.load(subtree_end + top, mask=has_cover, other=0)
    at_cover = span_masses + (group * 2 * n_spans + cover) * UNITS + lane
    cover_teacher = tl.load(at_cover, mask=has_cover, other=0.0)
    cover_student = tl.load(at_cover + n_spans * UNITS, mask=has_cover, other=0.0)
    _, by_cover = _leaf_terms(
        cover_teacher, cover_student, floor, weight, log_weight, log_rest, DIVERGENCE
    )
    of_cover = _ratio(by_cover, cover_student)
    if WITH_ABSENT:
        has_teacher = tl.load(has_teachers + offset, mask=is_offset, other=1)
        has_student = tl.load(has_students + offset, mask=is_offset, other=1)
        is_cover_child = has_cover & (tl.load(parent + top, mask=has_cover, other=-1) == 0)
        is_cover_absent = _is_absent(
            reached, has_teacher, has_student, child_of_node, top, is_cover_child, lane_of_chunk,
            n_lanes, n_children,
        )  # fmt: skip
        of_cover = tl.where(is_cover_absent, OF_ROOT, of_cover)

    least_end = tl.min(tl.where(is_offset, cover_end, n_nodes), 0)
    if least_end >= tl.minimum(block * BLOCK + BLOCK, n_nodes):
        # All of the block belongs to leaves that begin before it.
        zeros = tl.zeros([UNITS], tl.float32)
        for row in tl.static_range(5):
            tl.store(at_out + row * UNITS, zeros)
        if GRADIENT:
            ratio = tl.zeros([BLOCK, UNITS], tl.float32) + of_cover[None, :]
            tl.store(student + at_slots, ratio, mask=is_node[:, None])
            tl.store(student + at_slots + n_nodes * UNITS, ratio, mask=is_node[:, None])
    else:
        is_both = tl.load(both + offset, mask=is_offset, other=0) != 0
        end = tl.load(subtree_end + node, mask=is_node, other=0)
        span = tl.load(span_of_node + node, mask=is_node, other=-1)
        is_same = tl.load(same + node, mask=is_node, other=0) != 0
        bits = tl.load(closed + group * n_nodes + node, mask=is_node, other=0)
        is_closed = ((bits[:, None] >> lane[None, :]) & 1) != 0
        is_above = (node[None, :] < node[:, None]) & (end[None, :] > node[:, None])
        n_above = tl.dot(is_above.to(tl.float16), is_closed.to(tl.float16))
        is_covered = node[:, None] < cover_end[None, :]
        is_hidden = (n_above > 0.5) | is_covered
        is_top = is_closed & (is_hidden == 0)
        is_opened = (is_closed | is_hidden) == 0
        # What is exactly a string is a leaf of its own where both sides have the same strings.
        is_split = is_opened & is_same[:, None] & is_both[None, :] & (node > 0)[:, None]

        goes_on, exact = _slot_masses(teacher, group, node, is_node, n_nodes, UNITS)
        below = _subtree_sums(node, end, goes_on + exact)
        at_span = span_masses + (group * 2 * n_spans + span)[:, None] * UNITS + lane[None, :]
        is_span = (span >= 0)[:, None]
        below = tl.where(is_span, tl.load(at_span, mask=is_span, other=0.0), below)
        opened = tl.where(is_opened, goes_on + tl.where(is_split, 0.0, exact), 0.0)
        q_teacher = tl.where(is_top, below, opened)
        teacher_exact = tl.where(is_split, exact, 0.0)

        goes_on, exact = _slot_masses(student, group, node, is_node, n_nodes, UNITS)
        below = _subtree_sums(node, end, goes_on + exact)
        at_span += n_spans * UNITS
        below = tl.where(is_span, tl.load(at_span, mask=is_span, other=0.0), below)
        opened = tl.where(is_opened, goes_on + tl.where(is_split, 0.0, exact), 0.0)
        q_student = tl.where(is_top, below, opened)
        student_exact = tl.where(is_split, exact, 0.0)

        of_root = (node == 0)[:, None] & (lane >= 0)[None, :]
        if WITH_ABSENT:
            is_child = (tl.load(parent + node, mask=is_node, other=-1) == 0) & (node > 0)
            of_root = of_root | _is_absent(
                reached, has_teacher[None, :], has_student[None, :], child_of_node, node[:, None],
                is_child[:, None], lane_of_chunk[None, :], n_lanes, n_children,
            )  # fmt: skip
        tl.store(at_out + 3 * UNITS, tl.sum(tl.where(of_root, q_teacher, 0.0), 0))
        tl.store(at_out + 4 * UNITS, tl.sum(tl.where(of_root, q_student, 0.0), 0))
        q_teacher = tl.where(of_root, 0.0, q_teacher)
        q_student = tl.where(of_root, 0.0, q_student)
        value, derivative = _leaf_terms(
            q_teacher, q_student, floor, weight, log_weight, log_rest, DIVERGENCE
        )
        exact_value, exact_derivative = _leaf_terms(
            teacher_exact, student_exact, floor, weight, log_weight, log_rest, DIVERGENCE
        )
        tl.store(at_out, tl.sum(value + exact_value, 0))
        tl.store(at_out + UNITS, tl.sum(derivative + exact_derivative, 0))
        tl.store(at_out + 2 * UNITS, tl.max(tl.maximum(q_student, student_exact), 0))
        if GRADIENT:
            ratio = tl.where(of_root, OF_ROOT, _ratio(derivative, q_student))
            # What is below a closed node belongs to the leaf of the topmost one.
            of_top = _sum_where(is_above, tl.where(is_top, ratio, 0.0))
            ratio = tl.where(n_above > 0.5, of_top, ratio)
            ratio = tl.where(is_covered, of_cover[None, :], ratio)
            exact_ratio = tl.where(is_split, _ratio(exact_derivative, student_exact), ratio)
            tl.store(student + at_slots, ratio, mask=is_node[:, None])
            tl.store(student + at_slots + n_nodes * UNITS, exact_ratio, mask=is_node[:, None])


@triton.jit(do_not_specialize=CHANGING)
def finish_offsets(partials, n_blocks, order, first_place, end_place, teacher_rest, student_rest,
                   teacher_stop, student_stop, both, counted, factors, floor, weight, log_weight,
                   log_rest, values, excesses, largest, by_root, by_stop, DIVERGENCE: tl.constexpr,
                   BLOCKS: tl.constexpr, UNITS: tl.constexpr):  # fmt: skip
    """Divergences of offsets, with the leaves of the root and of the stops.

    `excesses` are the sums of `q_S dD/dq_S`, `by_root` and `by_stop` derivatives by masses.
    """
    group = tl.program_id(0).to(tl.int64)
    lane, offset, is_offset = _lanes(group, order, first_place, end_place, UNITS)
    value, excess = tl.zeros([UNITS], tl.float32), tl.zeros([UNITS], tl.float32)
    most = tl.zeros([UNITS], tl.float32)
    q_teacher = tl.load(teacher_rest + offset, mask=is_offset, other=0.0)
    q_student = tl.load(student_rest + offset, mask=is_offset, other=0.0)
    for first in range(0, n_blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        at = partials + ((group * n_blocks + block) * 5 * UNITS)[:, None] + lane[None, :]
        mask = (block < n_blocks)[:, None]
        value += tl.sum(tl.load(at, mask=mask, other=0.0), 0)
        excess += tl.sum(tl.load(at + UNITS, mask=mask, other=0.0), 0)
        most = tl.maximum(most, tl.max(tl.load(at + 2 * UNITS, mask=mask, other=0.0), 0))
        q_teacher += tl.sum(tl.load(at + 3 * UNITS, mask=mask, other=0.0), 0)
        q_student += tl.sum(tl.load(at + 4 * UNITS, mask=mask, other=0.0), 0)
    is_both = tl.load(both + offset, mask=is_offset, other=0) != 0
    stop_teacher = tl.load(teacher_stop + offset, mask=is_offset, other=0.0)
    stop_student = tl.load(student_stop + offset, mask=is_offset, other=0.0)
    # Where only one side has a row, its stop belongs to the root's leaf.
    q_teacher += tl.where(is_both, 0.0, stop_teacher)
    q_student += tl.where(is_both, 0.0, stop_student)
    stop_teacher = tl.where(is_both, stop_teacher, 0.0)
    stop_student = tl.where(is_both, stop_student, 0.0)
    root_value, root_derivative = _leaf_terms(
        q_teacher, q_student, floor, weight, log_weight, log_rest, DIVERGENCE
    )
    stop_value, stop_derivative = _leaf_terms(
        stop_teacher, stop_student, floor, weight, log_weight, log_rest, DIVERGENCE
    )
    excess += root_derivative + stop_derivative
    factor = tl.load(factors + offset, mask=is_offset, other=0.0)
    counts = tl.load(counted + offset, mask=is_offset, other=0) != 0
    value = tl.where(counts, value + root_value + stop_value, 0.0)
    tl.store(values + offset, value, mask=is_offset)
    tl.store(excesses + offset, excess, mask=is_offset)
    most = tl.maximum(most, tl.maximum(q_student, stop_student))
    tl.store(largest + offset, most, mask=is_offset)
    of_root = _by_mass(_ratio(root_derivative, q_student), excess, factor, 0.0)
    tl.store(by_root + offset, of_root, mask=is_offset)
    of_stop = _by_mass(_ratio(stop_derivative, stop_student), excess, factor, 0.0)
    tl.store(by_stop + offset, tl.where(is_both, of_stop, of_root), mask=is_offset)


@triton.jit(do_not_specialize=CHANGING)
def sum_source_gradients(z, starts, norms, stride, token_ids, suffixes, rows, firsts, ends, exacts,
                         first_suffixes, offsets, place_of, first_source, first_place, scale,
                         ratios, n_nodes, excesses, factors, by_root, out, UNITS: tl.constexpr,
                         SPLITS: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """`out[source, split]`: probabilities of straddling tokens times derivatives by their mass."""
    source, split = first_source + tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(firsts + source), tl.load(ends + source)
    going = begin + tl.load(exacts + source)
    row, offset = tl.load(rows + source), tl.load(offsets + source)
    excess, factor = tl.load(excesses + offset), tl.load(factors + offset)
    root = tl.load(by_root + offset)
    from_first = tl.load(place_of + offset) - first_place
    of_lane = ratios + from_first // UNITS * 2 * n_nodes * UNITS + from_first % UNITS
    first_suffix = tl.load(first_suffixes + source) - going
    sums = tl.zeros([TILE], tl.float32)
    for first in range(going + split * TILE, end, SPLITS * TILE):
        place = first + tl.arange(0, TILE)
        inside = place < end
        _, p = _source_tokens(z, starts, norms, stride, token_ids, row, place, inside, scale)
        slot, _ = _source_slots(suffixes, first_suffix + place, inside, n_nodes)
        ratio = tl.load(of_lane + slot * UNITS, mask=inside, other=0.0)
        sums += p * _by_mass(ratio, excess, factor, root)
    tl.store(out + tl.program_id(0) * SPLITS + split, tl.sum(sums, 0))


@triton.jit(do_not_specialize=CHANGING)
def write_text_rows(z, starts, norms, stride, slot_codes, n_codes, width, scale, inverse,
                    first_row, end_row, offset_of_row, place_of, own_weights, first_place,
                    end_place, ratios, n_nodes, excesses, factors, by_root, by_stop, by_norm,
                    by_token, tokens, flat_rows, is_written, gradient, per_split, n_splits,
                    ALIGNED: tl.constexpr, UNITS: tl.constexpr,
                    COLUMNS: tl.constexpr):  # fmt: skip
    """Whole rows of the gradient, added to those that an earlier chunk has written.

    What rows get as sources is left to `add_source_gradients`.
    """
    split, tile = tl.program_id(0) % n_splits, tl.program_id(0) // n_splits
    row = first_row + tile * UNITS + tl.arange(0, UNITS)
    is_row = row < end_row
    start = tl.multiple_of(tl.load(starts + row, mask=is_row, other=0), ALIGNED)
    flat = tl.load(flat_rows + row, mask=is_row, other=0)
    out = tl.multiple_of(flat * width, ALIGNED)
    was_written = tl.load(is_written + flat, mask=is_row, other=0) != 0
    shift = tl.load(norms + row * 3, mask=is_row, other=0.0)
    norm = tl.load(norms + row * 3 + 1, mask=is_row, other=0.0)
    of_norm = tl.load(by_norm + row - first_row, mask=is_row, other=0.0)
    of_token = tl.load(by_token + row - first_row, mask=is_row, other=0.0)
    token = tl.load(tokens + row, mask=is_row, other=-1)
    offset = tl.load(offset_of_row + row, mask=is_row, other=-1)
    place = tl.load(place_of + offset, mask=offset >= 0, other=-1)
    has_own = (place >= first_place) & (place < end_place)
    own_weight = tl.load(own_weights + offset, mask=has_own, other=0.0)[None, :]
    of_stop = tl.load(by_stop + offset, mask=has_own, other=0.0)[None, :]
    excess = tl.load(excesses + offset, mask=has_own, other=0.0)[None, :]
    factor = tl.load(factors + offset, mask=has_own, other=0.0)[None, :]
    root = tl.load(by_root + offset, mask=has_own, other=0.0)[None, :]
    lane = tl.where(has_own, place - first_place, 0)
    own = (lane // UNITS * 2 * n_nodes * UNITS + lane % UNITS)[None, :]
    end = tl.minimum(split * per_split + per_split, width)
    known = tl.minimum(end, n_codes)
    for first in range(split * per_split, end, COLUMNS):
        ids = first + tl.arange(0, COLUMNS)
        slot = tl.load(slot_codes + ids, mask=ids < known, other=NO_TOKEN)
        inside = is_row[:, None] & (ids < end)[None, :]
        x = tl.load(z + start[:, None] + ids[None, :].to(tl.int64) * stride, mask=inside, other=0.0)
        of_slot = ratios + own + (slot & ~SEVERAL)[:, None].to(tl.int64) * UNITS
        ratio = tl.load(of_slot, mask=(slot >= 0)[:, None] & has_own[None, :], other=NO_MASS)
        by_mass = _by_mass(ratio, excess, factor, root)
        by_mass = tl.where((slot == STOP)[:, None], of_stop, by_mass) * own_weight
        p = _probability(x, shift[:, None], norm[:, None], scale)
        p = tl.where((slot == NO_TOKEN)[None, :], 0.0, p)
        value = p * (tl.trans(by_mass) - of_norm[:, None])
        value += tl.where(ids[None, :] == token[:, None], of_token[:, None], 0.0)
        at = gradient + out[:, None] + ids[None, :].to(tl.int64)
        before = tl.load(at, mask=inside & was_written[:, None], other=0.0)
        value = value * inverse + before.to(tl.float32)
        tl.store(at, value.to(gradient.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=CHANGING)
def add_source_gradients(z, starts, norms, stride, token_ids, suffixes, width, scale, inverse,
                         first_row, sources_of_row, source_order, firsts, ends, exacts,
                         first_suffixes, offsets, place_of, own, tokens, first_place, end_place,
                         weights, ratios, n_nodes, excesses, factors, by_root, flat_rows,
                         gradient, UNITS: tl.constexpr, SPLITS: tl.constexpr,
                         TILE: tl.constexpr):  # fmt: skip
    """Add to rows of the gradient what they get as sources of a chunk's offsets.

    A token always belongs to the same thread, which adds the sources of a row one after the other.
    """
    row, split = first_row + tl.program_id(0), tl.program_id(1)
    out = tl.load(flat_rows + row) * width
    for nth in range(tl.load(sources_of_row + row), tl.load(sources_of_row + row + 1)):
        source = tl.load(source_order + nth)
        offset = tl.load(offsets + source)
        from_first = tl.load(place_of + offset) - first_place
        if (from_first >= 0) & (from_first < end_place - first_place):
            excess, factor = tl.load(excesses + offset), tl.load(factors + offset)
            root, weight = tl.load(by_root + offset), tl.load(weights + source)
            begin, end = tl.load(firsts + source), tl.load(ends + source)
            going = begin + tl.load(exacts + source)
            taken = _taken(own, tokens, row, offset)
            of_lane = ratios + from_first // UNITS * 2 * n_nodes * UNITS + from_first % UNITS
            first_suffix = tl.load(first_suffixes + source) - going
            first_tile = begin // TILE
            behind = (split - first_tile) % SPLITS
            first_tile += tl.where(behind < 0, behind + SPLITS, behind)
            for first in range(first_tile * TILE, end, SPLITS * TILE):
                place = first + tl.arange(0, TILE)
                inside = (place >= begin) & (place < end)
                goes_on = inside & (place >= going)
                ids, p = _source_tokens(
                    z, starts, norms, stride, token_ids, row, place, inside, scale
                )
                slot, _ = _source_slots(suffixes, first_suffix + place, goes_on, n_nodes)
                ratio = tl.load(of_lane + slot * UNITS, mask=goes_on, other=OF_ROOT)
                by_mass = tl.where(ids == taken, 0.0, root)
                by_mass = tl.where(goes_on, _by_mass(ratio, excess, factor, root), by_mass)
                at = gradient + out + ids
                before = tl.load(at, mask=inside, other=0.0).to(tl.float32)
                value = before + p * by_mass * weight * inverse
                tl.store(at, value.to(gradient.dtype.element_ty), mask=inside)
