"""`Lease`: keeps itself alive, and says in time when nobody can be sure any more that it lives.

The store counts a lease's time from when a keep-alive was applied. Its holder counts from when it
**sent** that keep-alive, which was earlier, on its own monotonic clock, and takes off what two
clocks may differ. Log time never runs faster than the leader's clock, so while `Lease.sure`
holds, the lease is there. After a pause of this process (SIGSTOP, a suspended machine), `sure` is
right at once; the `lost` Deferred fires with the next turn of the reactor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_paxos.errors import KeyValueError, LeaseLost, PaxosError
from twisted_paxos.statemachine.kvcommands import LEASE_NOT_FOUND, LeaseKeepAliveResult

if TYPE_CHECKING:
    from twisted_paxos.client.client import Client

log = Logger()

RENEW_SHARE: Final = 1 / 3
"""A lease is renewed when so much of its time has passed; one try may take as long."""

RETRY_SHARE: Final = 1 / 12
"""After a try that failed, how much of the time passes before the next one."""

DRIFT_SHARE: Final = 0.02
"""What the leader's clock may be faster than this process's: so much of the time is not counted on."""

TIMER_MIN_S: Final = 0.001


class Lease:
    """A lease that renews itself until `revoke` or until it is lost; made by `grant`.

    Attributes:
        id: the lease's; keys hang on it with ``put(..., lease=lease.id)``.
        ttl_s: its time to live in seconds.
        lost: fires, once, with one line on why, when the lease is over or may be: by then whatever it guards
            must not be relied on. Never fires after `revoke`.
    """

    def __init__(self, client: Client, lease_id: int, ttl_s: int, sent_s: float) -> None:
        self.id = lease_id
        self.ttl_s = ttl_s
        self.lost: Deferred[str] = Deferred()
        self._client = client
        self._reactor = client.reactor
        self._why = ""
        self._ended = False
        self._listeners: list[Callable[[str], None]] = []
        self._renewing: Deferred[Any] | None = None
        self._renew_call: Any = None
        self._lost_call: Any = None
        self._deadline_s = 0.0
        self._renewed(sent_s)

    @classmethod
    async def grant(cls, client: Client, ttl_s: int, timeout_s: float | None = None) -> Lease:
        """Open a lease of ``ttl_s`` seconds and keep it alive.

        Raises:
            LeaseLost: granting it took longer than it lives.
            PaxosError: see `KeyValues`.
        """
        sent_s = client.monotonic_s()
        granted = await client.kv.lease_grant(ttl_s, timeout_s=timeout_s)
        lease = cls(client, granted.id, granted.ttl, sent_s)
        if not lease.sure:
            lease._lose("it was granted too late")
            raise LeaseLost("the lease was granted too late to be of use; is the cluster overloaded?")
        return lease

    @property
    def sure(self) -> bool:
        """Whether the lease certainly lives, at this moment."""
        return not self._ended and self._client.monotonic_s() < self._deadline_s

    @property
    def remaining_s(self) -> float:
        """For how many seconds more it is certain to live if nothing comes in between; 0 when it is not."""
        return max(0.0, self._deadline_s - self._client.monotonic_s()) if not self._ended else 0.0

    def check(self) -> None:
        """Raises `LeaseLost` unless it is `sure`."""
        if not self.sure:
            raise LeaseLost(self._why or f"lease {self.id:x} may be over: it could not be renewed in time")

    def on_lost(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call ``listener`` when `lost` fires (at once if it has); returns what ends that."""
        if self._why:
            listener(self._why)
            return lambda: None
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def revoke(self, timeout_s: float | None = None) -> Deferred[None]:
        """Give it back: its keys are deleted. Done also if it is gone already.

        Fails with `PaxosError` when the cluster cannot be told; it then runs out by itself.
        """
        self._stop()
        return Deferred.fromCoroutine(self._revoke(timeout_s))

    def abandon(self) -> None:
        """Renew it no more, and let it run out by itself."""
        self._stop()

    async def _revoke(self, timeout_s: float | None) -> None:
        try:
            await self._client.kv.lease_revoke(self.id, timeout_s=timeout_s)
        except KeyValueError as error:
            if error.message != LEASE_NOT_FOUND.message:
                raise

    # -- renewal -------------------------------------------------------------------------------

    def _renewed(self, sent_s: float) -> None:
        """A keep-alive (or the grant) that was sent at ``sent_s`` has been applied."""
        self._deadline_s = max(self._deadline_s, sent_s + self.ttl_s * (1 - DRIFT_SHARE))
        self._plan_lost()
        self._plan_renewal(sent_s + self.ttl_s * RENEW_SHARE - self._client.monotonic_s())

    def _plan_renewal(self, delay_s: float) -> None:
        self._renew_call = self._reactor.callLater(max(TIMER_MIN_S, delay_s), self._renew)

    def _plan_lost(self) -> None:
        if self._lost_call is not None and self._lost_call.active():
            self._lost_call.cancel()
        delay_s = max(TIMER_MIN_S, self._deadline_s - self._client.monotonic_s())
        self._lost_call = self._reactor.callLater(delay_s, self._check_deadline)

    def _check_deadline(self) -> None:
        if self._client.monotonic_s() < self._deadline_s:
            self._plan_lost()  # The reactor's clock was stepped; ours was not.
            return
        self._lose(f"lease {self.id:x} could not be renewed in time")

    def _renew(self) -> None:
        if not self.sure:
            self._check_deadline()
            return
        sent_s = self._client.monotonic_s()
        timeout_s = min(self.ttl_s * RENEW_SHARE, self._deadline_s - sent_s)
        renewing = self._renewing = self._client.kv.lease_keep_alive(self.id, timeout_s=timeout_s)
        renewing.addCallbacks(self._kept, self._not_kept, (sent_s,))
        renewing.addErrback(self._broken)

    def _kept(self, result: LeaseKeepAliveResult, sent_s: float) -> None:
        self._renewing = None
        if self._ended:
            return
        if result.ttl <= 0:
            self._lose(f"lease {self.id:x} has expired, or was revoked")
            return
        self.ttl_s = result.ttl
        self._renewed(sent_s)

    def _not_kept(self, failure: Failure) -> None:
        self._renewing = None
        if self._ended:
            return
        failure.trap(PaxosError, CancelledError)
        log.debug("Lease {lease:x} was not renewed: {why}", lease=self.id, why=failure.getErrorMessage())
        self._plan_renewal(self.ttl_s * RETRY_SHARE)

    def _broken(self, failure: Failure) -> None:
        log.failure("Renewing a lease failed", failure)
        self._lose(f"lease {self.id:x} cannot be renewed: {failure.getErrorMessage()}")

    # -- the end -------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._ended = True
        self._listeners.clear()
        for call in (self._renew_call, self._lost_call):
            if call is not None and call.active():
                call.cancel()
        if self._renewing is not None:
            self._renewing.cancel()

    def _lose(self, why: str) -> None:
        if self._ended:
            return
        self._why = why
        listeners = list(self._listeners)
        self._stop()
        for listener in listeners:
            listener(why)
        self.lost.callback(why)
