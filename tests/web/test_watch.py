"""Watch streams."""

from __future__ import annotations

from tests.web.sites import HttpClient, WebCase, b64
from twisted_paxos.statemachine import watches
from twisted_paxos.web import gateway, http, streams, turns, watch

K = b64(b"k")


class WatchCase(WebCase):
    """Streams on a fake node."""

    def watch(self, *messages: object) -> HttpClient:
        """Open a stream."""
        return self.stream("watch", *messages)

    def watching(self, **fields: object) -> HttpClient:
        """Open a stream with one watch of ``k``, already past ``created``."""
        client = self.watch({"create_request": {"key": K, **fields}})
        self.results(client, 1)
        return client

    def results(self, client: HttpClient, count: int | None = None) -> list:
        """What came on a stream, without headers."""
        self.clock.advance(0)
        found = [message["result"] for message in client.messages()]
        for result in found:
            self.assertIn("cluster_id", result.pop("header"))
        if count is not None:
            self.assertEqual(count, len(found), found)
        return found


class EventTests(WatchCase):
    """What a watch tells."""

    def test_created_first(self) -> None:
        """A stream begins with ``created``, at once, and stays open."""
        client = self.watch({"create_request": {"key": K}})
        self.assertEqual([{"created": True}], self.results(client))
        self.clock.advance(3_600)
        self.assertEqual((b"", False), (client.transport.value(), client.closed))

    def test_events(self) -> None:
        """A put leaves out its type; a deletion has key and revision only."""
        client = self.watching()
        self.put(b"k", b"1")
        put = {"key": K, "create_revision": "2", "mod_revision": "2", "version": "1", "value": b64(b"1")}
        self.assertEqual([{"events": [{"kv": put}]}], self.results(client))
        self.ask("kv/deleterange", {"key": K})
        self.assertEqual(
            [{"events": [{"type": "DELETE", "kv": {"key": K, "mod_revision": "3"}}]}], self.results(client)
        )

    def test_one_revision_one_message(self) -> None:
        """All events of a transaction come together, each once; what is not watched does not come."""
        client = self.watch({"create_request": {"key": b64(b"a"), "range_end": b64(b"c")}})
        self.results(client, 1)
        puts = [{"request_put": {"key": b64(name)}} for name in (b"a", b"b", b"c")]
        self.ask("kv/txn", {"success": puts})
        (result,) = self.results(client)
        self.assertEqual([b64(b"a"), b64(b"b")], [event["kv"]["key"] for event in result["events"]])

    def test_from_revision(self) -> None:
        """History first, then the present; the header of what caught up has the present revision."""
        self.put(b"k", b"1")
        self.put(b"k", b"2")
        self.put(b"other")
        client = self.watch({"create_request": {"key": K, "start_revision": "2"}})
        self.clock.advance(0)
        created, history = (message["result"] for message in client.messages())
        self.assertEqual(("4", "4"), (created["header"]["revision"], history["header"]["revision"]))
        self.assertEqual(["2", "3"], [event["kv"]["mod_revision"] for event in history["events"]])
        self.put(b"k", b"3")
        (result,) = self.results(client)
        self.assertEqual("5", result["events"][0]["kv"]["mod_revision"])

    def test_prev_kv_and_filters(self) -> None:
        """The version before where it is asked for; filtered events do not come."""
        puts = self.watching(prev_kv=True, filters=["NODELETE"])
        deletes = self.watching(filters=["NOPUT"])
        self.put(b"k", b"1")
        self.put(b"k", b"2")
        self.ask("kv/deleterange", {"key": K})
        events = [event for result in self.results(puts) for event in result["events"]]
        self.assertEqual([None, b64(b"1")], [event.get("prev_kv", {}).get("value") for event in events])
        events = [event for result in self.results(deletes) for event in result["events"]]
        self.assertEqual(["DELETE"], [event["type"] for event in events])

    def test_compacted(self) -> None:
        """A start that is gone: created, then cancelled with where history begins; the stream stays open."""
        for value in (b"1", b"2", b"3"):
            self.put(b"k", value)
        self.ask("kv/compaction", {"revision": 3})
        client = self.watch({"create_request": {"key": K, "start_revision": 1}})
        self.assertEqual(
            [{"created": True}, {"canceled": True, "compact_revision": "3"}], self.results(client)
        )
        self.assertFalse(client.closed)
        self.assertEqual(0, len(self.node.watches))

    def test_all_keys(self) -> None:
        """An empty key is the first one, as with etcd."""
        client = self.watch({"create_request": {"range_end": b64(b"\0")}})
        self.results(client, 1)
        self.put(b"any")
        self.results(client, 1)

    def test_same_event_for_many(self) -> None:
        """Many watches of one key get the same chunk, also with other watches in between."""
        clients = [self.watching() for _ in range(3)]
        other = self.watching(watch_id=5)
        self.put(b"k", b"1")
        self.clock.advance(0)
        chunks = [client.chunks() for client in clients]
        self.assertEqual([chunks[0]] * 3, chunks)
        (result,) = self.results(other)
        self.assertEqual("5", result["watch_id"])


