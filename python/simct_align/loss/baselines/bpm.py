"""Internal: byte-prefix marginalization (BPM, arXiv 2607.22334).

Let q be the teacher's and p the student's distribution, b(v) the bytes of a token, and φ(r) the
longest student token that begins the bytes r. The teacher's distribution is projected onto the
student's tokens, at every token of the student:

* At the start of a unit, `t(u) = Σ {q(v) : φ(b(v)) = u}`.
* Inside a teacher token, after its first bytes c, only the tokens v that begin with c count:
  `t(u) = Σ {q(v) : b(v) = c r, φ(r) = u} / Σ {q(v) : b(v) begins with c}`, where q is the row that
  predicts the teacher token.
* The student's realized token u can span several teacher tokens `v_1, ..., v_m`. Then t(u) also has
  the probability of the teacher's path, `q(v_1) ... q(v_{m-1}) Σ {q(v) : b(v) begins with r}`,
  where r is the part of u in `v_m`. Inside a teacher token, this is divided by the same sum as
  above.

Teacher tokens without φ are one more event, the residual, for which the student has no token. The
value is a Jensen-Shannon divergence of p and t.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .row_pairs import RowBaseline, RowPairs, add_up, fit, safe_log
from .token_bytes import TokenBytes, make_events

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from .common import Job
    from .row_pairs import TeacherReader


class BPMLoss(RowBaseline):
    """BPM: the teacher's tokens projected onto the longest student tokens that begin them.

    Use this baseline to compare with an objective that reads every token of the student. The value
    of a unit is the sum over the student's tokens of the unit. The loss needs an index made with
    `first_ids=True`.

    Where it differs from the paper:

    * The units are those of the alignment: tokens without a unit do not take part.
    * Student tokens with the same bytes are one event; all stops are one event.
    * A teacher token that ends where the student's token starts belongs to the residual.
    * The probability of a path of several teacher tokens is added to t(u). It is not subtracted
      from the event of the path's first token, and t is not normalized: its sum can exceed 1.

    Args:
        aligner: The pair of vocabularies.
        beta: The weight of the Jensen-Shannon divergence, strictly between 0 and 1:
            `beta KL(t || m) + (1 - beta) KL(p || m)` with `m = beta t + (1 - beta) p`. Both ends
            are infinite, because either side has events that the other side lacks.
        skip_whitespace: Whether student tokens of white space only have the value 0.
        **keywords: The keywords of `Baseline`.

    Raises:
        ValueError: `beta` is not between 0 and 1, or a keyword is out of its range.

    Complexity:
        O((student tokens + teacher tokens) x vocabulary) time; memory as for `Baseline`, and 24
        bytes for each byte of the teacher's vocabulary. About 1.5 seconds to make for Gemma 2 and
        GPT-4o.

    Example:
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> aligner = Aligner(teacher, student)
        >>> BPMLoss(aligner, skip_whitespace=True).beta
        0.5
    """

    reads_first_ids = True

    student_event: Tensor
    student_length: Tensor
    student_blank: Tensor
    teacher_event: Tensor
    teacher_length: Tensor
    teacher_start: Tensor
    teacher_rank: Tensor
    event_at: Tensor
    first_with: Tensor
    stop_with: Tensor

    def __init__(
        self, aligner: Any, *, beta: float = 0.5, skip_whitespace: bool = False, **keywords: Any
    ) -> None:
        super().__init__(aligner, **keywords)
        if not 0.0 < beta < 1.0:
            raise ValueError(f"beta: expected a number strictly between 0 and 1, got {beta}")
        self.beta = beta
        self.skip_whitespace = skip_whitespace
        teacher, student = TokenBytes(aligner.teacher), TokenBytes(aligner.student)
        longest = teacher.longest_begins(student)
        has_bytes = teacher.length > 0
        of_token = np.full(len(has_bytes), -1)
        of_token[has_bytes] = longest[teacher.start[has_bytes]]
        events = make_events(aligner, of_token)
        self.residual = events.residual
        # Beginnings: at the place of a token's byte, the tokens with the same bytes up to there.
        first_with, stop_with = teacher.trie.ranges(
            teacher.text,
            np.repeat(teacher.start, teacher.length),
            np.arange(len(teacher.text)) + 1,
        )
        blank = [aligner.student.token_bytes(i).isspace() for i in range(len(student.length))]
        for name, table in {
            "student_event": events.of_student,
            "student_length": student.length,
            "student_blank": np.array(blank, bool),
            "teacher_event": events.of_teacher,
            "teacher_length": teacher.length,
            "teacher_start": teacher.start,
            "teacher_rank": teacher.rank,
            # The last entry is that of tokens of which nothing is left.
            "event_at": np.append(
                np.append(events.of_student, self.residual)[longest], self.residual
            ),
            "first_with": first_with,
            "stop_with": stop_with,
        }.items():
            self.register_buffer(name, torch.from_numpy(table), persistent=False)

    def row_pairs(self, job: Job, teacher: TeacherReader) -> Iterable[RowPairs]:
        """Return a pair for every student token: see `RowBaseline`."""
        index, paths = job.index, job.index.student.paths
        own, steps = paths.steps, index.teacher.paths.steps
        # Both sides' steps spell the same bytes, so that their places compare.
        own_end, end = (
            self.student_length[own.id].cumsum(0),
            self.teacher_length[steps.id].cumsum(0),
        )
        own_start, start = (
            own_end - self.student_length[own.id],
            end - self.teacher_length[steps.id],
        )
        begins_in = torch.searchsorted(end, own_start, right=True)
        ends_in = torch.searchsorted(end, own_end)

        log_q = teacher.pick(
            steps.row, lambda part, log_q: log_q.gather(1, steps.id[part, None]).squeeze(1)
        )
        before = log_q.cumsum(0) - log_q
        last = steps.id[ends_in]
        rest = own_end - start[ends_in]
        log_path = before[ends_in] - before[begins_in]
        log_path += teacher.pick(
            steps.row[ends_in],
            lambda part, log_q: self._beginning_with(log_q, last[part], rest[part]).logsumexp(1),
        )
        log_path = log_path.where(ends_in > begins_in, -math.inf)

        n_shared, first_id = index.n_shared, index.student.first_id
        assert first_id is not None
        yield RowPairs(
            torch.arange(first_id.shape[0], device=first_id.device),
            index.teacher.row,
            index.student.row,
            partial(
                self._at_start,
                first_id,
                torch.cat([log_path.new_full((n_shared,), -math.inf), log_path[paths.first]]),
            ),
        )
        later = paths.rest
        within = begins_in[later]
        yield RowPairs(
            paths.rest_unit + n_shared,
            steps.row[within],
            paths.rest_row,
            partial(
                self._inside,
                paths.rest_id,
                log_path[later],
                steps.id[within],
                own_start[later] - start[within],
            ),
        )

    def _beginning_with(self, log_q: Tensor, token: Tensor, count: Tensor) -> Tensor:
        """Return the rows with -inf at tokens that do not begin as a token's first bytes."""
        place = self.teacher_start[token] + count - 1
        first, stop = self.first_with[place], self.stop_with[place]
        rank = fit(self.teacher_rank, log_q.shape[1])
        return log_q.where((rank >= first[:, None]) & (rank < stop[:, None]), -math.inf)

    def _at_start(
        self, ids: Tensor, log_path: Tensor, part: slice, log_q: Tensor, log_p: Tensor
    ) -> Tensor:
        event = fit(self.teacher_event, log_q.shape[1])
        t = add_up(log_q.exp(), event, self.residual + 1)
        return self._value(t, log_path[part], ids[part], log_p)

    def _inside(
        self,
        ids: Tensor,
        log_path: Tensor,
        token: Tensor,
        begun: Tensor,
        part: slice,
        log_q: Tensor,
        log_p: Tensor,
    ) -> Tensor:
        begun = begun[part]
        log_q = self._beginning_with(log_q, token[part], begun)
        length, start = (
            fit(table, log_q.shape[1]) for table in (self.teacher_length, self.teacher_start)
        )
        place = torch.where(length > begun[:, None], start + begun[:, None], -1)
        t = add_up(log_q.softmax(1), self.event_at[place], self.residual + 1)
        return self._value(t, log_path[part] - log_q.logsumexp(1), ids[part], log_p)

    def _value(self, t: Tensor, log_path: Tensor, ids: Tensor, log_p: Tensor) -> Tensor:
        own = fit(self.student_event, log_p.shape[1])
        t.scatter_add_(1, self.student_event[ids, None], log_path.exp().to(t.dtype)[:, None])
        p = add_up(log_p.exp(), own, self.residual + 1)
        log_m = safe_log(self.beta * t + (1.0 - self.beta) * p)
        of_teacher = (t * (safe_log(t) - log_m)).sum(1)
        of_student = (p * (safe_log(p) - log_m)).sum(1)
        value = self.beta * of_teacher + (1.0 - self.beta) * of_student
        return value.where(~self.student_blank[ids], 0.0) if self.skip_whitespace else value
