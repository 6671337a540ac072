"""Configuration: what is filled in, what is refused, and with which words."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos import addresses, config
from twisted_paxos.addresses import Address, parse_address, server_endpoint, told_client
from twisted_paxos.config import NodeConfig, build_config, fingerprint
from twisted_paxos.core import limits
from twisted_paxos.errors import ConfigError
from twisted_paxos.service import build_service
from twisted_paxos.statemachine.kvlimits import KvLimits

FINGERPRINT_ABC = "d5d16ca3dd5b3734"
PEERS = ("A=10.0.0.1:7000", "B=10.0.0.2:7000", "C=[fd00::3]:7000")


class ConfigCase(SynchronousTestCase):
    """Helpers."""

    def refused(self, uid: str = "A", **options: Any) -> str:
        """The one line with which these options are refused."""
        error = self.assertRaises(ConfigError, build_config, uid, **options)
        self.assertNotIn("\n", str(error))
        return str(error)

    def write(self, text: str, name: str = "cluster.toml") -> str:
        """A file with ``text``."""
        path = Path(self.mktemp())
        path.mkdir()
        (path / name).write_text(text)
        return str(path / name)


class BuiltInTests(ConfigCase):
    """Without any option: the seed's cluster A, B, C."""

    def test_members(self) -> None:
        """A, B and C have the peer ports 5000 to 5002 and the client ports 5100 to 5102 on loopback."""
        for place, uid in enumerate("ABC"):
            made = build_config(uid)
            self.assertEqual(made.address, ("127.0.0.1", 5000 + place))
            self.assertEqual(made.bind, made.address)
            self.assertEqual(made.client, f"tcp:{5100 + place}:interface=127.0.0.1")
            self.assertEqual(made.client_told, f"127.0.0.1:{5100 + place}")
            self.assertEqual(list(made.members), ["A", "B", "C"])
            self.assertNotIn(uid, made.peers)
            self.assertEqual(len(made.peers), 2)

    def test_defaults(self) -> None:
        """The other defaults are the documented ones."""
        made = build_config("B")
        self.assertEqual(made.storage, "file:paxos_data/B")
        self.assertEqual((made.heartbeat_ms, made.disk_stall_ms), (100, 2000))
        self.assertEqual((made.cluster_key, made.datagram_max_bytes, made.observer), (None, None, False))

    def test_observers(self) -> None:
        """Further letters are observers with the next ports, and no members."""
        made = build_config("E", observer=True)
        self.assertEqual((made.address.port, made.client_told), (5004, "127.0.0.1:5104"))
        self.assertTrue(made.observer)
        self.assertEqual(list(made.members), ["A", "B", "C"])
        self.assertEqual(list(made.peers), ["A", "B", "C"])

    def test_unknown_id(self) -> None:
        """A further node that is no observer is refused, and so is an observer that is a voter."""
        self.assertIn("node D is not in the built-in cluster", self.refused("D"))
        self.assertIn("needs an id of its own", self.refused("A", observer=True))
        self.assertIn("does not say where node spare is", self.refused("spare", observer=True))

    def test_frozen(self) -> None:
        """A configuration cannot be changed."""
        made = build_config("A")
        self.assertRaises(AttributeError, setattr, made, "uid", "B")


