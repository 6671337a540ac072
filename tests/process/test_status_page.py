"""The status page in a real browser, against real nodes.

Needs Chromium and its driver (Debian: chromium, chromium-driver) and selenium (the extra ``[browser]``).
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from twisted_paxos.client import connect
from twisted_paxos.testing.nodes import NodeProcess, free_ports, poll

from .support import SLOW_S, ProcessCase

log = Logger()

KILLS = 3
SHOWN_S = 2.0
"""So soon after a leader was killed the page shows the next one."""

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--window-size=1280,900"),
)

REFUSED = "net::ERR_"
"""What the console says of a node that is gone: no fault of the page."""


def open_browser(directory: Path) -> Any:
    """A headless Chromium of its own; blocks.

    Raises:
        SkipTest: something is missing.
    """
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise SkipTest("chromium and chromedriver are not installed")
    try:
        from selenium import webdriver
    except ImportError:
        raise SkipTest("selenium is not installed: the extra [browser]") from None
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={directory / 'browser'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


class StatusPageCase(ProcessCase):
    """Three nodes and a browser."""

    timeout = 300

    async def begin(self) -> None:
        """Start both."""
        self.browser = await deferToThread(open_browser, self.directory)
        self.addCleanup(deferToThread, self.browser.quit)
        ports = free_ports(9)
        lines = []
        for place, uid in enumerate("ABC"):
            peer, client, http = ports[3 * place : 3 * place + 3]
            lines += [f"[nodes.{uid}]", f'peer = "127.0.0.1:{peer}"']
            lines += [f'client = "127.0.0.1:{client}"', f'http = "127.0.0.1:{http}"']
        cluster_file = self.directory / "cluster.toml"
        cluster_file.write_text("\n".join(lines))
        options = ["--cluster", str(cluster_file), "--quiet"]
        self.nodes = {
            uid: self.node(uid, options, f"127.0.0.1:{ports[3 * place + 1]}")
            for place, uid in enumerate("ABC")
        }
        self.urls = {uid: f"http://127.0.0.1:{ports[3 * place + 2]}/" for place, uid in enumerate("ABC")}
        for node in self.nodes.values():
            node.start()
        for node in self.nodes.values():
            await node.wait_ready(SLOW_S)

    async def leader(self) -> str:
        """Whom all nodes follow."""

        async def agreed() -> str | None:
            running = [node for node in self.nodes.values() if node.running]
            statuses = [await node.status() for node in running]
            leaders = {
                status.leader if status is not None and status.leader_works else "" for status in statuses
            }
            return leaders.pop() if len(leaders) == 1 and "" not in leaders else None

        return await poll(self.reactor, "one leader", agreed, SLOW_S)

    def run_script(self, script: str) -> Deferred[Any]:
        """What ``script`` returns, run in the page."""
        return deferToThread(self.browser.execute_script, script)

    async def shows(self, what: str, script: str, condition: Callable[[Any], bool]) -> Any:
        """Wait until what ``script`` returns in the page is as it should be, and return it."""

        async def look() -> Any | None:
            found = await self.run_script(script)
            return found if condition(found) else None

        return await poll(self.reactor, f"the page shows {what}", look, SLOW_S)

    async def shows_leader(self, condition: Callable[[str], bool]) -> str:
        """Wait until the page names a leader that ``condition`` takes."""
        script = "return document.getElementById('leader').dataset.leader || ''"
        found: str = await self.shows("the leader", script, condition)
        return found

    async def open(self, uid: str) -> None:
        """Open the page of a node, and wait until it shows all nodes as answering."""
        await deferToThread(self.browser.get, self.urls[uid])
        await self.shows_all()

    async def shows_all(self) -> None:
        """Wait until each of the three hears both others, as each of them says itself."""
        script = "return [...document.querySelectorAll('#hear tbody td')].map((c) => c.className).join()"
        await self.shows("that all hear each other", script, "self,,,,self,,,,self".__eq__)

    async def assert_no_complaints(self) -> None:
        """The console has nothing but nodes that were gone."""
        lines = await deferToThread(self.browser.get_log, "browser")
        self.assertEqual([], [line["message"] for line in lines if REFUSED not in line["message"]])

    async def propose_all(self, values: list[str]) -> None:
        """Have values chosen, one after the other."""
        client = await connect(self.reactor, [node.endpoint for node in self.nodes.values()])
        for value in values:
            await client.propose(value, timeout_s=SLOW_S)
        await client.close()


class StatusPageTests(StatusPageCase):
    """What people see."""

    async def test_leader_killed(self) -> None:
        """The page of a follower shows the next leader within 2 s, and the killed node once it is back."""
        await self.begin()
        took_s = []
        old = await self.leader()
        await self.open(next(uid for uid in "ABC" if uid != old))
        for _ in range(KILLS):
            old = await self.leader()
            await self.shows_leader(old.__eq__)
            killed_s = self.reactor.seconds()
            await self.nodes[old].kill()
            new = await self.shows_leader(lambda found, old=old: found not in ("", old))
            took_s.append(round(self.reactor.seconds() - killed_s, 2))
            self.assertEqual(await self.leader(), new)
            self.nodes[old].start()
            await self.nodes[old].wait_ready(SLOW_S)
            await self.shows_all()
        log.info("the page showed the next leader after {took_s} s", took_s=took_s)
        self.assertLess(statistics.median(took_s), SHOWN_S, took_s)
        events = await self.run_script("return document.getElementById('events').textContent")
        self.assertIn(f"{new} leads, ballot", events)
        await self.assert_no_complaints()

    async def test_leader_stopped(self) -> None:
        """A leader that hangs, its connections open, does not keep the page from showing the next one."""
        await self.begin()
        old = await self.leader()
        await self.open(next(uid for uid in "ABC" if uid != old))
        self.nodes[old].signal("STOP")
        new = await self.shows_leader(lambda found: found not in ("", old))
        card = f"return document.querySelector('.card[data-uid=\"{old}\"]').className"
        await self.shows("the one that hangs as gone", card, "card away".__eq__)
        self.nodes[old].signal("CONT")
        await self.shows("it as a follower", card, "card follower".__eq__)
        self.assertEqual(new, await self.shows_leader(bool))

    async def test_page_outlives_its_node(self) -> None:
        """The leader's own page goes on by what the others say, and marks its node as not reachable."""
        await self.begin()
        old = await self.leader()
        await self.open(old)
        await self.nodes[old].kill()
        new = await self.shows_leader(lambda found: found not in ("", old))
        card = f"return document.querySelector('.card[data-uid=\"{old}\"]').className"
        await self.shows("its node as gone", card, "card away".__eq__)
        title = await self.run_script("return document.title")
        self.assertTrue(title.startswith(f"{new} leads"), title)
        said = await self.run_script("return document.getElementById('said').textContent")
        self.assertEqual(f"{new} leads now", said)

    async def test_slots_flow(self) -> None:
        """What is chosen shows up by number, nothing shows of its content, and it fits a phone."""
        await self.begin()
        await self.open("A")
        node: NodeProcess = self.nodes["A"]
        await self.propose_all([f"<b>secret-{number}</b>" for number in range(8)])
        status = await node.status()
        assert status is not None
        script = "return [...document.querySelectorAll('#slots b')].map((b) => b.textContent).join()"
        await self.shows("the last slot", script, lambda found: found.endswith(f"{status.chosen_upto:,}"))
        html = await self.run_script("return document.documentElement.outerHTML")
        self.assertNotIn("secret", html)
        await self.assert_no_complaints()
        await self.assert_fits_a_phone()

    async def assert_fits_a_phone(self) -> None:
        """390 pixels are wide enough, in dark mode too, which looks different."""
        script = "return getComputedStyle(document.body).backgroundColor"
        light = await self.run_script(script)
        for command, values in {
            "Emulation.setDeviceMetricsOverride": {
                "width": 390,
                "height": 844,
                "deviceScaleFactor": 2,
                "mobile": True,
            },
            "Emulation.setEmulatedMedia": {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
        }.items():
            await deferToThread(self.browser.execute_cdp_cmd, command, values)
        self.assertEqual(390, await self.run_script("return document.documentElement.scrollWidth"))
        self.assertNotEqual(light, await self.run_script(script))
