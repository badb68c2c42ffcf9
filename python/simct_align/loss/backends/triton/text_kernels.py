"""Internal: Triton kernels over text events.

Kernels work on *lanes*: the offsets of a chunk, `UNITS` in a group. What either side says at the
offsets of a chunk is collected in its *slots*, `[group, slot, lane]`: see `TreeTensors`. A program
then works on a block of nodes and a group of lanes; sums over the subtrees that end in a block are
products with a matrix of zeros and ones, which only add, so that small masses keep their digits.
`text_blocks` describes blocks and spans.

A row's tokens have the probabilities `2^((z - shift) * scale - norm)`; `norms` has, for every text
row, the shift, the binary log-normalizer, and the probability of all text tokens.

`slot_of_id` has, for every logit column, the token's slot, with `SEVERAL` added where the slot has
several tokens, and `CONTROL`, `STOP` or `NO_TOKEN` for other columns.
"""
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import FLOOR, LOWEST, _add_exponentials, _terms

#: The share of an offset's mass below which the masses of nodes are not told apart.
NEGLIGIBLE = tl.constexpr(1e-12)
SEVERAL = tl.constexpr(1 << 30)
CONTROL, STOP, NO_TOKEN = tl.constexpr(-1), tl.constexpr(-2), tl.constexpr(-3)
_NODE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _probability(z, shift, norm, scale):
    """Return probabilities, 0 in a row that holds NaN."""
    p = tl.exp2((z.to(tl.float32) - shift) * scale - norm)
    return tl.where(p == p, p, 0.0)


@triton.jit
def _lanes(group, first_offset, end_offset, UNITS: tl.constexpr):
    """Return the lanes, their offsets, and which of them are offsets of the chunk."""
    lane = tl.arange(0, UNITS)
    offset = first_offset + group.to(tl.int32) * UNITS + lane
    return lane, offset, offset < end_offset


@triton.jit
def sum_text_rows(z, starts, stride, slot_of_id, width, scale, norms, ALIGNED: tl.constexpr,
                  T: tl.constexpr, E: tl.constexpr):  # fmt: skip
    """`norms[row]` of whole rows."""
    row = tl.program_id(0)
    start = tl.multiple_of(tl.load(starts + row), ALIGNED)
    top, total = tl.full([1, T], LOWEST, tl.float32), tl.zeros([1, T], tl.float32)
    text = tl.zeros([1, T], tl.float32)
    for first in range(0, width, T * E):
        at = tl.reshape(first + tl.arange(0, T * E), [1, T, E])
        slot = tl.load(slot_of_id + at, mask=at < width, other=NO_TOKEN)
        x = tl.load(z + start + at.to(tl.int64) * stride, mask=at < width, other=0.0)
        top, total, _, exponentials, factor = _add_exponentials(
            x.to(tl.float32), slot != NO_TOKEN, scale, top, total
        )
        text = text * factor + tl.sum(tl.where(slot >= 0, exponentials, 0.0), 2)
    top_of_all = tl.max(top, 1)
    lower = tl.exp2((top - top_of_all[:, None]) * scale)
    total_of_all = tl.sum(total * lower, 1)
    at = norms + row * 3 + tl.arange(0, 1)
    tl.store(at, top_of_all)
    tl.store(at + 1, tl.log2(total_of_all))
    tl.store(at + 2, tl.sum(text * lower, 1) / total_of_all)


@triton.jit
def _source_tokens(z, starts, norms, stride, token_ids, row, place, inside, scale):
    """Return the ids of tokens of a source, by their places in token order, and probabilities."""
    ids = tl.load(token_ids + place, mask=inside, other=0)
    start = tl.load(starts + row)
    x = tl.load(z + start + ids.to(tl.int64) * stride, mask=inside, other=0.0)
    p = _probability(x, tl.load(norms + row * 3), tl.load(norms + row * 3 + 1), scale)
    return ids, tl.where(inside, p, 0.0)


