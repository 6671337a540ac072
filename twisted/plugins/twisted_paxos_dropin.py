"""Makes ``twistd paxos`` known; the work is in `twisted_paxos.tap`, imported only when it is used."""

from twisted.application.service import ServiceMaker

paxos = ServiceMaker(
    "twisted_paxos",
    "twisted_paxos.tap",
    "A durable node that agrees with others on one log (Multi-Paxos).",
    "paxos",
)