class PeerTests(ConfigCase):
    """``--peer``."""

    def test_members(self) -> None:
        """Each is a voter; ports for clients are 100 above; IPv6 addresses are bound as such."""
        made = build_config("C", peers=PEERS)
        self.assertEqual(made.members["A"], Address("10.0.0.1", 7000))
        self.assertEqual(made.bind, Address("fd00::3", 7000))
        self.assertEqual(made.client, "tcp6:7100:interface=fd00\\:\\:3")
        self.assertEqual(made.client_told, "[fd00::3]:7100")

    def test_observer(self) -> None:
        """An observer's own --peer says where it is, and does not make it a voter."""
        made = build_config("D", peers=(*PEERS, "D=10.0.0.4:7000"), observer=True)
        self.assertEqual((made.address.host, list(made.members)), ("10.0.0.4", ["A", "B", "C"]))
        self.assertEqual(made.fingerprint(True), build_config("A", peers=PEERS).fingerprint(True))

    def test_names(self) -> None:
        """Behind a name every interface is bound; localhost is loopback."""
        made = build_config("A", peers=("A=node-a.example:7000",))
        self.assertEqual((made.bind.host, made.client_told), ("0.0.0.0", "node-a.example:7100"))
        self.assertEqual(build_config("A", peers=("A=localhost:7000",)).bind.host, "127.0.0.1")

    def test_bad(self) -> None:
        """Whatever is wrong with one is said in one line that shows it."""
        for peer, part in [
            ("A", "must be ID=host:port"),
            ("=10.0.0.1:7000", "no node id"),
            ("a b=10.0.0.1:7000", "no node id"),
            ("ü=10.0.0.1:7000", "no node id"),
            ("A" * 33 + "=10.0.0.1:7000", "no node id"),
            ("A=10.0.0.1", "no address"),
            ("A=:7000", "no address"),
            ("A=10.0.0.1:0", "from 1 to 65535"),
            ("A=10.0.0.1:65536", "from 1 to 65535"),
            ("A=10.0.0.1:٣", "from 1 to 65535"),
            ("A=10.0.0.1:x", "from 1 to 65535"),
            ("A=10.0.0.400:7000", "no address"),
            ("A=::1:7000", "no address"),
            ("A=[::1:7000", "no address"),
            ("A=[10.0.0.1]:7000", "no address"),
            ("A=-bad-:7000", "no address"),
            ("A=two\nlines:7000", "no address"),
        ]:
            self.assertIn(part, self.refused("A", peers=(peer,)), peer)

    def test_duplicates(self) -> None:
        """One id or one address twice is refused, however the address is spelt."""
        self.assertIn("node A is given twice", self.refused(peers=("A=10.0.0.1:1", "A=10.0.0.1:2")))
        self.assertIn("A and B have the same address", self.refused(peers=("A=[::1]:1", "B=[0:0::1]:1")))
        self.assertIn("A and B have the same address", self.refused(peers=("A=Host:1", "B=host:1")))

    def test_own_id_missing(self) -> None:
        """A node must be one of the members that it is told."""
        self.assertIn("node D is not in --peer", self.refused("D", peers=PEERS))

    def test_no_voter(self) -> None:
        """An observer alone is no cluster."""
        self.assertIn("no voter", self.refused("D", peers=("D=10.0.0.4:1",), observer=True))

    def test_too_many(self) -> None:
        """The number of nodes has a limit."""
        peers = [f"n{number}=10.0.0.1:{number + 1}" for number in range(100)]
        self.assertIn("more than 99 nodes", self.refused("n0", peers=peers))

    def test_both_ways(self) -> None:
        """--cluster and --peer exclude each other."""
        self.assertIn("exclude each other", self.refused(peers=PEERS, cluster="x"))


