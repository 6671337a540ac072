"""Finding and opening providers."""

from __future__ import annotations

import os

from twisted.internet.task import Clock
from twisted.plugin import IPlugin, getPlugins
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyClass, verifyObject

from twisted_paxos.errors import ConfigError
from twisted_paxos.interfaces import IAcceptorStorage, IStorageProvider
from twisted_paxos.storage.providers import (
    FileProvider,
    MemoryProvider,
    SqliteProvider,
    find_provider,
    open_storage,
)


class ProviderTests(SynchronousTestCase):
    """The three providers, and the way to them."""

    def test_interfaces(self) -> None:
        """Each provides `IStorageProvider` and `IPlugin`."""
        for provider in (FileProvider, SqliteProvider, MemoryProvider):
            verifyClass(IStorageProvider, provider)
            verifyObject(IStorageProvider, provider())
            verifyObject(IPlugin, provider())

    def test_plugins_are_found(self) -> None:
        """All three are found as plugins, with what the others' options need to know."""
        found = {provider.scheme: provider.durable for provider in getPlugins(IStorageProvider)}
        self.assertEqual(found, found | {"file": True, "sqlite": True, "memory": False})

    def test_open(self) -> None:
        """Each scheme gives storage that says what it is, and touches nothing."""
        directory = self.mktemp()
        for text in (f"file:{directory}", f"sqlite:{directory}", "memory:"):
            storage = open_storage(text, "A", Clock())
            verifyObject(IAcceptorStorage, storage)
            self.assertEqual(storage.description, text)
        self.assertFalse(os.path.exists(directory))

    def test_location_with_colons(self) -> None:
        """Only the first colon separates."""
        self.assertEqual(find_provider("file:a:b")[1], "a:b")

    def test_refused(self) -> None:
        """What cannot be understood is one line that says what can."""
        for text, hint in (
            ("floppy:a", "file:DIR"),
            ("file", "memory:"),
            ("", "sqlite:PATH"),
            ("file:", "file:DIR"),
            ("sqlite:", "sqlite:PATH"),
            ("sqlite:dir/", "sqlite:PATH"),
            ("memory:x", "memory:"),
        ):
            error = self.assertRaises(ConfigError, open_storage, text, "A", Clock())
            self.assertIn(hint, str(error))
            self.assertNotIn("\n", str(error))
