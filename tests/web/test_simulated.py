"""The JSON API on a simulated cluster of real nodes."""

from __future__ import annotations

import json

from tests.simulated import ClusterCase
from tests.web.sites import MEMBERS, HttpClient, b64
from twisted_paxos.web.gateway import REQUEST_TIMEOUT_S, TICK_S, UNSERVED_MAX_S, Identity
from twisted_paxos.web.http import GatewaySite
from twisted_paxos.web.site import make_site

K = b64(b"k")


class ClusterTests(ClusterCase):
    """Three nodes with a site each."""

    def setUp(self) -> None:
        """Make the sites."""
        super().setUp()
        self.sites = {uid: self.site(uid) for uid in self.cluster.nodes}

    def site(self, uid: str) -> GatewaySite:
        """The one of a running node."""
        simulated = self.cluster.nodes[uid]
        node = simulated.node
        assert node is not None
        return make_site(node, simulated.reactor, Identity(node.cluster, MEMBERS), f"http-{uid}")

    def begin(self, uid: str, path: str, message: object) -> HttpClient:
        """Send a request to a node."""
        client = HttpClient(self.sites[uid])
        client.send(f"/v3/{path}", json.dumps(message).encode())
        return client

    def finished(self, client: HttpClient, timeout_s: float = 10.0) -> dict:
        """The body of the reply."""
        self.assertTrue(self.cluster.run_until(lambda: bool(client.transport.value()), timeout_s))
        answer: dict = client.reply().json
        return answer

    def test_any_node(self) -> None:
        """Every node takes writes, and reads what was written at another one."""
        for number, uid in enumerate("ABC"):
            self.finished(self.begin(uid, "kv/put", {"key": K, "value": b64(b"%d" % number)}))
            for other in "ABC":
                found = self.finished(self.begin(other, "kv/range", {"key": K}))
                self.assertEqual(b64(b"%d" % number), found["kvs"][0]["value"])

    def test_headers_agree(self) -> None:
        """Cluster and term are the same at every node, the member's id is its own."""
        headers = [self.finished(self.begin(uid, "kv/put", {"key": K}))["header"] for uid in "ABC"]
        self.assertEqual(1, len({(header["cluster_id"], header["raft_term"]) for header in headers}))
        self.assertEqual(3, len({header["member_id"] for header in headers}))

    def test_no_majority(self) -> None:
        """A node alone answers Unavailable within its time, and ends its watches."""
        self.finished(self.begin("A", "kv/put", {"key": K}))
        watching = self.begin("A", "watch", {"create_request": {"key": K}})
        self.assertIn("created", watching.messages()[0]["result"])
        self.cluster.network.isolate(self.cluster.nodes["A"].host)
        write = self.begin("A", "kv/put", {"key": K})
        read = self.begin("A", "kv/range", {"key": K})
        local = self.begin("A", "kv/range", {"key": K, "serializable": True})
        self.assertEqual("1", self.finished(local)["count"])
        for client in (write, read):
            answer = self.finished(client, REQUEST_TIMEOUT_S + 0.5)
            self.assertEqual((14, "etcdserver: request timed out"), (answer["code"], answer["message"]))
        self.cluster.run(UNSERVED_MAX_S + 3 * TICK_S)
        (message,) = watching.messages()
        self.assertEqual(
            (14, "etcdserver: no leader"), (message["error"]["code"], message["error"]["message"])
        )
        self.assertEqual(503, self.health("A"))

    def health(self, uid: str) -> int:
        """HTTP status of ``/health``."""
        client = HttpClient(self.sites[uid])
        client.send("/health", method="GET")
        return client.reply().code

    def test_timed_out_write_applies_once(self) -> None:
        """A write that was given up may still be done, once, when the majority is back."""
        self.finished(self.begin("A", "kv/put", {"key": K}))
        self.cluster.network.isolate(self.cluster.nodes["A"].host)
        answer = self.finished(self.begin("A", "kv/put", {"key": K}))
        self.assertEqual(14, answer["code"])
        self.cluster.network.heal_all()
        self.cluster.run(5)
        found = self.finished(self.begin("B", "kv/range", {"key": K}))
        self.assertEqual("2", found["kvs"][0]["version"])
        self.assertEqual(200, self.health("A"))

    def test_leader_dies(self) -> None:
        """Requests at the others go on over a change of leader; the term does not go back."""
        leader = self.leader
        other = next(uid for uid in self.cluster.nodes if uid != leader.uid)
        term = int(self.finished(self.begin(other, "kv/put", {"key": K}))["header"]["raft_term"])
        leader.crash()
        answer = self.finished(self.begin(other, "kv/put", {"key": K}))
        self.assertTrue(int(answer["header"]["raft_term"]) > term, answer)

    def test_lock_over_change_of_leader(self) -> None:
        """A waiter gets the lock although the leader dies while it waits."""
        leader = self.leader
        first, second = (uid for uid in self.cluster.nodes if uid != leader.uid)
        for lease in (1, 2):
            self.finished(self.begin(first, "lease/grant", {"TTL": 600, "ID": lease}))
        held = self.finished(self.begin(first, "lock/lock", {"name": K, "lease": 1}))
        waiting = self.begin(second, "lock/lock", {"name": K, "lease": 2})
        self.cluster.run(1)
        leader.crash()
        self.finished(self.begin(first, "lock/unlock", {"key": held["key"]}))
        self.assertEqual(b64(b"k/2"), self.finished(waiting)["key"])