class ClusterFileTests(ConfigCase):
    """``--cluster FILE.toml``."""

    GOOD = """
        heartbeat_ms = 50
        disk_stall_ms = 500
        datagram_max_bytes = 9000
        [nodes.A]
        peer = "10.0.0.1:7000"
        client = "10.0.0.1:8000"
        [nodes.B]
        peer = "10.0.0.2:7000"
        client = "tcp:8001"
        [nodes.D]
        peer = "10.0.0.4:7000"
        observer = true
    """

    def test_good(self) -> None:
        """Nodes, observers, client endpoints and settings are read."""
        path = self.write(self.GOOD)
        first, second = build_config("A", cluster=path), build_config("B", cluster=path)
        self.assertEqual(list(first.members), ["A", "B"])
        self.assertEqual(list(first.peers), ["B", "D"])
        self.assertEqual((first.client, first.client_told), ("tcp:8000:interface=10.0.0.1", "10.0.0.1:8000"))
        self.assertEqual((second.client, second.client_told), ("tcp:8001", "10.0.0.2:8001"))
        self.assertEqual((first.heartbeat_ms, first.disk_stall_ms, first.datagram_max_bytes), (50, 500, 9000))

    def test_observer(self) -> None:
        """The file says who observes; the option is not needed, and changes nothing."""
        path = self.write(self.GOOD)
        self.assertEqual(build_config("D", cluster=path), build_config("D", cluster=path, observer=True))
        self.assertTrue(build_config("D", cluster=path).observer)
        self.assertIn("node A is a voter", self.refused("A", cluster=path, observer=True))

    def test_store(self) -> None:
        """Limits of the store reach the machine that a node is made with, and are part of the fingerprint."""
        made = build_config(
            "A", cluster=self.write(self.GOOD + "\n[store]\ntxn_ops_max = 7\nkeep_ms = 5000\n")
        )
        self.assertEqual(made.store, {"txn_ops_max": 7, "keep_ms": 5000})
        plain = build_config("A", cluster=self.write(self.GOOD))
        self.assertNotEqual(made.fingerprint(True), plain.fingerprint(True))
        service: Any = build_service(MemoryReactorClock(), replace(made, storage="memory:"))
        self.assertEqual(service.node.machine.limits, KvLimits(txn_ops_max=7, keep_ms=5000))

    def test_every_store_limit(self) -> None:
        """Each limit of the store can be set, and the usual ones lie within the range."""
        self.assertEqual(set(config._STORE_LIMITS), set(KvLimits.__struct_fields__))
        for name, (low, high) in config._STORE_LIMITS.items():
            self.assertTrue(low <= getattr(KvLimits(), name) <= high, name)

    def test_options_win(self) -> None:
        """An option is stronger than the file."""
        made = build_config("A", cluster=self.write(self.GOOD), heartbeat_ms="70", client="tcp:9")
        self.assertEqual((made.heartbeat_ms, made.client), (70, "tcp:9"))

    def test_bad(self) -> None:
        """Each mistake is one line that names the file and the key."""
        good = '[nodes.A]\npeer = "h:1"\n'
        for text, part in [
            ("nodes", "no TOML"),
            ("", "each node needs a table"),
            ("[nodes]", "each node needs a table"),
            ("nodes = 3", "each node needs a table"),
            ("port = 1\n" + good, "port is unknown"),
            (good + "clients = 1", "nodes.A.clients is unknown"),
            ("[nodes.A]", "nodes.A.peer is missing"),
            ("[nodes]\nA = 1", "nodes.A must be a table"),
            ("[nodes.A]\npeer = 7", "nodes.A.peer must be a text"),
            ('[nodes.A]\npeer = "h"', "nodes.A.peer"),
            (good + "observer = 1", "nodes.A.observer must be true or false"),
            (good + 'client = "x:y:z"', "nodes.A.client"),
            (good + 'client = ""', "nodes.A.client must be a text"),
            ('[nodes."a b"]\npeer = "h:1"', "'a b' is no node id"),
            ("heartbeat_ms = 1\n" + good, "heartbeat_ms: must be a whole number from 10"),
            ("heartbeat_ms = true\n" + good, "heartbeat_ms: must be a whole number"),
            ("disk_stall_ms = 1.5\n" + good, "disk_stall_ms: must be a whole number"),
            ("cluster_key_file = 1\n" + good, "cluster_key_file must be a text"),
            ("store = 1\n" + good, "store must be a table"),
            (good + "[store]\nquota = 1", "store.quota is unknown"),
            (good + "[store]\ntxn_ops_max = 0", "store.txn_ops_max: must be a whole number from 1"),
            (good + '[nodes.B]\npeer = "h:1"', "A and B have the same address"),
        ]:
            path = self.write(text)
            message = self.refused("A", cluster=path)
            self.assertIn(part, message, text)
            self.assertIn("cluster.toml", message)

    def test_unreadable(self) -> None:
        """A file that is missing, a directory, no text, or far too large is refused."""
        self.assertIn("No such file", self.refused(cluster="/nonexistent/x.toml"))
        self.assertIn("directory", self.refused(cluster="/"))
        self.assertIn("null byte", self.refused(cluster="a\0b"))
        self.patch(config, "CLUSTER_FILE_MAX_BYTES", 10)
        self.assertIn("larger than", self.refused(cluster=self.write(self.GOOD)))
        path = self.write("")
        Path(path).write_bytes(b"\xff\xfe")
        self.assertIn("no TOML", self.refused(cluster=path))

    def test_key_file_beside(self) -> None:
        """A relative key file lies beside the cluster file, whatever the current directory."""
        path = self.write('cluster_key_file = "key"\n' + self.GOOD)
        Path(path).with_name("key").write_bytes(b"0123456789abcdef")
        self.assertEqual(build_config("A", cluster=path).cluster_key, b"0123456789abcdef")


