"""What is released, and that the documents say what the files say."""

from __future__ import annotations

import ast
import configparser
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import twisted_paxos


def find_checkout() -> Path | None:
    """Where the sources are, unless the tests run as an installed copy."""
    place = Path(__file__).resolve().parents[1]
    return place if (place / "setup.cfg").is_file() else None


CHECKOUT = find_checkout()


class PluginTests(SynchronousTestCase):
    """What twistd finds."""

    def test_found(self) -> None:
        """There is exactly one service maker named paxos, and its options and service are there."""
        (maker,) = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "paxos"]
        from twisted_paxos import tap

        self.assertIs(maker.options, tap.Options)
        self.assertIs(maker.makeService, tap.makeService)


class CheckoutCase(SynchronousTestCase):
    """Tests that read files beside the package."""

    def setUp(self) -> None:
        if CHECKOUT is None:
            raise SkipTest("not started from a checkout")
        self.top = CHECKOUT
        self.metadata = configparser.ConfigParser()
        self.metadata.read(self.top / "setup.cfg")


class FilesTests(CheckoutCase):
    """The checkout's files."""

    def test_no_init_under_twisted(self) -> None:
        """An __init__.py there would hide our plugins, or Twisted itself."""
        found = [path.name for path in (self.top / "twisted").rglob("*.py")]
        self.assertIn("twisted_paxos_dropin.py", found)
        self.assertNotIn("__init__.py", found)

    def test_packages_have_init(self) -> None:
        """Every directory with modules is a package, else its tests or modules would go missing."""
        for top in ("twisted_paxos", "tests"):
            for path in (self.top / top).rglob("*.py"):
                self.assertTrue((path.parent / "__init__.py").is_file(), path)

    def test_typed(self) -> None:
        """Type checkers are told that the package has types."""
        self.assertTrue((Path(twisted_paxos.__file__).parent / "py.typed").is_file())

    def test_readme_commands(self) -> None:
        """README has the two commands that do everything, each as one line of its own."""
        lines = (self.top / "README.md").read_text().splitlines()
        self.assertEqual(lines.count("    pip install . && paxosctl demo"), 1)
        self.assertEqual(lines.count("    pip install '.[test]' && trial tests"), 1)

    def test_links(self) -> None:
        """Every relative link of the documents leads to a file."""
        for document in [*self.top.glob("*.md"), *(self.top / "docs").glob("*.md")]:
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
                self.assertTrue((document.parent / target).exists(), f"{document.name}: {target}")

    def test_newsfragments(self) -> None:
        """Each fragment's name is one that towncrier takes."""
        settings = tomllib.loads((self.top / "pyproject.toml").read_text())["tool"]["towncrier"]
        kinds = "|".join(kind["directory"] for kind in settings["type"])
        for path in (self.top / settings["directory"]).iterdir():
            self.assertRegex(path.name, rf"^(README\.md|\.gitignore|\d+\.({kinds})(\.\d+)?\.md)$")

    def test_options_are_documented(self) -> None:
        """docs/operations.md has every option of twistd paxos."""
        from twisted_paxos import tap

        text = (self.top / "docs" / "operations.md").read_text()
        for option in tap.Options().longOpt:
            name = option.rstrip("=")
            if name not in ("help", "version"):
                self.assertIn(f"`--{name}", text)


class MetadataTests(CheckoutCase):
    """setup.cfg and what was installed from it."""

    def test_imports_are_required(self) -> None:
        """Every foreign package that the product imports is named in install_requires."""
        required = {
            re.split(r"[ <>=\[]", line)[0].replace(".", "").lower()
            for line in self.metadata["options"]["install_requires"].split("\n")
            if line
        }
        found = set()
        for path in (self.top / "twisted_paxos").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.partition(".")[0])
        # What is imported only when it is asked for: the simulator's --dask, the extra [dask], and random
        # requests of the comparison with etcd, the extra [test].
        found -= {*sys.stdlib_module_names, "twisted_paxos", "distributed", "hypothesis"}
        self.assertEqual({"zopeinterface" if name == "zope" else name for name in found}, required)

    def test_installed(self) -> None:
        """The installed distribution has this version, the command, and the extra."""
        try:
            installed = distribution("twisted_paxos")
        except PackageNotFoundError:
            raise SkipTest("not installed") from None
        scripts = {entry.name: entry.value for entry in installed.entry_points}
        self.assertEqual(scripts["paxosctl"], "twisted_paxos.cli:main")
        self.assertEqual(installed.version, twisted_paxos.__version__)
        self.assertIn("test", installed.metadata.get_all("Provides-Extra") or [])
