"""What programs coordinate with: locks, elections, and what else is made of keys, leases and watches.

lock = Lock(client, "jobs/nightly")
async with lock:
    write_to_storage(data, fencing_token=lock.token)

``docs/recipes.md`` says what each one guarantees while processes pause and networks part.
"""

from twisted_paxos.client.recipes.data import Barrier, Counter, Queue
from twisted_paxos.client.recipes.election import Election
from twisted_paxos.client.recipes.locks import Lock, ReadWriteLock, Semaphore
from twisted_paxos.client.recipes.place import TTL_S, Place
from twisted_paxos.client.recipes.registry import Registration, ServiceRegistry

__all__ = [
    "TTL_S",
    "Barrier",
    "Counter",
    "Election",
    "Lock",
    "Place",
    "Queue",
    "ReadWriteLock",
    "Registration",
    "Semaphore",
    "ServiceRegistry",
]
