"""Requests with one reply: the key-value store, leases, the cluster, users."""

from __future__ import annotations

from base64 import b64decode

from msgspec import structs

from tests.web.sites import HttpClient, WebCase, b64
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.errors import NodeStopped, Overloaded, StorageFailed, StorageFull
from twisted_paxos.statemachine.commands import NodeStatus
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.web import cluster, gateway, streams
from twisted_paxos.web.endpoints import endpoints
from twisted_paxos.web.gateway import REQUEST_TIMEOUT_S

K, V = b64(b"k"), b64(b"v")


class KvTests(WebCase):
    """``kv/``."""

    def test_put_and_range(self) -> None:
        """A key that was put is there; int64 are text, defaults are left out."""
        self.assertEqual({}, self.ask("kv/put", {"key": K, "value": V}))
        self.assertEqual(
            {
                "kvs": [{"key": K, "create_revision": "2", "mod_revision": "2", "version": "1", "value": V}],
                "count": "1",
            },
            self.ask("kv/range", {"key": K}),
        )

    def test_nothing_found(self) -> None:
        """Nothing but the header."""
        self.assertEqual({}, self.ask("kv/range", {"key": K}))

    def test_header(self) -> None:
        """Ids, revision and term are in every reply; each member has an id of its own."""
        header = self.call("kv/put", {"key": K}).json["header"]
        self.assertEqual({"cluster_id", "member_id", "revision", "raft_term"}, set(header))
        self.assertEqual(("170", "2", "1"), (header["cluster_id"], header["revision"], header["raft_term"]))
        members = self.call("cluster/member/list").json["members"]
        ids = {member["name"]: member["ID"] for member in members}
        self.assertEqual(header["member_id"], ids["A"])
        self.assertEqual(3, len(set(ids.values())))

    def test_term_never_falls(self) -> None:
        """The term is the highest one that was seen."""
        rounds = iter((5, 3, 7))
        status = self.node.status()
        self.node.status = lambda: _promised(status, next(rounds))  # type: ignore[method-assign]
        seen = []
        for _ in range(3):
            self.clock.advance(1)
            seen.append(self.call("kv/put", {"key": K}).json["header"]["raft_term"])
        self.assertEqual(["5", "5", "7"], seen)

    def test_range_options(self) -> None:
        """Limit, order, counts and ends of ranges reach the store."""
        for name in (b"a", b"b", b"c"):
            self.put(name)
        every = {"key": b64(b"\0"), "range_end": b64(b"\0")}
        found = self.ask("kv/range", {**every, "limit": 2, "sort_order": "DESCEND", "keys_only": True})
        self.assertEqual([b64(b"c"), b64(b"b")], [kv["key"] for kv in found["kvs"]])
        self.assertEqual((True, "3"), (found["more"], found["count"]))
        self.assertNotIn("value", found["kvs"][0])
        self.assertEqual({"count": "3"}, self.ask("kv/range", {**every, "count_only": True}))
        bounded = self.ask("kv/range", {**every, "min_mod_revision": 3})
        self.assertEqual((2, "3"), (len(bounded["kvs"]), bounded["count"]))

    def test_prev_kv(self) -> None:
        """The version before, of puts and of deletions."""
        self.put(b"k", b"1")
        put = self.ask("kv/put", {"key": K, "value": V, "prev_kv": True})
        self.assertEqual(b64(b"1"), put["prev_kv"]["value"])
        deleted = self.ask("kv/deleterange", {"key": K, "prev_kv": True})
        self.assertEqual(("1", V), (deleted["deleted"], deleted["prev_kvs"][0]["value"]))
        self.assertEqual({}, self.ask("kv/deleterange", {"key": K}))

    def test_txn(self) -> None:
        """Compares, both branches, every operation, nested ones; result may be left out."""
        compare = [{"key": K, "target": "CREATE", "create_revision": "0"}]
        done = self.ask("kv/txn", {"compare": compare, "success": [{"request_put": {"key": K, "value": V}}]})
        self.assertEqual(
            {"succeeded": True, "responses": [{"response_put": {"header": {"revision": "2"}}}]}, done
        )
        nested = {"request_txn": {"success": [{"request_delete_range": {"key": K}}]}}
        done = self.ask("kv/txn", {"compare": compare, "failure": [{"request_range": {"key": K}}, nested]})
        self.assertNotIn("succeeded", done)
        read, inner = done["responses"]
        self.assertEqual(
            ("1", V), (read["response_range"]["count"], read["response_range"]["kvs"][0]["value"])
        )
        self.assertEqual(
            {
                "header": {},
                "succeeded": True,
                "responses": [{"response_delete_range": {"header": {"revision": "3"}, "deleted": "1"}}],
            },
            inner["response_txn"],
        )

    def test_empty_txn(self) -> None:
        """It succeeds; an empty operation in it is refused as etcd does."""
        self.assertEqual({"succeeded": True}, self.ask("kv/txn"))
        self.assertEqual((400, 3, "etcdserver: key not found"), self.refusal("kv/txn", {"success": [{}]}))

    def test_compaction(self) -> None:
        """History goes, and who asks for it is told."""
        for value in (b"1", b"2", b"3"):
            self.put(b"k", value)
        self.assertEqual({}, self.ask("kv/compaction", {"revision": "3", "physical": True}))
        compacted = (400, 11, "etcdserver: mvcc: required revision has been compacted")
        self.assertEqual(compacted, self.refusal("kv/range", {"key": K, "revision": 2}))
        self.assertEqual(compacted, self.refusal("kv/compaction", {"revision": 3}))
        future = (400, 11, "etcdserver: mvcc: required revision is a future revision")
        self.assertEqual(future, self.refusal("kv/compaction", {"revision": 99}))

    def test_refusals(self) -> None:
        """The store's refusals have etcd's texts and statuses."""
        missing = (400, 3, "etcdserver: key is not provided")
        for path in ("kv/put", "kv/range", "kv/deleterange"):
            self.assertEqual(missing, self.refusal(path))
        self.assertEqual(
            (404, 5, "etcdserver: requested lease not found"), self.refusal("kv/put", {"key": K, "lease": 9})
        )
        self.assertEqual((400, 3), self.refusal("kv/put", b"{")[:2])

    def test_large_answer(self) -> None:
        """An answer over the limit is refused, with what to do; in parts it is had."""
        self.patch(gateway, "ANSWER_MAX_BYTES", 1_000)
        for number in range(20):
            self.put(b"k%d" % number, bytes(50))
        every = {"key": b64(b"\0"), "range_end": b64(b"\0")}
        status, code, message = self.refusal("kv/range", every)
        self.assertEqual((429, 8), (status, code))
        self.assertIn("set a limit", message)
        self.assertEqual(5, len(self.ask("kv/range", {**every, "limit": 5})["kvs"]))

    def test_term_of_who_has_no_vote(self) -> None:
        """An observer, and a node that comes back without its promise, have the term that they hear of."""
        made = self.node.status()
        heard = ProposalID(4, "B")
        for role, promised, term in (
            ("follower", ProposalID(3, "B"), "3"),
            ("follower", NO_BALLOT, "4"),
            ("joining", ProposalID(1, "A"), "4"),
            ("observer", NO_BALLOT, "4"),
        ):
            status = structs.replace(made, role=role, ballot=heard, promised=promised)
            self.node.status = lambda status=status: status  # type: ignore[misc]
            client = HttpClient(self.make_site(self.node))
            client.send("/v3/kv/put", b'{"key":"aw=="}')
            self.assertEqual(term, client.reply().json["header"]["raft_term"], role)

    def test_serializable(self) -> None:
        """A serializable read needs no leader."""
        self.node.hold_queries = True
        self.assertEqual({}, self.ask("kv/range", {"key": K, "serializable": True}))


