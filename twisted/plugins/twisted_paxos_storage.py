"""The storage providers that come with twisted_paxos, as plugins; others add theirs the same way."""

from twisted_paxos.storage.providers import FileProvider, MemoryProvider, SqliteProvider

file_storage = FileProvider()
sqlite_storage = SqliteProvider()
memory_storage = MemoryProvider()
