"""The storage providers, and `open_storage`, which finds them (ours and others') as plugins."""

from __future__ import annotations

import os
from typing import Any

from twisted.plugin import IPlugin, getPlugins
from zope.interface import implementer

from twisted_paxos.errors import ConfigError
from twisted_paxos.interfaces import INodeStorage, IStorageProvider
from twisted_paxos.storage.disk import OsDisk
from twisted_paxos.storage.executor import disk_thread
from twisted_paxos.storage.memory import MemoryStorage
from twisted_paxos.storage.sqlite import SqliteStorage
from twisted_paxos.storage.wal import FileStorage


@implementer(IPlugin, IStorageProvider)
class FileProvider:
    """``file:DIR``: a write-ahead log in a directory, the default.

    A relative DIR counts from the current directory when `recover` runs.
    """

    scheme = "file"
    durable = True
    syntax = "file:DIR"

    def open(self, location: str, uid: str, reactor: Any) -> INodeStorage:
        """See `IStorageProvider`."""
        if not location:
            raise ConfigError("file: needs a directory: file:DIR")
        disk = OsDisk(os.path.expanduser(location))
        return FileStorage(disk, uid, disk_thread(reactor), description=f"file:{location}")


@implementer(IPlugin, IStorageProvider)
class SqliteProvider:
    """``sqlite:PATH``: one SQLite database.

    A relative PATH counts from the current directory when `recover` runs.
    """

    scheme = "sqlite"
    durable = True
    syntax = "sqlite:PATH"

    def open(self, location: str, uid: str, reactor: Any) -> INodeStorage:
        """See `IStorageProvider`."""
        if not location or location.endswith("/"):
            raise ConfigError("sqlite: needs a file: sqlite:PATH")
        return SqliteStorage(os.path.expanduser(location), uid, disk_thread(reactor), f"sqlite:{location}")


@implementer(IPlugin, IStorageProvider)
class MemoryProvider:
    """``memory:``: nothing survives the process."""

    scheme = "memory"
    durable = False
    syntax = "memory:"

    def open(self, location: str, uid: str, reactor: Any) -> INodeStorage:
        """See `IStorageProvider`."""
        if location:
            raise ConfigError(f"memory: takes nothing behind the colon, not {location!r}")
        return MemoryStorage(uid, reactor)


def find_provider(text: str) -> tuple[IStorageProvider, str]:
    """The provider of ``SCHEME:LOCATION``, and the location.

    Raises:
        ConfigError: no installed plugin knows the scheme.
    """
    scheme, colon, location = text.partition(":")
    providers = list(getPlugins(IStorageProvider))
    for provider in providers:
        if colon and provider.scheme == scheme:
            return provider, location
    known = ", ".join(sorted(provider.syntax for provider in providers))
    raise ConfigError(
        f"storage {text!r} is not known; known are: {known or 'none (is the package installed?)'}"
    )


def open_storage(text: str, uid: str, reactor: object) -> INodeStorage:
    """Storage for node ``uid`` from ``SCHEME:LOCATION``; touches nothing until `recover`.

    Raises:
        ConfigError: the scheme is unknown or the location cannot be understood.
    """
    provider, location = find_provider(text)
    return provider.open(location, uid, reactor)