class ManyOnOneTests(WatchCase):
    """Several watches on one stream."""

    def test_ids(self) -> None:
        """Numbers are picked from 0 on, or given; a number in use is refused."""
        client = self.watch(
            {"create_request": {"key": K}},
            {"create_request": {"key": K, "watch_id": "7"}},
            {"createRequest": {"key": K}},
            {"create_request": {"key": K, "watch_id": 7}},
        )
        results = self.results(client)
        self.assertEqual([None, "7", "1", "-1"], [result.get("watch_id") for result in results])
        self.assertEqual(watch.DUPLICATE_ID, results[3]["cancel_reason"])
        self.put(b"k")
        self.assertEqual([None, "7", "1"], [result.get("watch_id") for result in self.results(client)])

    def test_empty_range(self) -> None:
        """A range that holds nothing is refused; the stream goes on."""
        client = self.watch(
            {"create_request": {"key": b64(b"b"), "range_end": b64(b"a")}}, {"create_request": {"key": K}}
        )
        refused, created = self.results(client)
        self.assertEqual(
            ("-1", True, "mvcc: watcher range is empty"),
            (refused["watch_id"], refused["canceled"], refused["cancel_reason"]),
        )
        self.assertEqual({"created": True}, created)

    def test_cancel(self) -> None:
        """A cancelled watch says so, and tells no more; one that is not there is none."""
        client = self.watch(
            {"create_request": {"key": K}},
            {"cancel_request": {"watch_id": 0}},
            {"cancel_request": {"watch_id": 9}},
        )
        self.assertEqual([{"created": True}, {"canceled": True}], self.results(client))
        self.put(b"k")
        self.assertEqual([], self.results(client))

    def test_progress(self) -> None:
        """Progress that is asked for comes after everything that it speaks for."""
        self.put(b"k")
        client = self.watch({"create_request": {"key": K, "start_revision": 2}}, {"progress_request": {}})
        created, events, progress = self.results(client)
        self.assertTrue(created["created"] and events["events"])
        self.assertEqual({"watch_id": "-1"}, progress)

    def test_progress_notify(self) -> None:
        """A watch that asks for it hears from time to time how far it is."""
        client = self.watching(progress_notify=True)
        self.put(b"other")
        self.clock.advance(watch.PROGRESS_S)
        self.clock.advance(0)
        (message,) = client.messages()
        self.assertEqual({"header"}, set(message["result"]))
        self.assertEqual("2", message["result"]["header"]["revision"])

    def test_bounded(self) -> None:
        """One stream has so many watches at most."""
        self.patch(watch, "WATCHES_PER_STREAM_MAX", 2)
        results = self.results(self.watch(*[{"create_request": {"key": K}}] * 3))
        reasons = [result.get("cancel_reason") for result in results]
        self.assertEqual([None, None, "etcdserver: too many requests"], reasons)

    def test_hub_is_full(self) -> None:
        """So has a node."""
        self.patch(watches, "WATCHERS_MAX", 1)
        results = self.results(self.watch(*[{"create_request": {"key": K}}] * 2))
        self.assertEqual("etcdserver: too many requests", results[-1]["cancel_reason"])

    def test_no_json(self) -> None:
        """What is no message is refused with the code of streams."""
        self.assertEqual((500, 2), self.refusal("watch", b"x")[:2])
        self.assertEqual((500, 2), self.refusal("watch", {"create_request": {"key": 5}})[:2])