class NodeTroubleTests(WebCase):
    """What becomes of requests when the node cannot do them."""

    def test_refused_at_once(self) -> None:
        """What the node does not take is told with a code by which clients know whether to try again."""
        for error, expected in (
            (Overloaded("busy"), (429, 8, "etcdserver: too many requests")),
            (NodeStopped("stops"), (503, 14, "etcdserver: server stopped")),
            (StorageFull("full"), (429, 8, "etcdserver: mvcc: database space exceeded")),
            (StorageFailed("broken"), (503, 14, "etcdserver: server stopped")),
        ):
            self.node.refuse = error
            self.assertEqual(expected, self.refusal("kv/put", {"key": K}))
        self.node.query_error = Overloaded("busy")
        self.assertEqual((429, 8, "etcdserver: too many requests"), self.refusal("kv/range", {"key": K}))

    def test_write_timeout(self) -> None:
        """A write that nobody chooses ends as unavailable after its time; later ones are served."""
        self.node.hold = True
        client = self.connect()
        client.send("/v3/kv/put", b'{"key":"aw=="}')
        self.clock.advance(REQUEST_TIMEOUT_S - 0.1)
        self.assertEqual(b"", client.transport.value())
        self.clock.advance(0.2)
        self.assertEqual(503, client.reply().code)
        self.node.release()
        self.assertEqual("1", self.ask("kv/range", {"key": K})["count"])
        self.put(b"other")

    def test_read_timeout(self) -> None:
        """A read that no leader confirms ends as unavailable after its time."""
        self.node.hold_queries = True
        client = self.connect()
        client.send("/v3/kv/range", b'{"key":"aw=="}')
        self.clock.advance(REQUEST_TIMEOUT_S)
        reply = client.reply()
        self.assertEqual(
            (503, 14, "etcdserver: request timed out"),
            (reply.code, reply.json["code"], reply.json["message"]),
        )

    def test_unforeseen(self) -> None:
        """What nobody foresaw is logged, and the client learns nothing of its insides."""
        self.node.query_error = ZeroDivisionError("secret")
        self.assertEqual((500, 13), self.refusal("kv/range", {"key": K})[:2])
        self.assertNotIn("secret", self.refusal("kv/range", {"key": K})[2])
        self.assertEqual(2, len(self.flushLoggedErrors(ZeroDivisionError)))

    def test_too_large(self) -> None:
        """A command over the limit, and a body over the limit."""
        large = (400, 3, "etcdserver: request is too large")
        self.assertEqual(large, self.refusal("kv/put", {"key": K, "value": b64(bytes(1_600_000))}))
        self.assertEqual(large, self.refusal("kv/put", {"key": K, "value": b64(bytes(3_000_000))}))
        self.assertEqual(large, self.refusal("kv/put", {"key": K, "value": b64(bytes(5_000_000))}))

    def test_stop(self) -> None:
        """When the node stops, what waits is told, and connections close."""
        self.node.hold = True
        client = self.connect()
        client.send("/v3/kv/put", b'{"key":"aw=="}')
        self.site.close_all()
        self.assertTrue(client.closed)
        self.assertEqual("etcdserver: server stopped", client.reply().json["message"])


