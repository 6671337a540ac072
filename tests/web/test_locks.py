"""Locks and elections."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from tests.web.sites import HttpClient, WebCase, b64
from twisted_paxos.web import gateway, locks

NAME = b64(b"name")


class LockCase(WebCase):
    """A fake node with leases 1, 2 and 3."""

    def setUp(self) -> None:
        """Grant them."""
        super().setUp()
        for lease in (1, 2, 3):
            self.ask("lease/grant", {"TTL": 60, "ID": lease})

    def begin(self, path: str, lease: int, **fields: Any) -> HttpClient:
        """Ask for a lock or a leadership."""
        return self.stream(path, {"name": NAME, "lease": lease, **fields})

    def answer(self, client: HttpClient) -> Any:
        """What came; None: it waits."""
        self.clock.pump([0.01] * 5)
        return client.reply().json if client.transport.value() else None

    def keys(self) -> list[bytes]:
        """The queue, as keys."""
        found = self.ask("kv/range", {"key": b64(b"name/"), "range_end": b64(b"name0")})
        return [b64decode(kv["key"]) for kv in found.get("kvs", ())]


class LockTests(LockCase):
    """``lock/``."""

    def test_free(self) -> None:
        """A free lock is held at once; its key is the name and the lease in hexadecimal."""
        self.ask("lease/grant", {"TTL": 60, "ID": 255})
        locked = self.answer(self.begin("lock/lock", 255))
        self.assertEqual(b"name/ff", b64decode(locked["key"]))
        self.assertEqual("2", locked["header"]["revision"])
        (kv,) = self.ask("kv/range", {"key": locked["key"]})["kvs"]
        self.assertEqual(("255", "2"), (kv["lease"], kv["create_revision"]))

    def test_queue(self) -> None:
        """Others wait, and get it in the order in which they came."""
        first, second, third = (self.begin("lock/lock", lease) for lease in (1, 2, 3))
        held = self.answer(first)
        self.assertEqual([None, None], [self.answer(second), self.answer(third)])
        self.ask("lock/unlock", {"key": held["key"]})
        held = self.answer(second)
        self.assertEqual((b"name/2", None), (b64decode(held["key"]), self.answer(third)))
        self.ask("lock/unlock", {"key": held["key"]})
        self.assertEqual(b"name/3", b64decode(self.answer(third)["key"]))
        self.assertEqual(0, len(self.node.watches))

    def test_again(self) -> None:
        """A lease that holds it has it."""
        self.answer(self.begin("lock/lock", 1))
        self.assertEqual(b"name/1", b64decode(self.answer(self.begin("lock/lock", 1))["key"]))

    def test_lease_ends(self) -> None:
        """A holder whose lease runs out holds nothing any more."""
        self.answer(self.begin("lock/lock", 1))
        waiter = self.begin("lock/lock", 2)
        self.assertIsNone(self.answer(waiter))
        self.ask("lease/revoke", {"ID": 1})
        self.assertIsNotNone(self.answer(waiter))

    def test_waiters_lease_ends(self) -> None:
        """A waiter whose lease ran out is refused, not given the lock."""
        held = self.answer(self.begin("lock/lock", 1))
        waiter = self.begin("lock/lock", 2)
        self.assertIsNone(self.answer(waiter))
        self.ask("lease/revoke", {"ID": 2})
        self.ask("lock/unlock", {"key": held["key"]})
        refused = self.answer(waiter)
        self.assertEqual((2, locks.SESSION_EXPIRED), (refused["code"], refused["message"]))

    def test_middle_of_queue_leaves(self) -> None:
        """Whoever waits behind one that leaves goes on waiting for those before it."""
        held = self.answer(self.begin("lock/lock", 1))
        second, third = self.begin("lock/lock", 2), self.begin("lock/lock", 3)
        self.answer(second)
        second.leave()
        self.assertIsNone(self.answer(third))
        self.assertEqual([b"name/1", b"name/3"], self.keys())
        self.ask("lock/unlock", {"key": held["key"]})
        self.assertIsNotNone(self.answer(third))

    def test_no_lease(self) -> None:
        """Without a lease one is granted for as long as etcd's."""
        key = b64decode(self.answer(self.begin("lock/lock", 0))["key"])
        lease = int(key.removeprefix(b"name/"), 16)
        self.assertEqual("60", self.ask("lease/timetolive", {"ID": lease})["grantedTTL"])

    def test_refusals(self) -> None:
        """They have the code that etcd gives them here."""
        unknown = (500, 2, "etcdserver: requested lease not found")
        self.assertEqual(unknown, self.refusal("lock/lock", {"name": NAME, "lease": 99}))
        self.assertEqual((500, 2, "etcdserver: key is not provided"), self.refusal("lock/unlock"))

    def test_no_leader(self) -> None:
        """A node that cannot serve any more tells its waiters, and tries to take them out of the queue."""
        self.answer(self.begin("lock/lock", 1))
        waiter = self.begin("lock/lock", 2)
        self.assertIsNone(self.answer(waiter))
        self.node.leader_works = False
        self.clock.pump([gateway.TICK_S] * 4)
        refused = self.answer(waiter)
        self.assertEqual((14, "etcdserver: no leader"), (refused["code"], refused["message"]))
        self.assertEqual([b"name/1"], self.keys())

    def test_compaction(self) -> None:
        """A compaction while one waits changes nothing."""
        held = self.answer(self.begin("lock/lock", 1))
        waiter = self.begin("lock/lock", 2)
        for _ in range(3):
            self.put(b"other")
        self.ask("kv/compaction", {"revision": 6})
        self.assertIsNone(self.answer(waiter))
        self.ask("lock/unlock", {"key": held["key"]})
        self.assertIsNotNone(self.answer(waiter))