class OptionTests(ConfigCase):
    """The single options."""

    def test_bind(self) -> None:
        """--bind is an IP address; without a port it keeps the one that others are told."""
        self.assertEqual(build_config("A", bind="0.0.0.0").bind, Address("0.0.0.0", 5000))
        self.assertEqual(build_config("A", bind="::").bind, Address("::", 5000))
        self.assertEqual(build_config("A", bind="[::1]").bind, Address("::1", 5000))
        self.assertEqual(build_config("A", bind="[::1]:6000").bind, Address("::1", 6000))
        made = build_config("A", bind="0.0.0.0:6000")
        self.assertEqual((made.bind, made.address), (Address("0.0.0.0", 6000), Address("127.0.0.1", 5000)))
        self.assertEqual((made.client, made.client_told), ("tcp:6100:interface=0.0.0.0", "127.0.0.1:6100"))
        self.assertIn("--bind", self.refused(bind="name"))
        self.assertIn("--bind", self.refused(bind="name:1"))

    def test_numbers(self) -> None:
        """Numbers are whole and within their ranges; a stall is no shorter than a heartbeat."""
        for value in ("x", "", "-1", "9", "60001", "1e3", "٣٣", "9" * 5000, 1.5):
            self.assertIn("--heartbeat-ms: must be a whole number from 10", self.refused(heartbeat_ms=value))
        self.assertIn("--datagram-max-bytes", self.refused(datagram_max_bytes="65508"))
        self.assertIn("shorter than one heartbeat", self.refused(heartbeat_ms="500", disk_stall_ms="400"))
        self.assertEqual(build_config("A", heartbeat_ms="5000").disk_stall_ms, 5000)

    def test_storage(self) -> None:
        """Storage is a scheme and a location; which schemes there are is not known here."""
        self.assertEqual(build_config("A", storage="sqlite:x.db").storage, "sqlite:x.db")
        for storage in ("", "x", ":x", "/tmp/x"):
            self.assertIn("--storage", self.refused(storage=storage))

    def test_http(self) -> None:
        """--http is host:port, an endpoint string, or none; by default 200 above the peer port."""
        for given, endpoint, url in [
            (None, "tcp:5200:interface=127.0.0.1:backlog=1024", "http://127.0.0.1:5200"),
            ("127.0.0.1:9", "tcp:9:interface=127.0.0.1:backlog=1024", "http://127.0.0.1:9"),
            ("[::1]:9", "tcp6:9:interface=\\:\\:1:backlog=1024", "http://[::1]:9"),
            ("tcp:9", "tcp:9", "http://127.0.0.1:9"),
            ("ssl:9:privateKey=k.pem", "ssl:9:privateKey=k.pem", "https://localhost:9"),
            ("ssl:port=9:interface=10.0.0.9", "ssl:port=9:interface=10.0.0.9", "https://10.0.0.9:9"),
            ("unix:/run/a.sock", "unix:/run/a.sock", "unix:///run/a.sock"),
            ("none", "", "http://127.0.0.1:5200"),
            ("", "", "http://127.0.0.1:5200"),
        ]:
            made = build_config("A", http=given)
            self.assertEqual((made.http, made.http_urls["A"]), (endpoint, url), given)
        self.assertEqual(made.http_urls["C"], "http://127.0.0.1:5202")
        self.assertIn("--http", self.refused(http="x"))
        self.assertEqual(build_config("A", peers=["A=127.0.0.1:65400"]).http, "")

    def test_http_of_others(self) -> None:
        """A cluster file says where the HTTP of each node is."""
        text = '[nodes.A]\npeer = "10.0.0.1:7000"\nhttp = "10.0.0.1:80"\n[nodes.B]\npeer = "10.0.0.2:7000"'
        path = self.write(text)
        made = build_config("B", cluster=path)
        self.assertEqual(made.http_urls, {"A": "http://10.0.0.1:80", "B": "http://10.0.0.2:7200"})
        named = build_config("A", cluster=path, http="db.example:81")
        self.assertEqual((named.http_urls["A"], named.http[:7]), ("http://db.example:81", "tcp:81:"))
        self.assertEqual(build_config("A", cluster=path).http, "tcp:80:interface=10.0.0.1:backlog=1024")

    def test_http_allow_hosts(self) -> None:
        """Names are taken as they are."""
        self.assertEqual(build_config("A", http_allow_hosts=["db.example"]).http_allow_hosts, ("db.example",))

    def test_client(self) -> None:
        """--client is host:port or an endpoint string."""
        for given, endpoint, told in [
            ("127.0.0.1:9", "tcp:9:interface=127.0.0.1", "127.0.0.1:9"),
            ("[::1]:9", "tcp6:9:interface=\\:\\:1", "[::1]:9"),
            ("host.example:9", "tcp:9:interface=0.0.0.0", "127.0.0.1:9"),
            ("tcp:9", "tcp:9", "127.0.0.1:9"),
            ("tcp:port=9:interface=10.0.0.9", "tcp:port=9:interface=10.0.0.9", "10.0.0.9:9"),
            ("tcp6:9:interface=\\:\\:1", "tcp6:9:interface=\\:\\:1", "[::1]:9"),
            ("unix:/run/a.sock", "unix:/run/a.sock", "unix:/run/a.sock"),
        ]:
            made = build_config("A", client=given)
            self.assertEqual((made.client, made.client_told), (endpoint, told))
        for client in ("", "9", "x:y:z", "host:0"):
            self.assertIn("--client", self.refused(client=client))
        self.assertIn("own peer address", self.refused(client="127.0.0.1:5000"))

    def test_no_port_left(self) -> None:
        """Where there is no port 100 above, one must be named."""
        self.assertIn("name one", self.refused(peers=("A=10.0.0.1:65500",)))
        build_config("A", peers=("A=10.0.0.1:65500",), client="tcp:9")

    def test_endpoints_are_twisteds(self) -> None:
        """What is made here is understood there, IPv6 included."""
        reactor = MemoryReactorClock()
        for host in ("127.0.0.1", "::1", "fd00::3"):
            endpoint = serverFromString(reactor, server_endpoint(Address(host, 9)))
            self.assertEqual((endpoint._interface, endpoint._port), (host, 9))

    def test_told_client_of_odd_endpoints(self) -> None:
        """An endpoint that names no port is told as it is."""
        self.assertEqual(told_client("tcp:x", "h"), "tcp:x")


