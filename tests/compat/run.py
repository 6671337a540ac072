"""Runs the tests of etcd3gw and of tooz's coordination against real etcd and against a cluster of ours.

    python -m tests.compat.run

Downloads both source distributions into a temporary directory, installs them into an environment of their
own there, and prints counts for both systems. Not part of ``trial tests``: it needs a package index and etcd.
Exit status 1 if a test passes with etcd and not with ours.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from msgspec import Struct

from twisted_paxos.errors import PaxosError
from twisted_paxos.testing.etcdservers import Servers, etcd, missing_etcd, ours

PACKAGES = ("etcd3gw", "tooz")
TEST_NEEDS = ("pytest", "testtools", "fixtures", "ddt", "oslotest", "requests")
SUITE_S = 900
"""How long a suite may take."""


class Suite(Struct, frozen=True):
    """Tests of one package.

    Attributes:
        name: in the table.
        module: with its tests.
        variables: of the environment; ``{address}`` and ``{port}`` are filled in.
    """

    name: str
    module: str
    variables: Mapping[str, str]


def _tooz(version: str) -> Suite:
    url = f"etcd3+http://{{address}}?api_version={version}"
    return Suite(f"tooz, {version}", "tooz.tests.test_coordination", {"TOOZ_TEST_URL": url})


SUITES = (
    Suite(
        "etcd3gw",
        "etcd3gw.tests.test_etcd3gw",
        {"TOOZ_TEST_HTTP_URL": "http://{address}", "TOOZ_TEST_ETCD_PORT": "{port}"},
    ),
    _tooz("v3"),
    _tooz("v3beta"),
    Suite("tooz, driver", "tooz.tests.drivers.test_etcd3gw", {}),
)


class Outcome(Struct):
    """What became of the tests of a suite, by outcome: full names."""

    by: dict[str, set[str]]
    output: str


def prepare(directory: Path, packages: Sequence[str] = PACKAGES) -> Path:
    """Download and install everything; the Python that has it."""
    sources = directory / "sources"
    here = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    _run([*here, "--no-binary", ",".join(packages), "--dest", str(sources), *packages])
    venv.create(directory / "environment", with_pip=True)
    python = directory / "environment" / "bin" / "python"
    archives = [
        str(path) + ("[etcd3gw,ipc,memcached,redis]" if path.name.startswith("tooz") else "")
        for path in sources.iterdir()
    ]
    _run([str(python), "-m", "pip", "install", "--quiet", *archives, *TEST_NEEDS])
    return python


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise PaxosError(f"{' '.join(command[1:4])}: {lines[-1] if lines else done.returncode}")


def run_suite(python: Path, suite: Suite, servers: Servers, directory: Path) -> Outcome:
    """Run one suite against the first server of a cluster."""
    address = servers.addresses[0]
    port = address.rpartition(":")[2]
    filled = {name: text.format(address=address, port=port) for name, text in suite.variables.items()}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    results = directory / "results.xml"
    results.unlink(missing_ok=True)
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "--junitxml", str(results), "--pyargs", suite.module],
        cwd=directory,
        env={**environment, **filled},
        capture_output=True,
        text=True,
        timeout=SUITE_S,
        check=False,
    )
    return Outcome(outcomes(results) if results.exists() else {}, done.stdout + done.stderr)


def outcomes(results: Path) -> dict[str, set[str]]:
    """Tests by outcome (``passed``, ``skipped``, ``failure``, ``error``), from a file in JUnit's format."""
    found: dict[str, set[str]] = {}
    for test in ElementTree.parse(results).iter("testcase"):
        kinds = [child.tag for child in test if child.tag in ("failure", "error", "skipped")]
        name = f"{test.get('classname')}.{test.get('name')}"
        found.setdefault(kinds[0] if kinds else "passed", set()).add(name)
    return found


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", type=Path, help="an environment that has both packages already")
    parser.add_argument("--verbose", action="store_true", help="print what the suites print")
    return parser


def compare(python: Path, place: Path, verbose: bool) -> set[str]:
    """Run all suites against both and print the counts; tests that pass with etcd only."""
    lost: set[str] = set()
    with etcd(place / "etcd") as theirs, ours(place / "ours") as mine:
        for suite in SUITES:
            results = [run_suite(python, suite, servers, place) for servers in (theirs, mine)]
            for servers, result in zip((theirs, mine), results, strict=True):
                counts = ", ".join(f"{outcome} {len(names)}" for outcome, names in sorted(result.by.items()))
                print(f"{suite.name}, {servers.name}: {counts or 'no tests ran'}")
                if verbose or not result.by:
                    print(result.output)
            worse = results[0].by.get("passed", set()) - results[1].by.get("passed", set())
            for name in sorted(worse):
                print(f"  only with etcd: {name}")
            lost |= worse or (set() if results[0].by else {suite.name})
    return lost


def main() -> int:
    """The command; returns its exit status."""
    arguments = options().parse_args()
    reason = missing_etcd()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="compat-") as directory:
        place = Path(directory)
        try:
            lost = compare(arguments.python or prepare(place), place, arguments.verbose)
        except PaxosError as error:
            print(f"compat: {error}", file=sys.stderr)
            return 2
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