class ElectionTests(LockCase):
    """``election/``."""

    def campaign(self, lease: int, value: bytes = b"v") -> HttpClient:
        """Stand for it."""
        return self.begin("election/campaign", lease, value=b64(value))

    def test_campaign(self) -> None:
        """One leads, the next one when it resigns."""
        won = self.answer(self.campaign(1, b"one"))["leader"]
        self.assertEqual(
            (b"name", b"name/1", "2", "1"),
            (b64decode(won["name"]), b64decode(won["key"]), won["rev"], won["lease"]),
        )
        second = self.campaign(2, b"two")
        self.assertIsNone(self.answer(second))
        self.assertEqual(b64(b"one"), self.ask("election/leader", {"name": NAME})["kv"]["value"])
        self.ask("election/resign", {"leader": won})
        self.assertEqual("2", self.answer(second)["leader"]["lease"])
        self.assertEqual(b64(b"two"), self.ask("election/leader", {"name": NAME})["kv"]["value"])

    def test_campaign_again(self) -> None:
        """Standing again with another value proclaims it."""
        self.answer(self.campaign(1, b"one"))
        self.assertIsNotNone(self.answer(self.campaign(1, b"other")))
        self.assertEqual(b64(b"other"), self.ask("election/leader", {"name": NAME})["kv"]["value"])

    def test_proclaim(self) -> None:
        """A leader changes its value; one that leads no more is told so."""
        won = self.answer(self.campaign(1))["leader"]
        self.ask("election/proclaim", {"leader": won, "value": b64(b"new")})
        self.assertEqual(b64(b"new"), self.ask("election/leader", {"name": NAME})["kv"]["value"])
        self.ask("election/resign", {"leader": won})
        self.ask("election/resign", {"leader": won})
        lost = (500, 2, "election: not leader")
        self.assertEqual(lost, self.refusal("election/proclaim", {"leader": won, "value": b64(b"x")}))

    def test_refusals(self) -> None:
        """What is missing is told in etcd's words."""
        missing = (500, 2, '"leader" field must be provided')
        self.assertEqual(missing, self.refusal("election/proclaim"))
        self.assertEqual(missing, self.refusal("election/resign"))
        self.assertEqual((500, 2, "election: no leader"), self.refusal("election/leader", {"name": NAME}))

    def observed(self, client: HttpClient) -> list[bytes]:
        """The values that came."""
        self.clock.pump([0.01] * 5)
        return [b64decode(message["result"]["kv"]["value"]) for message in client.messages()]

    def test_observe(self) -> None:
        """From the present leader on: every value, every new leader."""
        watcher = self.stream("election/observe", {"name": NAME})
        self.assertEqual([], self.observed(watcher))
        won = self.answer(self.campaign(1, b"one"))["leader"]
        self.answer(self.campaign(2, b"two"))
        self.assertEqual([b"one"], self.observed(watcher))
        self.ask("election/proclaim", {"leader": won, "value": b64(b"more")})
        self.assertEqual([b"more"], self.observed(watcher))
        self.ask("election/resign", {"leader": won})
        self.assertEqual([b"two"], self.observed(watcher))
        watcher.leave()
        self.assertEqual(0, len(self.node.watches))

    def test_observe_ends(self) -> None:
        """It ends with an error when the node cannot serve."""
        self.answer(self.campaign(1, b"one"))
        watcher = self.stream("election/observe", {"name": NAME})
        self.observed(watcher)
        self.node.leader_works = False
        self.clock.pump([gateway.TICK_S] * 4)
        self.assertEqual(14, watcher.messages()[0]["error"]["grpc_code"])
