"""Who imports whom: DESIGN.md section 2 as a test, read from the source with `ast`."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import twisted_paxos

PACKAGE = Path(twisted_paxos.__file__).parent

ANYTHING = None

LAYERS: dict[str, tuple[str, ...] | None] = {
    # A module, or a package with all in it, and what of ours it may import besides itself.
    "errors": (),
    "framing": (),
    "addresses": ("errors",),
    "config": ("errors", "addresses"),
    "core": ("errors",),
    "statemachine": ("errors", "core"),
    "wire": ("errors", "core", "statemachine"),
    "figures": ("core", "statemachine"),
    "departure": (),
    "interfaces": ("errors", "core", "statemachine", "departure"),
    "storage": ("errors", "core", "interfaces", "departure"),
    "protocols": (
        *("errors", "framing", "core", "wire", "statemachine", "interfaces", "departure"),
        *("config", "addresses"),
    ),
    "applier": ("errors", "core", "statemachine", "interfaces"),
    "pacing": ("statemachine", "interfaces"),
    "snapshots": ("errors", "core", "statemachine", "interfaces", "pacing"),
    "reads": ("errors", "core"),
    "reports": ("core",),
    "own_session": ("errors", "core", "statemachine", "interfaces"),
    "measures": ("core", "statemachine", "figures", "interfaces", "protocols", "applier", "snapshots"),
    "web": ("errors", "addresses", "core", "statemachine", "figures", "interfaces", "own_session"),
    "node": (
        *("errors", "core", "wire", "statemachine", "interfaces", "storage", "protocols"),
        *("applier", "snapshots", "reads", "reports", "own_session", "figures", "measures"),
        *("config", "addresses"),
    ),
    "service": (
        *("errors", "core", "wire", "statemachine", "interfaces", "storage", "protocols"),
        *("applier", "snapshots", "reads", "reports", "own_session", "figures", "measures"),
        *("config", "addresses", "node", "web"),
    ),
    "jsonlog": (),
    "tap": ("errors", "config", "jsonlog", "service"),
    "__main__": (),
    "client": ("errors", "framing", "core", "wire", "statemachine"),
    "cli": ANYTHING,
    "testing": ANYTHING,
    "__init__": ANYTHING,
}

CLI_OF_CLIENTS = ("errors", "core", "wire", "statemachine", "client", "cli")
"""What `cli.client` may import: it talks to nodes, and knows nothing of their insides."""

PURE = ("core", "statemachine", "errors", "addresses")
IMPURE_MODULES = frozenset(
    {
        *("twisted", "time", "random", "os", "socket", "select", "threading", "subprocess", "asyncio"),
        *("datetime", "secrets", "uuid", "tempfile"),
    }
)
UNSAFE_MODULES = frozenset({"pickle", "cPickle", "marshal", "shelve", "dill"})


def sources() -> Iterator[tuple[str, str]]:
    """Each of our modules as (name below the package, source)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts), path.read_text()


parse = functools.cache(ast.parse)


def imports(source: str) -> Iterator[tuple[str, ast.stmt]]:
    """Every module, or name in one, that ``source`` imports, wherever it does so."""
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                yield f"{base}.{alias.name}", node


def imports_from(modules: frozenset[str], module: str, source: str) -> list[str]:
    """A line for each import from one of ``modules``."""
    return [f"{module} imports {name}" for name, _ in imports(source) if name.partition(".")[0] in modules]


def layer_of(module: str) -> str:
    """The entry of `LAYERS` for a module's name below the package."""
    return module.partition(".")[0]


def direction_faults(module: str, source: str) -> list[str]:
    """Imports of ours that ``module`` may not make."""
    layer = layer_of(module)
    allowed = CLI_OF_CLIENTS if module == "cli.client" else LAYERS[layer]
    faults = []
    for name, _ in imports(source):
        if name.startswith("."):
            faults.append(f"{module} imports relatively: {name}")
        elif name.startswith("twisted_paxos.") and allowed is not ANYTHING:
            target = layer_of(name.removeprefix("twisted_paxos."))
            if target not in (*allowed, layer, "__version__"):
                faults.append(f"{module} imports {name}")
    return faults


def purity_faults(module: str, source: str) -> list[str]:
    """What a pure module imports of the outside world."""
    return imports_from(IMPURE_MODULES, module, source) if layer_of(module) in PURE else []