class LeaseTests(WebCase):
    """``lease/``."""

    def test_grant(self) -> None:
        """An id is picked for 0, short times become longer, an id in use is refused."""
        picked = self.ask("lease/grant", {"TTL": 5})
        self.assertEqual("5", picked["TTL"])
        self.assertEqual({"ID": "7", "TTL": "2"}, self.ask("lease/grant", {"TTL": "1", "ID": "7"}))
        self.assertEqual((412, 9, "etcdserver: lease already exists"), self.refusal("lease/grant", {"ID": 7}))
        self.assertEqual((400, 11), self.refusal("lease/grant", {"TTL": 9_000_000_001})[:2])

    def test_time_to_live(self) -> None:
        """What is left, what was granted, which keys; -1 for none."""
        self.ask("lease/grant", {"TTL": 60, "ID": 7})
        self.put(b"k", lease=7)
        self.node.advance(20)
        for path in ("lease/timetolive", "kv/lease/timetolive"):
            self.assertEqual(
                {"ID": "7", "TTL": "40", "grantedTTL": "60", "keys": [K]},
                self.ask(path, {"ID": 7, "keys": True}),
            )
        self.assertEqual({"ID": "8", "TTL": "-1"}, self.ask("lease/timetolive", {"ID": 8}))

    def test_leases_and_revoke(self) -> None:
        """All leases, until they are revoked; their keys go with them."""
        for lease in (7, 8):
            self.ask("lease/grant", {"TTL": 60, "ID": lease})
        self.put(b"k", lease=7)
        self.assertEqual({"leases": [{"ID": "7"}, {"ID": "8"}]}, self.ask("lease/leases"))
        self.assertEqual({}, self.ask("kv/lease/revoke", {"ID": 7}))
        self.assertEqual({"leases": [{"ID": "8"}]}, self.ask("kv/lease/leases"))
        self.assertEqual({}, self.ask("kv/range", {"key": K}))
        self.assertEqual((404, 5), self.refusal("lease/revoke", {"ID": 7})[:2])

    def test_keep_alive(self) -> None:
        """One answer for each request of the body, then the end; a lease that is gone has no TTL."""
        self.ask("lease/grant", {"TTL": 60, "ID": 7})
        self.node.advance(50)
        client = self.stream("lease/keepalive", {"ID": 7}, {"ID": 8})
        raw = client.transport.value()
        results = [message["result"] for message in client.messages()]
        self.assertEqual([("7", "60"), ("8", None)], [(r["ID"], r.get("TTL")) for r in results])
        self.assertTrue(raw.endswith(b"0\r\n\r\n"))
        self.assertEqual("60", self.ask("lease/timetolive", {"ID": 7})["TTL"])

    def test_keep_alive_of_nothing(self) -> None:
        """An empty body gives an empty stream; what is no JSON an error with the code of streams."""
        self.assertEqual(b"", self.call("lease/keepalive", b"").body)
        self.assertEqual((500, 2), self.refusal("lease/keepalive", b"x")[:2])

    def test_keep_alive_fails_midway(self) -> None:
        """An error after the first answer is the stream's last message."""
        client = self.connect()
        client.send("/v3/lease/keepalive", b'{"ID":7} x')
        good, bad = client.messages()
        self.assertEqual("7", good["result"]["ID"])
        self.assertEqual(
            {"grpc_code": 2, "http_code": 500, "http_status": "Internal Server Error", "code": 2},
            {name: value for name, value in bad["error"].items() if name != "message"},
        )