class EndTests(WatchCase):
    """How streams end."""

    def test_client_leaves(self) -> None:
        """Nothing of it is left in the node, and no timer."""
        clients = [self.watching(progress_notify=True) for _ in range(2)]
        for client in clients:
            client.leave()
        self.assertEqual((0, 0), (len(self.node.watches), len(self.site.connections)))
        self.put(b"k")
        self.clock.advance(gateway.TICK_S)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_no_leader(self) -> None:
        """A node without a leader that works ends its streams with an error, soon and not at once."""
        client = self.watching()
        self.node.leader_works = False
        self.clock.pump([0.5] * 4)
        self.assertFalse(client.closed or client.transport.value())
        self.clock.pump([0.5] * 4)
        (message,) = client.messages()
        self.assertEqual(
            {
                "grpc_code": 14,
                "http_code": 503,
                "message": "etcdserver: no leader",
                "http_status": "Service Unavailable",
                "code": 14,
            },
            message["error"],
        )
        self.assertEqual(0, len(self.node.watches))

    def test_leader_comes_back(self) -> None:
        """A short time without a leader ends nothing."""
        client = self.watching()
        for _ in range(5):
            self.node.leader_works = False
            self.clock.advance(gateway.TICK_S)
            self.node.leader_works = True
            self.clock.advance(gateway.TICK_S)
        self.put(b"k")
        self.results(client, 1)

    def test_node_stops(self) -> None:
        """The stream ends with an error when the node does."""
        client = self.watching()
        self.site.close_all()
        (message,) = client.messages()
        self.assertEqual("etcdserver: server stopped", message["error"]["message"])
        self.assertTrue(client.closed)

    def test_slow_client(self) -> None:
        """Nothing is sent to a client that does not read; it gets everything when it reads again."""
        client = self.watching()
        client.transport.pause()
        for number in range(1_000):
            self.put(b"k", b"%d" % number)
        self.clock.advance(1)
        self.assertEqual(b"", client.transport.value())
        client.transport.resume()
        self.clock.pump([0.01] * 100)
        events = [event for result in self.results(client) for event in result["events"]]
        self.assertEqual(list(range(2, 1_002)), [int(event["kv"]["mod_revision"]) for event in events])

    def test_stalled_client(self) -> None:
        """One that does not read for long is dropped, and counted."""
        client = self.watching()
        client.transport.pause()
        self.clock.advance(streams.STALL_MAX_S + 1)
        self.assertTrue(client.transport.aborting)
        self.assertEqual({"stalled": 1}, self.site.refused)

    def test_turns(self) -> None:
        """However many streams have something to send, one turn of the reactor sends for a short time."""
        sent: list[int] = []

        class Sender:
            def take_turn(sender) -> None:
                sent.append(1)
                self.clock.rightNow += 0.002

        every = turns.Turns(self.clock)
        for _ in range(20):
            every.add(Sender())
        (call,) = self.clock.getDelayedCalls()
        call.func()
        self.assertEqual(3, len(sent))
        self.clock.pump([0.001] * 50)
        self.assertEqual(20, len(sent))


class IdleTests(WatchCase):
    """Time limits of connections."""

    def test_idle_connection(self) -> None:
        """A connection that asks for nothing is closed, a stream is not."""
        idle, stream = self.connect(), self.watching()
        self.clock.advance(http.IDLE_TIMEOUT_S + 1)
        self.assertEqual((True, False), (idle.closed, stream.closed))