def unsafe_faults(module: str, source: str) -> list[str]:
    """Modules that run what they read."""
    return imports_from(UNSAFE_MODULES, module, source)


def reactor_faults(module: str, source: str) -> list[str]:
    """Imports of the global reactor outside ``tap.makeService`` and functions of the command line."""
    allowed: set[ast.stmt] = set()
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            place = f"{layer_of(module)}.{node.name}" if layer_of(module) == "tap" else layer_of(module)
            if place in ("tap.makeService", "cli"):
                allowed.update(child for child in ast.walk(node) if isinstance(child, ast.stmt))
    spots = {statement.lineno for statement in allowed}
    return [
        f"{module}:{node.lineno} imports the global reactor"
        for name, node in imports(source)
        if name == "twisted.internet.reactor" and node.lineno not in spots
    ]


class LayeringTests(SynchronousTestCase):
    """The rules hold for every module."""

    def check(self, rule) -> None:
        faults = [fault for module, source in sources() for fault in rule(module, source)]
        self.assertEqual(faults, [])

    def test_all_are_known(self) -> None:
        """Each module belongs to a layer, and each layer exists."""
        found = {layer_of(module) for module, _ in sources()}
        self.assertEqual(found - LAYERS.keys(), set())
        self.assertTrue({"core", "node", "storage", "tap"} <= found)

    def test_acyclic(self) -> None:
        """The layers have an order: each imports only from those above it in the table."""
        seen: list[str] = []
        for layer, allowed in LAYERS.items():
            if allowed is not ANYTHING:
                self.assertEqual([name for name in allowed if name not in seen], [], layer)
            seen.append(layer)

    def test_direction(self) -> None:
        """No module imports from a layer that is not below it."""
        self.check(direction_faults)

    def test_purity(self) -> None:
        """The algorithm and the state machine do no input or output and read no clock."""
        self.check(purity_faults)

    def test_no_pickle(self) -> None:
        """Nothing that was read is ever run."""
        self.check(unsafe_faults)

    def test_reactor_is_a_parameter(self) -> None:
        """The global reactor is imported where a process starts, and nowhere else."""
        self.check(reactor_faults)


class RulesCanFailTests(SynchronousTestCase):
    """Each rule finds a planted fault."""

    def test_direction(self) -> None:
        """A core that imports the wire, and any relative import, is found."""
        planted = "from twisted_paxos.wire import peer\nfrom twisted_paxos.errors import PaxosError"
        self.assertEqual(
            direction_faults("core.acceptor", planted), ["core.acceptor imports twisted_paxos.wire.peer"]
        )
        self.assertEqual(len(direction_faults("storage.wal", "from twisted_paxos import node")), 1)
        self.assertEqual(len(direction_faults("cli.client", "import twisted_paxos.node")), 1)
        self.assertEqual(len(direction_faults("core.log", "from . import ballot")), 1)
        self.assertEqual(direction_faults("cli.local", "import twisted_paxos.node"), [])

    def test_purity(self) -> None:
        """A clock in the core is found, inside a function too."""
        planted = "def now():\n    from time import monotonic\n    return monotonic()"
        self.assertEqual(purity_faults("core.election", planted), ["core.election imports time.monotonic"])
        self.assertEqual(len(purity_faults("statemachine.kv", "import os.path, twisted")), 2)
        self.assertEqual(purity_faults("storage.wal", planted), [])

    def test_unsafe(self) -> None:
        """pickle is found anywhere."""
        self.assertEqual(len(unsafe_faults("testing.x", "import pickle\nfrom shelve import open")), 2)

    def test_reactor(self) -> None:
        """The global reactor is found at a module's top, in other functions of tap, and in other modules."""
        planted = "from twisted.internet import reactor"
        inside = f"def makeService():\n    {planted}"
        self.assertEqual(len(reactor_faults("tap", planted)), 1)
        self.assertEqual(len(reactor_faults("tap", f"def other():\n    {planted}")), 1)
        self.assertEqual(len(reactor_faults("node", inside)), 1)
        self.assertEqual(len(reactor_faults("cli.local", "import twisted.internet.reactor")), 1)
        self.assertEqual(reactor_faults("tap", inside), [])
        self.assertEqual(reactor_faults("cli.local", f"def main():\n    {planted}"), [])
