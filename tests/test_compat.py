"""What `tests.compat.run` makes of the results of others' tests."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from tests.compat import run
from twisted_paxos.testing.etcdservers import Servers

RESULTS = """<testsuites><testsuite>
<testcase classname="a.Tests" name="test_one"/>
<testcase classname="a.Tests" name="test_two"><failure message="no"/></testcase>
<testcase classname="a.Tests" name="test_three"><skipped/></testcase>
<testcase classname="a.Tests" name="test_four"><error/></testcase>
</testsuite></testsuites>"""


class OutcomeTests(SynchronousTestCase):
    """Results by outcome."""

    def test_outcomes(self) -> None:
        """Each test counts once, by what became of it."""
        path = Path(self.mktemp())
        path.write_text(RESULTS)
        self.assertEqual(
            {
                "passed": {"a.Tests.test_one"},
                "failure": {"a.Tests.test_two"},
                "skipped": {"a.Tests.test_three"},
                "error": {"a.Tests.test_four"},
            },
            run.outcomes(path),
        )

    def compare(self, *outcomes: dict[str, set[str]]) -> set[str]:
        """What is only right with etcd, of one suite with these outcomes for etcd and for ours."""
        results = [run.Outcome(outcome, "") for outcome in outcomes]
        fakes = [mock.MagicMock(spec=Servers) for _ in outcomes]
        for fake, name in zip(fakes, ("etcd", "ours"), strict=True):
            fake.__enter__.return_value = fake
            fake.name = name
        with (
            mock.patch.object(run, "SUITES", run.SUITES[:1]),
            mock.patch.object(run, "etcd", return_value=fakes[0]),
            mock.patch.object(run, "ours", return_value=fakes[1]),
            mock.patch.object(run, "run_suite", side_effect=results),
            mock.patch("builtins.print"),
        ):
            return run.compare(Path(), Path(), False)

    def test_only_with_etcd(self) -> None:
        """A test that fails or is missing with ours alone is reported; one that fails with both is not."""
        self.assertEqual(
            {"one", "two"},
            self.compare({"passed": {"one", "two"}, "failure": {"three"}}, {"failure": {"one", "three"}}),
        )
        self.assertEqual(set(), self.compare({"passed": {"one"}}, {"passed": {"one"}}))

    def test_nothing_ran(self) -> None:
        """A suite that does not run even with etcd is no success."""
        self.assertEqual({"etcd3gw"}, self.compare({}, {}))