@triton.jit
def sum_sources(z, starts, norms, stride, token_ids, rows, firsts, ends, exacts, realized, scale,
                out, SPLITS: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """`out[source, split]`: probability of tokens that end at the offset, and that go on."""
    source, split = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(firsts + source), tl.load(ends + source)
    going = begin + tl.load(exacts + source)
    row, taken = tl.load(rows + source), tl.load(realized + source)
    ended, goes_on = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
    for first in range(begin + split * TILE, end, SPLITS * TILE):
        place = first + tl.arange(0, TILE)
        ids, p = _source_tokens(z, starts, norms, stride, token_ids, row, place, place < end, scale)
        # The realized token, which ends at its own boundary, is in no mass.
        ended += tl.where((place < going) & (ids != taken), p, 0.0)
        goes_on += tl.where(place >= going, p, 0.0)
    at = out + (source * SPLITS + split) * 2
    tl.store(at, tl.sum(ended, 0))
    tl.store(at + 1, tl.sum(goes_on, 0))


@triton.jit
def add_rows(z, starts, norms, stride, slot_of_id, width, own, weights, first_offset, end_offset,
             scale, slots, n_slots, ALIGNED: tl.constexpr, UNITS: tl.constexpr,
             COLUMNS: tl.constexpr):  # fmt: skip
    """Add the own rows of the lanes to slots that are zero."""
    ids = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    group = tl.program_id(1).to(tl.int64)
    lane, offset, is_offset = _lanes(group, first_offset, end_offset, UNITS)
    row = tl.load(own + offset, mask=is_offset, other=-1)
    has_row = row >= 0
    start = tl.multiple_of(tl.load(starts + row, mask=has_row, other=0), ALIGNED)
    shift = tl.load(norms + row * 3, mask=has_row, other=0.0)
    norm = tl.load(norms + row * 3 + 1, mask=has_row, other=0.0)
    weight = tl.load(weights + offset, mask=has_row, other=0.0)
    slot = tl.load(slot_of_id + ids, mask=ids < width, other=NO_TOKEN)
    x = tl.load(
        z + start[:, None] + ids[None, :].to(tl.int64) * stride,
        mask=has_row[:, None] & (ids < width)[None, :], other=0.0, eviction_policy="evict_first",
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


@triton.jit
def add_sources(z, starts, norms, stride, token_ids, suffixes, rows, firsts, ends, exacts,
                first_suffixes, offsets, weights, first_source, first_offset, scale, slots,
                n_nodes, child_of_node, reached, n_children, WITH_REACHED: tl.constexpr,
                UNITS: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Add the straddling tokens of the sources to the slots.

    With `WITH_REACHED` also set `reached[offset, child]` where they begin with a child of the root.
    """
    source, split = first_source + tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(firsts + source), tl.load(ends + source)
    going = begin + tl.load(exacts + source)
    row, weight = tl.load(rows + source), tl.load(weights + source)
    from_first = tl.load(offsets + source) - first_offset
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
def _of_span(spans, group, SIDE: tl.constexpr, span, n_spans, UNITS: tl.constexpr):
    """Return pointers to a side's values of spans `[n]`, `[n, UNITS]`."""
    at = ((group * 2 + SIDE) * n_spans + span)[:, None] * UNITS
    return spans + at + tl.arange(0, UNITS)[None, :]


@triton.jit
def _bits(is_true, UNITS: tl.constexpr):
    """Return `[n]` the lanes `[n, UNITS]` as bits."""
    return tl.sum(is_true.to(tl.int32) << tl.arange(0, UNITS)[None, :], 1)


@triton.jit
def close_nodes(teacher, student, n_nodes, n_blocks, parent, subtree_end, same, span_of_node,
                end_points, end_node, n_ends, both, deep, first_offset, end_offset, epsilon,
                closed, block_sums, span_masses, n_spans, end_sums, BLOCK: tl.constexpr,
                UNITS: tl.constexpr):  # fmt: skip
    """Close the nodes of a block but spans, and sum up what the masses of spans are made of."""
    block = tl.program_id(0) % n_blocks
    group = (tl.program_id(0) // n_blocks).to(tl.int64)
    lane, offset, is_offset = _lanes(group, first_offset, end_offset, UNITS)
    is_both = tl.load(both + offset, mask=is_offset, other=0) != 0
    is_deep = tl.load(deep + offset, mask=is_offset, other=0) != 0
    node = block * BLOCK + tl.arange(0, BLOCK)
    is_node = node < n_nodes
    end = tl.load(subtree_end + node, mask=is_node, other=0)
    span = tl.load(span_of_node + node, mask=is_node, other=-1)
    is_same = tl.load(same + node, mask=is_node, other=0) != 0
    is_child = (tl.load(parent + node, mask=is_node, other=-1) == 0) & (node > 0)
    subtree = (node[None, :] >= node[:, None]) & (node[None, :] < end[:, None])
    first_point, end_point = tl.load(end_points + block), tl.load(end_points + block + 1)
    is_closed = tl.zeros([BLOCK, UNITS], tl.int1)
    for side in tl.static_range(2):
        goes_on, exact = _slot_masses(
            teacher if side == 0 else student, group, node, is_node, n_nodes, UNITS
        )
        mass = goes_on + exact
        below = tl.dot(subtree.to(tl.float32), mass, input_precision="tf32x3")
        is_closed = is_closed | (exact > epsilon * tl.maximum(below, NEGLIGIBLE))
        at = _of_span(span_masses, group, side, span, n_spans, UNITS)
        tl.store(at, below, mask=(span >= 0)[:, None])
        of_side = group * 2 + side
        tl.store(block_sums + (of_side * n_blocks + block) * UNITS + lane, tl.sum(mass, 0))
        for point in range(first_point, end_point):
            before = node < tl.load(end_node + point)
            sums = tl.sum(tl.where(before[:, None], mass, 0.0), 0)
            tl.store(end_sums + (of_side * n_ends + point) * UNITS + lane, sums)
    is_closed = is_closed & ((is_same[:, None] & is_both[None, :]) == 0)
    is_closed = is_closed | (is_child[:, None] & (is_deep == 0)[None, :])
    is_closed = is_closed & ((span < 0) & (node > 0))[:, None]
    tl.store(closed + group * n_nodes + node, _bits(is_closed, UNITS), mask=is_node)


@triton.jit
def close_spans(teacher, student, n_nodes, n_blocks, parent, subtree_end, same, span_node,
                span_end_point, n_ends, both, deep, first_offset, end_offset, epsilon, closed,
                sums_through, span_masses, n_spans, end_sums, BLOCK: tl.constexpr,
                SPANS: tl.constexpr, UNITS: tl.constexpr):  # fmt: skip
    """Complete the masses of spans, and close them."""
    span = tl.program_id(0) * SPANS + tl.arange(0, SPANS)
    group = tl.program_id(1).to(tl.int64)
    lane, offset, is_offset = _lanes(group, first_offset, end_offset, UNITS)
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
        at = _of_span(span_masses, group, side, span, n_spans, UNITS)
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
def _cover(closed, group, block, n_nodes, covers, cover_span, span_node, lane):
    """Return `[UNITS]` the topmost closed span that begins before a block and reaches into it."""
    found = tl.full(lane.shape, -1, tl.int32)
    for at in range(tl.load(covers + block), tl.load(covers + block + 1)):
        span = tl.load(cover_span + at)
        bits = tl.load(closed + group * n_nodes + tl.load(span_node + span))
        found = tl.where((found < 0) & (((bits >> lane) & 1) != 0), span, found)
    return found


@triton.jit
def _leaf_masses(slots, group, SIDE: tl.constexpr, node, is_node, n_nodes, subtree, span,
                 span_masses, n_spans, is_top, is_opened, is_split,
                 UNITS: tl.constexpr):  # fmt: skip
    """Return a side's masses of the leaves at nodes, and of leaves that are exactly a string."""
    goes_on, exact = _slot_masses(slots, group, node, is_node, n_nodes, UNITS)
    below = tl.dot(subtree.to(tl.float32), goes_on + exact, input_precision="tf32x3")
    of_span = tl.load(
        _of_span(span_masses, group, SIDE, span, n_spans, UNITS), mask=(span >= 0)[:, None],
        other=0.0,
    )  # fmt: skip
    below = tl.where((span >= 0)[:, None], of_span, below)
    opened = tl.where(is_opened, goes_on + tl.where(is_split, 0.0, exact), 0.0)
    return tl.where(is_top, below, opened), tl.where(is_split, exact, 0.0)


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
def _by_mass(derivative, student, excess, factor):
    """Return the derivative by the student's mass of leaves."""
    by_mass = (derivative / tl.where(student > 0, student, 1.0) - excess) * factor
    return tl.where((student > 0) & (factor != 0), by_mass, 0.0)


@triton.jit
def _is_absent(absent, child_of_node, node, is_node, parent, from_first, is_offset, n_children,
               WITH_ABSENT: tl.constexpr):  # fmt: skip
    """Return `[BLOCK, UNITS]` where a side without a row has no tokens for a child of the root."""
    is_child = (tl.load(parent + node, mask=is_node, other=-1) == 0) & (node > 0)
    if WITH_ABSENT:
        child = tl.load(child_of_node + node, mask=is_child, other=0)
        at = from_first[None, :] * n_children + child[:, None]
        mask = is_child[:, None] & is_offset[None, :]
        return tl.load(absent + at, mask=mask, other=0) != 0
    return is_child[:, None] & (from_first < 0)[None, :]


@triton.jit
def _partition(closed, group, block, node, is_node, end, n_nodes, covers, cover_span, span_node,
               subtree_end, same, is_both, lane):  # fmt: skip
    """Return the cover of a block and where it ends, closed nodes, and the kinds of all nodes.

    The kinds are: below a closed node of the block; topmost closed; opened; opened, with a leaf for
    what is exactly the string.
    """
    cover = _cover(closed, group, block, n_nodes, covers, cover_span, span_node, lane)
    has_cover = cover >= 0
    top = tl.load(span_node + cover, mask=has_cover, other=0)
    cover_end = tl.load(subtree_end + top, mask=has_cover, other=0)
    bits = tl.load(closed + group * n_nodes + node, mask=is_node, other=0)
    is_closed = ((bits[:, None] >> lane[None, :]) & 1) != 0
    above = (node[None, :] < node[:, None]) & (end[None, :] > node[:, None])
    n_above = tl.dot(above.to(tl.float16), is_closed.to(tl.float16))
    is_below = n_above > 0.5
    is_covered = node[:, None] < cover_end[None, :]
    is_hidden = is_below | is_covered
    is_top = is_closed & (is_hidden == 0)
    is_opened = (is_closed | is_hidden) == 0
    is_same = tl.load(same + node, mask=is_node, other=0) != 0
    is_split = is_opened & is_same[:, None] & is_both[None, :] & (node > 0)[:, None]
    return cover, is_covered, is_below, is_top, is_opened, is_split


@triton.jit
def compare_nodes(teacher, student, n_nodes, n_blocks, parent, subtree_end, same, span_of_node,
                  span_node, span_masses, n_spans, covers, cover_span, child_of_node, absent,
                  n_children, both, first_offset, end_offset, closed, floor, weight, log_weight,
                  log_rest, out, DIVERGENCE: tl.constexpr, WITH_ABSENT: tl.constexpr,
                  BLOCK: tl.constexpr, UNITS: tl.constexpr):  # fmt: skip
    """`out[group, block]` of the leaves in a block, without the root's.

    Rows are the values of the divergence, its derivatives, the student's largest leaf, and what
    belongs to the root's leaf: the teacher's mass, and the student's.
    """
    block = tl.program_id(0) % n_blocks
    group = (tl.program_id(0) // n_blocks).to(tl.int64)
    lane, offset, is_offset = _lanes(group, first_offset, end_offset, UNITS)
    is_both = tl.load(both + offset, mask=is_offset, other=0) != 0
    node = block * BLOCK + tl.arange(0, BLOCK)
    is_node = node < n_nodes
    end = tl.load(subtree_end + node, mask=is_node, other=0)
    span = tl.load(span_of_node + node, mask=is_node, other=-1)
    subtree = (node[None, :] >= node[:, None]) & (node[None, :] < end[:, None])
    _, _, _, is_top, is_opened, is_split = _partition(
        closed, group, block, node, is_node, end, n_nodes, covers, cover_span, span_node,
        subtree_end, same, is_both, lane,
    )  # fmt: skip
    q_teacher, teacher_exact = _leaf_masses(
        teacher, group, 0, node, is_node, n_nodes, subtree, span, span_masses, n_spans, is_top,
        is_opened, is_split, UNITS,
    )  # fmt: skip
    q_student, student_exact = _leaf_masses(
        student, group, 1, node, is_node, n_nodes, subtree, span, span_masses, n_spans, is_top,
        is_opened, is_split, UNITS,
    )  # fmt: skip
    is_absent = _is_absent(absent, child_of_node, node, is_node, parent, offset - first_offset,
                           is_offset, n_children, WITH_ABSENT)  # fmt: skip
    of_root = is_absent | (node == 0)[:, None]
    at = out + (group * n_blocks + block) * 5 * UNITS + lane
    tl.store(at + 3 * UNITS, tl.sum(tl.where(of_root, q_teacher, 0.0), 0))
    tl.store(at + 4 * UNITS, tl.sum(tl.where(of_root, q_student, 0.0), 0))
    q_teacher, q_student = tl.where(of_root, 0.0, q_teacher), tl.where(of_root, 0.0, q_student)
    value, derivative = _leaf_terms(
        q_teacher, q_student, floor, weight, log_weight, log_rest, DIVERGENCE
    )
    exact_value, exact_derivative = _leaf_terms(
        teacher_exact, student_exact, floor, weight, log_weight, log_rest, DIVERGENCE
    )
    tl.store(at, tl.sum(value + exact_value, 0))
    tl.store(at + UNITS, tl.sum(derivative + exact_derivative, 0))
    tl.store(at + 2 * UNITS, tl.max(tl.maximum(q_student, student_exact), 0))


@triton.jit
def finish_offsets(partials, n_blocks, teacher_rest, student_rest, teacher_stop, student_stop,
                   both, first_offset, end_offset, factors, floor, weight, log_weight, log_rest,
                   values, excesses, largest, by_root, by_stop, DIVERGENCE: tl.constexpr,
                   BLOCKS: tl.constexpr, UNITS: tl.constexpr):  # fmt: skip
    """Divergences of offsets, with the leaves of the root and of the stops.

    `excesses` are the sums of `q_S dD/dq_S`, `by_root` and `by_stop` derivatives by masses.
    """
    group = tl.program_id(0).to(tl.int64)
    lane, offset, is_offset = _lanes(group, first_offset, end_offset, UNITS)
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
    tl.store(values + offset, value + root_value + stop_value, mask=is_offset)
    tl.store(excesses + offset, excess, mask=is_offset)
    most = tl.maximum(most, tl.maximum(q_student, stop_student))
    tl.store(largest + offset, most, mask=is_offset)
    of_root = _by_mass(root_derivative, q_student, excess, factor)
    tl.store(by_root + offset, of_root, mask=is_offset)
    of_stop = _by_mass(stop_derivative, stop_student, excess, factor)
    tl.store(by_stop + offset, tl.where(is_both, of_stop, of_root), mask=is_offset)


@triton.jit
def write_slot_gradients(teacher, student, n_nodes, n_blocks, parent, subtree_end, same,
                         span_of_node, span_node, span_masses, n_spans, covers, cover_span,
                         child_of_node, absent, n_children, both, first_offset, end_offset, closed,
                         floor, weight, log_weight, log_rest, factors, excesses, by_root,
                         DIVERGENCE: tl.constexpr, WITH_ABSENT: tl.constexpr,
                         BLOCK: tl.constexpr, UNITS: tl.constexpr):  # fmt: skip
    """Replace the student's masses by the derivatives of the divergence by them."""
    block = tl.program_id(0) % n_blocks
    group = (tl.program_id(0) // n_blocks).to(tl.int64)
    lane, offset, is_offset = _lanes(group, first_offset, end_offset, UNITS)
    is_both = tl.load(both + offset, mask=is_offset, other=0) != 0
    node = block * BLOCK + tl.arange(0, BLOCK)
    is_node = node < n_nodes
    end = tl.load(subtree_end + node, mask=is_node, other=0)
    span = tl.load(span_of_node + node, mask=is_node, other=-1)
    subtree = (node[None, :] >= node[:, None]) & (node[None, :] < end[:, None])
    cover, is_covered, is_below, is_top, is_opened, is_split = _partition(
        closed, group, block, node, is_node, end, n_nodes, covers, cover_span, span_node,
        subtree_end, same, is_both, lane,
    )  # fmt: skip
    q_teacher, teacher_exact = _leaf_masses(
        teacher, group, 0, node, is_node, n_nodes, subtree, span, span_masses, n_spans, is_top,
        is_opened, is_split, UNITS,
    )  # fmt: skip
    q_student, student_exact = _leaf_masses(
        student, group, 1, node, is_node, n_nodes, subtree, span, span_masses, n_spans, is_top,
        is_opened, is_split, UNITS,
    )  # fmt: skip
    is_absent = _is_absent(absent, child_of_node, node, is_node, parent, offset - first_offset,
                           is_offset, n_children, WITH_ABSENT)  # fmt: skip
    factor = tl.load(factors + offset, mask=is_offset, other=0.0)
    excess = tl.load(excesses + offset, mask=is_offset, other=0.0)
    root = tl.load(by_root + offset, mask=is_offset, other=0.0)
    _, derivative = _leaf_terms(
        q_teacher, q_student, floor, weight, log_weight, log_rest, DIVERGENCE
    )
    by_leaf = _by_mass(derivative, q_student, excess[None, :], factor[None, :])
    by_leaf = tl.where(is_absent | (node == 0)[:, None], root[None, :], by_leaf)
    _, derivative = _leaf_terms(
        teacher_exact, student_exact, floor, weight, log_weight, log_rest, DIVERGENCE
    )
    by_exact = _by_mass(derivative, student_exact, excess[None, :], factor[None, :])

    # A node below the topmost closed one of its block gets the derivative of that one's leaf.
    of_top = ((node[None, :] <= node[:, None]) & (end[None, :] > node[:, None])).to(tl.float32)
    from_top = tl.dot(of_top, tl.where(is_top, by_leaf, 0.0), input_precision="tf32x3")
    by_node = tl.where(is_below, from_top, by_leaf)
    # One below the cover gets that of the cover's leaf.
    has_cover = cover >= 0
    top = tl.load(span_node + cover, mask=has_cover, other=0)
    at_teacher = span_masses + (group * 2 * n_spans + cover) * UNITS + lane
    cover_teacher = tl.load(at_teacher, mask=has_cover, other=0.0)
    cover_student = tl.load(at_teacher + n_spans * UNITS, mask=has_cover, other=0.0)
    _, derivative = _leaf_terms(
        cover_teacher, cover_student, floor, weight, log_weight, log_rest, DIVERGENCE
    )
    by_cover = _by_mass(derivative, cover_student, excess, factor)
    if WITH_ABSENT:
        is_child = has_cover & (tl.load(parent + top, mask=has_cover, other=-1) == 0)
        child = tl.load(child_of_node + top, mask=is_child, other=0)
        at_absent = absent + (offset - first_offset) * n_children + child
        cover_absent = tl.load(at_absent, mask=is_child & is_offset, other=0) != 0
        by_cover = tl.where(cover_absent, root, by_cover)
    by_node = tl.where(is_covered, by_cover[None, :], by_node)
    at = (group * 2 * n_nodes + node)[:, None] * UNITS + lane[None, :]
    tl.store(student + at, by_node, mask=is_node[:, None])
    by_exact = tl.where(is_split, by_exact, by_node)
    tl.store(student + at + n_nodes * UNITS, by_exact, mask=is_node[:, None])


@triton.jit
def sum_source_gradients(z, starts, norms, stride, token_ids, suffixes, rows, firsts, ends, exacts,
                         first_suffixes, offsets, first_source, first_offset, scale, by_slot,
                         n_nodes, out, UNITS: tl.constexpr, SPLITS: tl.constexpr,
                         TILE: tl.constexpr):  # fmt: skip
    """`out[source, split]`: probabilities of straddling tokens times derivatives by their mass."""
    source, split = first_source + tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(firsts + source), tl.load(ends + source)
    going = begin + tl.load(exacts + source)
    row = tl.load(rows + source)
    from_first = tl.load(offsets + source) - first_offset
    group, lane = from_first // UNITS, from_first % UNITS
    of_lane = by_slot + group * 2 * n_nodes * UNITS + lane
    first_suffix = tl.load(first_suffixes + source) - going
    sums = tl.zeros([TILE], tl.float32)
    for first in range(going + split * TILE, end, SPLITS * TILE):
        place = first + tl.arange(0, TILE)
        inside = place < end
        _, p = _source_tokens(z, starts, norms, stride, token_ids, row, place, inside, scale)
        slot, _ = _source_slots(suffixes, first_suffix + place, inside, n_nodes)
        sums += p * tl.load(of_lane + slot * UNITS, mask=inside, other=0.0)
    tl.store(out + tl.program_id(0) * SPLITS + split, tl.sum(sums, 0))


@triton.jit
def write_text_rows(z, starts, norms, stride, slot_of_id, place_of_id, width, scale, inverse,
                    first_row, end_row, offset_of_row, own_weights, first_offset, end_offset,
                    by_slot, n_nodes, by_root, by_stop, sources_of_row, source_order, firsts,
                    ends, exacts, first_suffixes, source_offsets, source_weights, realized,
                    suffixes, by_norm, by_token, tokens, flat_rows, is_written, gradient,
                    per_split, n_splits, ALIGNED: tl.constexpr, UNITS: tl.constexpr,
                    COLUMNS: tl.constexpr):  # fmt: skip
    """Whole rows of the gradient, added to those that an earlier chunk has written."""
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
    has_own = (offset >= first_offset) & (offset < end_offset)
    own_weight = tl.load(own_weights + offset, mask=has_own, other=0.0)
    of_stop = tl.load(by_stop + offset, mask=has_own, other=0.0) * own_weight
    lane = tl.where(has_own, offset - first_offset, 0)
    own = lane // UNITS * 2 * n_nodes * UNITS + lane % UNITS
    first_source = tl.load(sources_of_row + row, mask=is_row, other=0)
    n_sources = tl.load(sources_of_row + row + 1, mask=is_row, other=0) - first_source
    most_sources = tl.max(n_sources, 0)
    end = tl.minimum(split * per_split + per_split, width)
    for first in range(split * per_split, end, COLUMNS):
        ids = first + tl.arange(0, COLUMNS)
        slot = tl.load(slot_of_id + ids, mask=ids < end, other=NO_TOKEN)
        place = tl.load(place_of_id + ids, mask=ids < end, other=-1)
        of_token_slot = by_slot + own[None, :] + (slot & ~SEVERAL)[:, None].to(tl.int64) * UNITS
        by_prob = tl.load(of_token_slot, mask=(slot >= 0)[:, None] & has_own[None, :], other=0.0)
        by_prob *= own_weight[None, :]
        by_prob += tl.where((slot == STOP)[:, None], of_stop[None, :], 0.0)
        for nth in range(most_sources):
            has_source = nth < n_sources
            source = tl.load(source_order + first_source + nth, mask=has_source, other=0)
            at_offset = tl.load(source_offsets + source, mask=has_source, other=-1)
            has_source = has_source & (at_offset >= first_offset) & (at_offset < end_offset)
            begin = tl.load(firsts + source, mask=has_source, other=0)
            stop = tl.load(ends + source, mask=has_source, other=0)
            going = begin + tl.load(exacts + source, mask=has_source, other=0)
            weight = tl.load(source_weights + source, mask=has_source, other=0.0)
            taken = tl.load(realized + source, mask=has_source, other=-1)
            ended = tl.load(by_root + at_offset, mask=has_source, other=0.0) * weight
            is_ended = (place[:, None] >= begin[None, :]) & (place[:, None] < going[None, :])
            is_ended = is_ended & (ids[:, None] != taken[None, :])
            by_prob += tl.where(is_ended, ended[None, :], 0.0)
            goes_on = (place[:, None] >= going[None, :]) & (place[:, None] < stop[None, :])
            suffix = tl.load(first_suffixes + source, mask=has_source, other=0) - going
            of_source, _ = _source_slots(
                suffixes, suffix[None, :] + place[:, None], goes_on, n_nodes
            )
            of_lane = tl.where(has_source, at_offset - first_offset, 0)
            base = of_lane // UNITS * 2 * n_nodes * UNITS + of_lane % UNITS
            of_slot = by_slot + base[None, :] + of_source.to(tl.int64) * UNITS
            by_prob += tl.load(of_slot, mask=goes_on, other=0.0) * weight[None, :]
        inside = is_row[:, None] & (ids < end)[None, :]
        x = tl.load(z + start[:, None] + ids[None, :].to(tl.int64) * stride, mask=inside, other=0.0)
        p = _probability(x, shift[:, None], norm[:, None], scale)
        p = tl.where((slot == NO_TOKEN)[None, :], 0.0, p)
        value = p * (tl.trans(by_prob) - of_norm[:, None])
        value += tl.where(ids[None, :] == token[:, None], of_token[:, None], 0.0)
        at = gradient + out[:, None] + ids[None, :].to(tl.int64)
        before = tl.load(at, mask=inside & was_written[:, None], other=0.0)
        value = value * inverse + before.to(tl.float32)
        tl.store(at, value.to(gradient.dtype.element_ty), mask=inside)
