"""`Election`: one leader among candidates, and who it is."""

from __future__ import annotations

from collections.abc import AsyncIterator

from twisted.internet.defer import Deferred

from twisted_paxos.client.keys import Key, to_bytes
from twisted_paxos.client.kv import create_revision, get, put
from twisted_paxos.client.recipes.place import Place, first_event
from twisted_paxos.errors import LeaseLost, WatchCanceled
from twisted_paxos.statemachine.kvcommands import KeyValue, RangeResult


class Election(Place):
    """A candidate; `campaign` waits until it leads. The order is that in which candidates came.

    election = Election(client, "services/scheduler")
    token = await election.campaign("host-7")
    election.lost.addCallback(stand_down)
    """

    def campaign(self, value: Key, timeout_s: float | None = None) -> Deferred[int]:
        """Wait to be the leader, known to observers by ``value``; fires with the fencing token.

        Fails as `acquire` does.
        """
        return self._acquire(to_bytes(value), timeout_s)

    def proclaim(self, value: Key) -> Deferred[None]:
        """Change the leader's value, without an election.

        Fails with `LeaseLost` when this is not the leader any more.
        """
        return Deferred.fromCoroutine(self._proclaim(to_bytes(value)))

    async def _proclaim(self, value: bytes) -> None:
        if not self.held or self._lease is None:
            raise LeaseLost("this candidate does not lead")
        change = put(self.key, value, lease=self._lease.id)
        done = await self._kv.txn([create_revision(self.key) == self.token], [change])
        if not done.succeeded:
            self._lose("its key was deleted")
            raise LeaseLost("this candidate does not lead any more")

    def resign(self) -> Deferred[None]:
        """Lead no more; the next candidate does. Fails as `release` does."""
        return self.release()

    def leader(self) -> Deferred[KeyValue | None]:
        """Who leads: its key, value and fencing token (``create_revision``); None: nobody."""
        return self._first().addCallback(lambda found: found.kvs[0] if found.kvs else None)

    async def observe(self) -> AsyncIterator[KeyValue]:
        """Each leader, from the present one on, and each change of its value; for ever.

        A leader that was followed quickly by another one may be left out; none is given after its successor.
        """
        while True:
            found = await self._first()
            if not found.kvs:
                with_events = self._kv.watch(
                    self.prefix, prefix=True, start_revision=found.revision + 1, nodelete=True
                )
                async with with_events:
                    await first_event(with_events)
                continue
            yield found.kvs[0]
            async for value in self._values(found.kvs[0], found.revision):
                yield value

    async def _values(self, leader: KeyValue, revision: int) -> AsyncIterator[KeyValue]:
        """Later versions of the leader's key, until it is deleted."""
        async with self._kv.watch(leader.key, start_revision=revision + 1) as watch:
            try:
                async for batch in watch:
                    for event in batch.events:
                        if event.type == "DELETE":
                            return
                        yield event.kv
            except WatchCanceled as error:
                if not error.compact_revision:
                    raise

    def _first(self) -> Deferred[RangeResult]:
        return self._kv.read(
            get(self.prefix, prefix=True, limit=1, sort_order="ASCEND", sort_target="CREATE")
        )
