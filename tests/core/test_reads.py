"""`core.reads`: linearizable reads without a slot."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.core.runs import command
from tests.core.transcript import ballot, sender
from twisted_paxos.core.messages import Confirm, Confirmed, Nack, ReadAt, ReadRequest
from twisted_paxos.core.replica import Replica
from twisted_paxos.testing.replicas import PureCluster


class ReadsTests(SynchronousTestCase):
    """A bench of three nodes, with its reads driven by hand."""

    def setUp(self) -> None:
        self.cluster = PureCluster(1)
        self.cluster.start()
        self.cluster.run(5, lambda: bool(self.cluster.leaders()))
        self.cluster.nodes["A"].submit([command(1)])
        self.cluster.run(1)
        self.leader = self.cluster.leaders()[0]
        self.follower = next(uid for uid in self.cluster.voters if uid != self.leader)

    def replica(self, uid: str) -> Replica:
        """A node's replica."""
        replica = self.cluster.nodes[uid].replica
        assert replica is not None
        return replica

    def give(self, source: str, to: str, message: Any) -> list[Any]:
        """Deliver one message; returns what is sent for it."""
        effects = self.replica(to).receive(self.replica(source).me, message, self.cluster.now_s)
        return [send.message for send in effects.sends]

    def test_confirmedByAMajorityAskedAfterwards(self) -> None:
        """The leader asks with a nonce of its own; with two of three answers it tells the slot."""
        confirm = self.give(self.follower, self.leader, ReadRequest(7))[0]
        assert isinstance(confirm, Confirm)
        answer = self.give(self.leader, self.follower, confirm)[0]
        self.assertIsInstance(answer, Confirmed)
        self.assertEqual(self.give(self.follower, self.leader, answer), [])
        own = self.give(self.leader, self.leader, Confirmed(confirm.ballot, confirm.nonce))
        self.assertEqual(own, [ReadAt(7, 1)])

    def test_oneAnswerTwiceIsNoMajority(self) -> None:
        """An acceptor counts once per nonce."""
        confirm = self.give(self.follower, self.leader, ReadRequest(7))[0]
        for _ in range(3):
            self.assertEqual(
                self.give(self.follower, self.leader, Confirmed(confirm.ballot, confirm.nonce)), []
            )

    def test_rule8AnswersToAnEarlierNonceDoNotCount(self) -> None:
        """Rule 8: an answer that was given before the read arrived confirms nothing."""
        self.give(self.follower, self.leader, ReadRequest(1))
        ballot_, nonce = self.replica(self.leader).proposer.ballot, 0
        third = next(uid for uid in self.cluster.voters if uid not in (self.leader, self.follower))
        for uid in (self.follower, third):
            self.assertEqual(self.give(uid, self.leader, Confirmed(ballot_, nonce)), [])

    def test_acceptorWithAHigherPromiseSaysSo(self) -> None:
        """Whoever promised a higher ballot confirms nothing: the leader may be none any more."""
        replica = self.replica(self.follower)
        replica.acceptor.promised = ballot("99.Z")
        answer = self.give(self.leader, self.follower, Confirm(self.replica(self.leader).proposer.ballot, 1))
        self.assertIsInstance(answer[0], Nack)

    def test_followersAnswerNothing(self) -> None:
        """A node that does not lead confirms no read."""
        self.assertEqual(self.give(self.leader, self.follower, ReadRequest(7)), [])

    def test_rule8AnswersToAnEarlierLifeDoNotCount(self) -> None:
        """Rule 8: a ReadAt that an earlier start of this node asked for answers no read of this start."""
        first, _ = self.replica(self.follower).read(self.cluster.now_s)
        node = self.cluster.nodes[self.follower]
        node.crash()
        node.start()
        self.cluster.run(1)
        again = self.replica(self.follower)
        again.read(self.cluster.now_s)
        effects = again.receive(self.replica(self.leader).me, ReadAt(first, 0), self.cluster.now_s)
        self.assertEqual(effects.readable, [])

    def test_strangersLeadNothing(self) -> None:
        """A Confirm under a ballot that is not the sender's is ignored."""
        effects = self.replica(self.follower).receive(
            sender("X"), Confirm(ballot("9.A"), 1), self.cluster.now_s
        )
        self.assertEqual(effects.sends, [])