class ClusterTests(WebCase):
    """``cluster/``, ``maintenance/``, ``auth/``."""

    def test_members(self) -> None:
        """Every node, with where clients reach it."""
        (first, *_) = members = self.ask("cluster/member/list")["members"]
        self.assertEqual(3, len(members))
        self.assertEqual(("A", ["http://10.0.0.1:5000"]), (first["name"], first["peerURLs"]))
        self.assertEqual(["http://10.0.0.1:5200"], first["clientURLs"])

    def test_members_cannot_change(self) -> None:
        """etcd's refusals where it has some; else it is not implemented."""
        own = self.ask("cluster/member/list")["members"][0]["ID"]
        self.assertEqual((400, 3), self.refusal("cluster/member/add")[:2])
        self.assertEqual((501, 12), self.refusal("cluster/member/add", {"peerURLs": ["http://x:1"]})[:2])
        for path in ("remove", "update", "promote"):
            self.assertEqual((404, 5), self.refusal(f"cluster/member/{path}", {"ID": 5})[:2])
            self.assertEqual((501, 12), self.refusal(f"cluster/member/{path}", {"ID": own})[:2])

    def test_status(self) -> None:
        """Version, size, leader, slots; without a leader it says so."""
        self.put(b"k")
        status = self.ask("maintenance/status")
        own = self.call("kv/put", {"key": K}).json["header"]["member_id"]
        self.assertEqual((own, "1"), (status["leader"], status["raftTerm"]))
        self.assertTrue(
            int(status["dbSize"]) > 200 and int(status["raftIndex"]) >= int(status["raftAppliedIndex"])
        )
        self.node.leader_works = False
        status = self.ask("maintenance/status")
        self.assertEqual(["etcdserver: no leader"], status["errors"])
        self.assertNotIn("leader", status)

    def test_hash(self) -> None:
        """A number that follows from the state."""
        hashes = []
        for _ in range(3):
            client = self.stream("maintenance/hash", {})
            self.clock.pump([0.01] * 50)
            hashes.append(client.reply().json["hash"])
            if len(hashes) == 2:
                self.put(b"k")
        self.assertTrue(hashes[0] == hashes[1] != hashes[2] and hashes[0] < 1 << 32)

    def test_snapshot(self) -> None:
        """The store's snapshot, piece by piece, as one can restore it."""
        self.put(b"k")
        client = self.stream("maintenance/snapshot", {})
        self.clock.pump([0.01] * 50)
        pieces = [b64decode(message["result"]["blob"]) for message in client.messages()]
        restored = KeyValueStore()
        for _ in restored.restore(iter(pieces)):
            pass
        self.assertEqual(self.node.machine.hash(), restored.hash())

    def test_scans_are_bounded(self) -> None:
        """Few read the whole store at the same time; one that takes too long is cut off, and another may."""
        self.patch(gateway, "SCANS_MAX", 1)
        self.patch(streams, "STALL_MAX_S", 1e9)
        slow = self.connect()
        slow.transport.pause()
        slow.send("/v3/maintenance/snapshot", b"{}")
        self.clock.pump([0.01] * 50)
        busy = (429, 8, "etcdserver: too many requests")
        self.assertEqual(busy, self.refusal("maintenance/snapshot"))
        self.assertEqual(busy, self.refusal("maintenance/hash"))
        self.clock.advance(cluster.SNAPSHOT_MAX_S)
        self.assertIn("error", slow.messages()[-1])
        client = self.stream("maintenance/hash", {})
        self.clock.pump([0.01] * 50)
        self.assertEqual(200, client.reply().code)

    def test_scan_of_who_leaves(self) -> None:
        """A client that leaves while it gets a snapshot makes room for the next one."""
        self.patch(gateway, "SCANS_MAX", 1)
        self.stream("maintenance/snapshot", {}).leave()
        client = self.stream("maintenance/snapshot", {})
        self.clock.pump([0.01] * 50)
        self.assertTrue(client.messages())
        client.leave()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_small_ones(self) -> None:
        """No alarms, nothing to defragment, no leader to hand over."""
        self.assertEqual({}, self.call("maintenance/alarm").json)
        self.assertEqual({}, self.call("maintenance/defragment").json)
        self.assertEqual((412, 9), self.refusal("maintenance/transfer-leadership", {"targetID": "5"})[:2])

    def test_auth_is_off(self) -> None:
        """As etcd with authentication off."""
        off = (412, 9, "etcdserver: authentication is not enabled")
        self.assertEqual(off, self.refusal("auth/authenticate", {"name": "root", "password": "x"}))
        self.assertEqual((412, 9, "etcdserver: root user does not exist"), self.refusal("auth/enable"))
        for path in ("auth/disable", "auth/user/list", "auth/role/list"):
            self.assertEqual({}, self.ask(path))
        self.assertEqual(
            (412, 9, "etcdserver: user name not found"), self.refusal("auth/user/get", {"name": "x"})
        )
        self.assertEqual(
            (412, 9, "etcdserver: role name not found"), self.refusal("auth/role/get", {"role": "x"})
        )
        self.assertEqual((400, 3, "etcdserver: user name is empty"), self.refusal("auth/user/add"))
        self.assertEqual((400, 3, "etcdserver: role name is empty"), self.refusal("auth/role/add"))
        self.assertEqual((501, 12), self.refusal("auth/user/add", {"name": "x"})[:2])
        self.assertEqual((501, 12), self.refusal("auth/role/add", {"name": "x"})[:2])