class KeyTests(ConfigCase):
    """``--cluster-key``."""

    def key_file(self, content: bytes, mode: int = 0o600) -> str:
        path = self.mktemp()
        Path(path).write_bytes(content)
        os.chmod(path, mode)
        return path

    def test_key(self) -> None:
        """The file's bytes without the line end; hidden in the repr."""
        made = build_config("A", cluster_key=self.key_file(b"0123456789abcdef\n"))
        self.assertEqual((made.cluster_key, made.warnings), (b"0123456789abcdef", ()))
        self.assertNotIn("0123456789", repr(made))

    def test_long(self) -> None:
        """A key longer than BLAKE2b takes is hashed, to that length and by all its bytes."""
        first = build_config("A", cluster_key=self.key_file(b"x" * 64)).cluster_key
        second = build_config("A", cluster_key=self.key_file(b"x" * 65)).cluster_key
        third = build_config("A", cluster_key=self.key_file(b"x" * 66)).cluster_key
        self.assertEqual(first, b"x" * 64)
        self.assertEqual(len(second or b""), 64)
        self.assertEqual(len({first, second, third}), 3)

    def test_bad(self) -> None:
        """A missing, empty or short key is refused."""
        self.assertIn("No such file", self.refused(cluster_key="/nonexistent/key"))
        self.assertIn("holds nothing", self.refused(cluster_key=self.key_file(b"\n")))
        self.assertIn("holds 15 bytes", self.refused(cluster_key=self.key_file(b"x" * 15)))

    def test_world_readable(self) -> None:
        """A key that everyone can read is taken, with a warning."""
        made = build_config("A", cluster_key=self.key_file(b"x" * 16, 0o644))
        self.assertEqual(made.cluster_key, b"x" * 16)
        self.assertIn("chmod", made.warnings[0])


