"""The bounds of the protocol: every queue, message and table has its limit here.

Sizes are bytes of encoded JSON, counts are plain numbers.
"""

from __future__ import annotations

from typing import Final

VALUE_MAX_BYTES: Final = 1 << 20
"""The largest payload of one command (1 MiB)."""

REQUEST_MAX_BYTES: Final = 3 << 19
"""The largest request to the state machine, as bytes (1.5 MiB); the key-value store's own limit is this."""

PAYLOAD_MAX_BYTES: Final = REQUEST_MAX_BYTES * 4 // 3 + (64 << 10)
"""The largest encoded payload: a request of REQUEST_MAX_BYTES as base64, with what surrounds it."""

PAYLOAD_SPARE_LEVELS: Final = 300
"""A payload must be decodable this much deeper in than where it is taken. How deep decoding gets depends
on the stack that it starts from: what one node can just decode would stop another, at every start."""

FRAME_MAX_BYTES: Final = 4 * VALUE_MAX_BYTES
"""The largest message on a TCP link: an answer to a Fetch and one largest payload more."""

BATCH_TARGET_BYTES: Final = 56_000
"""A leader stops adding commands to a value here, so that it fits a datagram."""

LARGE_BATCH_BYTES: Final = 1 << 19
"""Where it stops when the first command alone is above that; one still larger goes alone."""

PIPELINE_SLOTS: Final = 4
"""Values in flight at once; few, so that batches grow by themselves under load."""

ALPHA: Final = 64
"""A leader never proposes beyond its chosen_upto + ALPHA; a change of members waits as long."""

WINDOW_SLOTS: Final = 4 * ALPHA
"""An acceptor takes Accepts up to this far above its own chosen_upto. A learner counts votes up to
ALPHA only: further up, a Replace that it has not learnt yet may have changed the voters."""

QUEUE_MAX_BYTES: Final = 64 << 20
"""Commands that may wait at a leader, and at a node for a leader."""

QUEUE_MAX_COMMANDS: Final = 200_000
"""The same limit as a count."""

WINDOW_MAX_BYTES: Final = 64 << 20
"""Values above chosen_upto that an acceptor holds; beyond it, Accepts are dropped until it caught up."""

BALLOTS_PER_SLOT: Final = 8
"""How many ballots a learner counts votes for in one slot: the highest ones."""

FETCH_BYTES: Final = VALUE_MAX_BYTES
"""The size that an answer to a Fetch stops at (one entry more than fits is never cut)."""

READS_MAX: Final = 10_000
"""Reads that may wait at a leader for their confirmation; a node sends one for all of a turn."""

SESSIONS_MAX: Final = 100_000
"""Open client sessions; beyond it, opening one is refused."""

SESSION_RESULTS_MAX: Final = 100_000
"""Remembered results of one session above its floor; beyond it, commands are refused."""

UID_MAX_CHARS: Final = 32
"""The longest node id."""

NUMBER_MAX: Final = (1 << 62) - 1
"""The highest slot, ballot number or counter: storage keeps 64 bits of each."""