class PathTests(WebCase):
    """What is where."""

    def test_prefixes(self) -> None:
        """Every endpoint is under both prefixes."""
        paths = {path.decode() for path in endpoints()}
        short = {path.removeprefix("/v3/") for path in paths if path.startswith("/v3/")}
        self.assertEqual(paths, {f"{prefix}{path}" for path in short for prefix in ("/v3/", "/v3beta/")})
        client = self.connect()
        client.send("/v3beta/kv/put", b'{"key":"aw=="}')
        self.assertEqual(200, client.reply().code)

    def test_query_string(self) -> None:
        """It does not matter."""
        client = self.connect()
        client.send("/v3/kv/put?x=y&z", b'{"key":"aw=="}')
        self.assertEqual(200, client.reply().code)

    def test_form_type(self) -> None:
        """A body is JSON, whatever its type says."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        self.assertEqual(200, self.call("kv/put", {"key": K}, headers=headers).code)

    def test_unknown(self) -> None:
        """404 for what is not there, 405 for what is not posted."""
        reply = self.call("kv/other")
        self.assertEqual((404, b"Not Found\n"), (reply.code, reply.body))
        self.assertEqual(405, self.get("/v3/kv/range").code)
        self.assertEqual(405, self.get("/health", method="POST").code)

    def test_health_and_version(self) -> None:
        """As etcd's."""
        self.assertEqual({"health": "true"}, self.get("/health").json)
        self.assertEqual({"etcdserver", "etcdcluster"}, set(self.get("/version").json))
        self.node.leader_works = False
        reply = self.get("/health")
        self.assertEqual((503, {"health": "false"}), (reply.code, reply.json))


def _promised(status: NodeStatus, number: int) -> NodeStatus:
    return structs.replace(status, promised=ProposalID(number, "A"))