class FingerprintTests(ConfigCase):
    """What nodes must agree on."""

    def test_depends(self) -> None:
        """On the voters' ids whatever their order, and on durability; not on addresses."""
        base = fingerprint(["A", "B", "C"], True)
        self.assertEqual(base, fingerprint(["C", "A", "B"], True))
        self.assertRegex(base, "^[0-9a-f]{16}$")
        cases = [(["A", "B"], True), (["A", "B", "D"], True), (["A", "B", "C"], False)]
        self.assertEqual(len({base, *(fingerprint(voters, durable) for voters, durable in cases)}), 4)
        elsewhere = build_config("A", peers=PEERS)
        self.assertEqual(elsewhere.fingerprint(True), base)

    def test_store(self) -> None:
        """Nodes whose stores have other limits are not of one cluster."""
        base = fingerprint(["A"], True)
        self.assertEqual(base, fingerprint(["A"], True, {}))
        one, other = (fingerprint(["A"], True, {"txn_ops_max": number}) for number in (64, 65))
        self.assertEqual(len({base, one, other}), 3)

    def test_fixed(self) -> None:
        """It is part of what is stored and sent, so it never changes for a cluster that exists."""
        self.assertEqual(fingerprint(["A", "B", "C"], True), FINGERPRINT_ABC)


class DatagramLimitTests(ConfigCase):
    """Which datagrams are too large, by path."""

    def test_by_path(self) -> None:
        """Large on loopback, one Ethernet frame elsewhere, unless the option says otherwise."""
        made = build_config("A")
        self.assertEqual(
            [made.datagram_limit(ip) for ip in ("127.0.0.1", "::1", "10.0.0.1", "fd00::1")],
            [60_000, 60_000, 1_400, 1_400],
        )
        self.assertEqual(build_config("A", datagram_max_bytes="700").datagram_limit("127.0.0.1"), 700)


class AddressTests(ConfigCase):
    """`twisted_paxos.addresses`."""

    def test_round_trip(self) -> None:
        """What an address prints as is read as the same address."""
        for text in ("127.0.0.1:1", "[::1]:65535", "a-b.example:80", "under_score:9"):
            self.assertEqual(str(parse_address(text, "here")), text)

    def test_limits_agree(self) -> None:
        """The limits that are written twice, to keep this module free of imports, are equal."""
        self.assertEqual(config.UID_MAX_CHARS, limits.UID_MAX_CHARS)

    def test_is_loopback(self) -> None:
        """All of 127/8, ::1 and localhost; nothing else."""
        yes = ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost.")
        self.assertEqual([addresses.is_loopback(host) for host in yes], [True] * 5)
        no = ("10.0.0.1", "0.0.0.0", "::", "localhost.example")
        self.assertEqual([addresses.is_loopback(host) for host in no], [False] * 4)


class DirectTests(ConfigCase):
    """`NodeConfig` made by hand."""

    def test_minimal(self) -> None:
        """Only who and where is needed."""
        at = Address("10.0.0.1", 1)
        made = NodeConfig(
            uid="A",
            members={"A": at},
            address=at,
            bind=at,
            storage="memory:",
            client="tcp:2",
            client_told="x",
        )
        self.assertEqual((made.peers, made.heartbeat_ms), ({}, 100))
