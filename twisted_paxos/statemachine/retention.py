"""How much history is kept without anybody compacting by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from twisted_paxos.statemachine.kvlimits import KvLimits
from twisted_paxos.statemachine.mvcc import NEVER_COMPACTED, Mvcc

_MARKS = 64


class Retention:
    """Decides, from log time and the state alone, up to where to compact.

    For the limit by age it marks, 64 times in ``keep_ms``, which revision was the present one.
    """

    __slots__ = ("_keep_bytes", "_keep_ms", "_keep_revisions", "marks")

    def __init__(self, limits: KvLimits, marks: Iterable[tuple[int, int]] = ()) -> None:
        self._keep_revisions = limits.keep_revisions
        self._keep_bytes = min(limits.keep_bytes, limits.quota_bytes // 4)
        self._keep_ms = limits.keep_ms
        self.marks: deque[tuple[int, int]] = deque(marks)

    def target(self, mvcc: Mvcc, time_ms: int) -> int:
        """The revision to compact at, at this log time; up to ``compact_revision``: nothing to do."""
        marks = self.marks
        target = mvcc.revision - self._keep_revisions + 1
        if target < NEVER_COMPACTED:
            target = NEVER_COMPACTED
        if not marks or time_ms >= marks[-1][0] + self._keep_ms // _MARKS:
            marks.append((time_ms, mvcc.revision))
        # The latest mark that is old enough: what was the present then can still be read.
        # One at which all is compacted already is of no use.
        while len(marks) > 1 and (
            marks[1][0] <= time_ms - self._keep_ms or marks[0][1] <= mvcc.compact_revision
        ):
            marks.popleft()
        if marks[0][0] <= time_ms - self._keep_ms:
            target = max(target, marks[0][1])
        if mvcc.history_bytes > self._keep_bytes:
            target = max(target, mvcc.revision_keeping(self._keep_bytes))
        return target

    def deadline_ms(self, mvcc: Mvcc) -> int | None:
        """Log time at which age lets go of something; None: nothing here grows too old."""
        if mvcc.history_bytes:
            for marked_ms, revision in self.marks:  # the first or the second, as `target` leaves them
                if revision > mvcc.compact_revision:
                    return marked_ms + self._keep_ms
        return None
