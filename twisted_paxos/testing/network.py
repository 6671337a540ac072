"""A simulated network of simulated hosts: one seed, one run.

`SimulatedNetwork.reactor` gives a program what it takes for a reactor: UDP, TCP, timers. All
events of all hosts share one `SimulatedClock`, all chance comes from one `random.Random`, and
nothing iterates over a set, so a run can be repeated exactly:

    clock = SimulatedClock()
    network = SimulatedNetwork(clock, random.Random(7))
    reactor = network.reactor("10.0.0.1")
    reactor.listenUDP(5000, protocol)
    network.faults(loss=0.1, duplicate=0.05, reorder=0.2)
    network.partition(["10.0.0.1"], ["10.0.0.2", "10.0.0.3"])
    clock.advance(1.0)

Faults are directional, per pair of hosts (`Link`); hosts can `SimulatedReactor.crash`, and
`SimulatedReactor.pause` as SIGSTOP does. An exception of a program comes out of `advance`.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList, fail, maybeDeferred, succeed
from twisted.internet.error import CannotListenError, DNSLookupError
from twisted.internet.interfaces import (
    IDelayedCall,
    IHostnameResolver,
    IListeningPort,
    IReactorCore,
    IReactorFromThreads,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IReactorUDP,
)
from zope.interface import implementer

from twisted_paxos.addresses import is_ip
from twisted_paxos.testing.clock import SimulatedCall, SimulatedClock
from twisted_paxos.testing.links import Address, Faults, Link
from twisted_paxos.testing.memory import MemoryReactorUDP
from twisted_paxos.testing.ports import SimulatedResolver, TCPPort, UDPPort
from twisted_paxos.testing.streams import Connection, Connector, network_host

__all__ = ["Faults", "Link", "MemoryReactorUDP", "SimulatedClock", "SimulatedNetwork", "SimulatedReactor"]

HELD_MAX_EVENTS: Final = 1_000_000
TIMER_SLACK_S: Final = 1e-6
EPHEMERAL_PORT_FIRST: Final = 49_152


class SimulatedNetwork:
    """All hosts, and the links between them.

    Attributes:
        clock: the time of everything.
        random: the chance of everything.
        names: host names and the addresses that they resolve to.
        trace: called with (seconds, from host, to host, datagram) for each that is sent; or None.
        lets: asked with the sending host before each datagram leaves; False: it does not leave. Or None.
        unreachable: datagrams that arrived where no port listened.
    """

    def __init__(self, clock: SimulatedClock, random: Random) -> None:
        self.clock = clock
        self.random = random
        self.names: dict[str, str] = {"localhost": "127.0.0.1"}
        self.trace: Callable[[float, str, str, bytes], None] | None = None
        self.lets: Callable[[str], bool] | None = None
        self.unreachable = 0
        self._processes: dict[str, SimulatedReactor] = {}
        self._down: dict[str, bool] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._defaults: dict[str, Any] = {}

    def reactor(self, host: str, offset_s: float = 0.0, rate: float = 1.0) -> SimulatedReactor:
        """A new process on ``host`` (an IP address), whose clock may be off and run fast or slow.

        Args:
            offset_s: its clock shows this much more at the start of the simulation.
            rate: seconds of its clock per second of the simulation.

        Raises:
            ValueError: a process runs there, or the host is no IP address.
        """
        if not is_ip(host):
            raise ValueError(f"{host!r} is no IP address")
        if self.process(host) is not None:
            raise ValueError(f"a process runs on {host}: crash it first")
        self._down[host] = False
        self._processes[host] = SimulatedReactor(self, host, offset_s, rate)
        return self._processes[host]

    def process(self, host: str) -> SimulatedReactor | None:
        """The living process on ``host``."""
        found = self._processes.get(host)
        return None if found is None or found.is_dead else found

    def knows(self, host: str) -> bool:
        """Whether a process ever ran on ``host``."""
        return host in self._processes

    def is_down(self, host: str) -> bool:
        """Whether ``host`` is without power (or was never there), so that not even a refusal comes."""
        return self._down.get(host, True)

    def link(self, source: str, destination: str) -> Link:
        """The direction from ``source`` to ``destination``; its faults can be changed."""
        link = self._links.get((source, destination))
        if link is None:
            link = Link(source=source, destination=destination)
            if source != destination:
                link.set(**self._defaults)
            self._links[source, destination] = link
        return link

    def faults(self, **faults: float | bool) -> None:
        """Set `Faults` on every link between different hosts, those to come included."""
        Link(source="", destination="").set(**faults)  # refuses unknown names before anything changes
        self._defaults.update(faults)
        for (source, destination), link in self._links.items():
            if source != destination:
                link.set(**faults)

    def cut(self, source: str, destination: str, both: bool = True) -> None:
        """Let nothing pass from ``source`` to ``destination``, nor back if ``both``."""
        self.link(source, destination).is_cut = True
        if both:
            self.link(destination, source).is_cut = True

    def heal(self, source: str, destination: str, both: bool = True) -> None:
        """Undo `cut`."""
        self.link(source, destination).is_cut = False
        if both:
            self.link(destination, source).is_cut = False

    def partition(self, *groups: Sequence[str]) -> None:
        """Cut every link between hosts of different groups, heal those within one."""
        for number, group in enumerate(groups):
            for host in group:
                for other_number, other_group in enumerate(groups):
                    for other in other_group:
                        self.link(host, other).is_cut = number != other_number

    def isolate(self, host: str) -> None:
        """Cut ``host`` off from every other."""
        for other in self._processes:
            if other != host:
                self.cut(host, other)

    def heal_all(self) -> None:
        """Undo every cut."""
        for link in self._links.values():
            link.is_cut = False

    def send_datagram(self, source: Address, destination: Address, data: bytes) -> None:
        """Put a datagram on its way."""
        own_host, to_host = source[0], destination[0]
        clock = self.clock
        host, sender, to = to_host, source, destination
        if (own_host, to_host) not in self._links:
            host = network_host(own_host, to_host)
            sender = source if host == to_host else (to_host, source[1])
            to = (host, destination[1])
        if self.lets is not None and not self.lets(own_host):
            return
        if self.trace is not None:
            self.trace(clock.now_s, own_host, host, data)
        link = self.link(own_host, host)
        for due_s, arriving in link.arrivals(clock.now_s, data, to, sender, self.random):
            clock.push(due_s, self._arrive, arriving)

    def _arrive(self, data: bytes, to: Address, sender: Address) -> None:
        process = self._processes.get(to[0])
        port = None if process is None or process.is_dead else process.udp_ports.get(to[1])
        if port is None:
            self.unreachable += 1
        else:
            port.arrive(data, sender)

    def power_off(self, host: str) -> None:
        """`SimulatedReactor.crash` calls this: from now on, packets to ``host`` vanish."""
        self._down[host] = True


@implementer(
    IReactorTime, IReactorUDP, IReactorTCP, IReactorCore, IReactorFromThreads, IReactorPluggableNameResolver
)
class SimulatedReactor:
    """One process on one host: what it calls the reactor.

    Attributes:
        host: its IP address.
        is_dead: it crashed or ended; nothing of it runs any more.
        is_paused: it is stopped as by SIGSTOP.
        running: for programs that ask: it does, until it ends.
    """

    def __init__(self, network: SimulatedNetwork, host: str, offset_s: float, rate: float) -> None:
        self.network = network
        self.host = host
        self.is_dead = False
        self.is_paused = False
        self.running = True
        self.udp_ports: dict[int, UDPPort] = {}
        self.tcp_ports: dict[int, TCPPort] = {}
        self.connections: list[Connection] = []
        self.nameResolver: IHostnameResolver = SimulatedResolver(network)
        self._clock = network.clock
        self._offset_s = offset_s
        self._rate = rate
        self._is_skewed = offset_s != 0.0 or rate != 1.0
        self._held: deque[tuple[Callable[..., Any], tuple]] = deque()
        self._next_port = EPHEMERAL_PORT_FIRST
        self._triggers: dict[tuple[str, str], list[tuple[Callable[..., Any], tuple, dict[str, Any]]]] = {}

    # Time.

    def seconds(self) -> float:
        """This host's clock."""
        return self._offset_s + self._clock.now_s * self._rate

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        """As `IReactorTime`; on a dead process it never calls."""
        if delay < 0:
            raise ValueError(f"a delay of {delay} s is in the past")
        return SimulatedCall(self, self.seconds() + delay, callable, args, kwargs)

    def getDelayedCalls(self) -> list[IDelayedCall]:
        """This process's calls to come."""
        return (
            []
            if self.is_dead
            else [call for call in self._clock.getDelayedCalls() if getattr(call, "owner", None) is self]
        )

    def push_call(self, call: SimulatedCall) -> int:
        """See `clock.CallOwner`."""
        if self.is_dead:
            return 0
        world_s = call.due_s
        if self._is_skewed:
            # Rounding must not make a call early by its own clock: loops would run twice.
            world_s = (call.due_s - self._offset_s) / self._rate + TIMER_SLACK_S
        world_s = max(world_s, self._clock.now_s)
        return self._clock.push(world_s, self._run_call, (call,), call)

    def _run_call(self, call: SimulatedCall) -> None:
        if self.is_paused:
            self.gate(self._run_held_call, (call, call.serial))
        elif not self.is_dead:
            call.run()

    def _run_held_call(self, call: SimulatedCall, serial: int) -> None:
        if call.serial == serial:
            call.run()

    def callFromThread(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None:
        """As `IReactorFromThreads`: in the next turn."""
        self._clock.push(self._clock.now_s, self.gate, (self._call, (callable, args, kwargs)))

    def _call(self, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
        func(*args, **kwargs)

    def gate(self, func: Callable[..., Any], args: tuple = ()) -> None:
        """Run ``func(*args)``, a piece of this process: later if it is paused, never if it is dead."""
        if self.is_dead:
            return
        if not self.is_paused:
            func(*args)
        elif len(self._held) < HELD_MAX_EVENTS:
            self._held.append((func, args))
        else:
            raise RuntimeError(f"{self.host} is paused and more than {HELD_MAX_EVENTS} events wait for it")

    # Faults.

    def crash(self, power_loss: bool = False) -> None:
        """End the process at once, as SIGKILL does: none of its code runs any more.

        Its kernel closes its connections, so peers see them end; after ``power_loss`` there
        is no kernel either, and peers find out by themselves. `SimulatedNetwork.reactor` on
        the same host starts the next process.
        """
        if self.is_dead:
            return
        self.is_dead = True
        self.running = self.is_paused = False
        self._held.clear()
        self.udp_ports.clear()
        self.tcp_ports.clear()
        for connection in list(self.connections):
            connection.die(power_loss)
        if power_loss:
            self.network.power_off(self.host)

    def pause(self) -> None:
        """As SIGSTOP: nothing runs; datagrams pile up as far as the receive buffer holds them."""
        if not self.is_dead:
            self.is_paused = True

    def jump(self, seconds: float) -> None:
        """Its clock jumps ahead; calls that are planned already come when they would have come."""
        self._offset_s += seconds
        self._is_skewed = True

    def resume(self) -> None:
        """As SIGCONT: what was due and what arrived happens now, in one of the two orders."""
        if not self.is_paused:
            return
        self.is_paused = False
        # A process that was stopped in its poll reads first, else its timers run first.
        reads_first = self.network.random.random() < 0.5
        held, self._held = self._held, deque()
        if not reads_first:
            self._replay(held)
        for port in list(self.udp_ports.values()):
            self._clock.push(self._clock.now_s, self.gate, (port.drain,))
        if reads_first:
            self._replay(held)

    def _replay(self, held: deque[tuple[Callable[..., Any], tuple]]) -> None:
        for event in held:
            self._clock.push(self._clock.now_s, self.gate, event)

    # UDP and TCP.

    def listenUDP(
        self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192
    ) -> IListeningPort:
        """As `IReactorUDP`.

        Raises:
            CannotListenError: the port is taken, or the interface is not this host's.
        """
        number = self._check_bind(port, interface, self.udp_ports)
        bound = self.udp_ports[number] = UDPPort(self, number, protocol, maxPacketSize)
        bound.startListening()
        return bound

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> IListeningPort:
        """As `IReactorTCP`.

        Raises:
            CannotListenError: the port is taken, or the interface is not this host's.
        """
        number = self._check_bind(port, interface, self.tcp_ports)
        bound = self.tcp_ports[number] = TCPPort(self, number, factory)
        bound.startListening()
        return bound

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30.0,
        bindAddress: tuple[str, int] | None = None,
    ) -> Connector:
        """As `IReactorTCP`; ``host`` is an IP address or a name of the network."""
        address = SimulatedResolver(self.network).lookup(host)
        connector = Connector(self, address, port, factory, timeout)
        if not self.is_dead:
            connector.connect()
        return connector

    def free_port(self) -> int:
        """A port number that nothing uses."""
        self._next_port += 1
        while self._next_port in self.udp_ports or self._next_port in self.tcp_ports:
            self._next_port += 1
        return self._next_port

    def _check_bind(self, port: int, interface: str, taken: Any) -> int:
        if interface not in ("", "0.0.0.0", "::", "127.0.0.1", "::1", self.host):
            code = errno.EADDRNOTAVAIL
        elif port in taken or self.is_dead:
            code = errno.EADDRINUSE
        else:
            return port or self.free_port()
        raise CannotListenError(interface, port, OSError(code, os.strerror(code)))

    # The rest of a reactor.

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """As `IReactorPluggableNameResolver`."""
        previous, self.nameResolver = self.nameResolver, resolver
        return previous

    def resolve(self, name: str, timeout: Sequence[int] = ()) -> Deferred[str]:
        """As `IReactorCore`."""
        host = SimulatedResolver(self.network).lookup(name)
        return fail(DNSLookupError(f"{name} is unknown")) if host is None else succeed(host)

    def run(self) -> None:
        """It runs already: time passes on the network's clock."""

    def iterate(self, delay: float = 0) -> None:
        """Time passes on the network's clock only."""

    def callWhenRunning(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None:
        """It runs: calls at once."""
        callable(*args, **kwargs)

    def addSystemEventTrigger(
        self, phase: str, eventType: str, callable: Callable[..., Any], *args: object, **kwargs: object
    ) -> tuple:
        """As `IReactorCore`."""
        trigger = (callable, args, kwargs)
        self._triggers.setdefault((phase, eventType), []).append(trigger)
        return phase, eventType, trigger

    def removeSystemEventTrigger(self, triggerID: Any) -> None:
        """As `IReactorCore`."""
        phase, event, trigger = triggerID
        self._triggers[phase, event].remove(trigger)

    def fireSystemEvent(self, eventType: str) -> None:
        """Run the triggers of ``eventType``, in their phases."""
        Deferred.fromCoroutine(self._fire(eventType))

    def stop(self) -> None:
        """Run the shutdown triggers, then end the process."""
        if self.running:
            self.running = False
            Deferred.fromCoroutine(self._shut_down())

    async def _shut_down(self) -> None:
        await self._fire("shutdown")
        self.crash()

    async def _fire(self, event: str) -> None:
        for phase in ("before", "during", "after"):
            triggers = self._triggers.pop((phase, event), [])
            await DeferredList([maybeDeferred(func, *args, **kwargs) for func, args, kwargs in triggers])
