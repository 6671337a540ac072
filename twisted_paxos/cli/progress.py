"""A progress bar on standard error, only where a person sees it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from twisted_paxos.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Progress:
    """Shows how many values are chosen, and how much of a file that is.

    Args:
        wanted: False when rows on the same terminal show the progress already.
        total_bytes: size of the input, None when that is unknown.
    """

    def __init__(self, wanted: bool, total_bytes: int | None) -> None:
        self._wanted = wanted and sys.stderr.isatty()
        self._total_bytes = total_bytes
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._values = 0
        self._bytes = 0

    def start(self) -> None:
        """Show it, on a terminal."""
        if not self._wanted:
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.fields[values]:>12,} values"),
            BarColumn(),
            TaskProgressColumn(show_speed=False),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), redirect_stdout=False, transient=True)
        self._task = self._bar.add_task("", total=self._total_bytes, values=0)
        self._bar.start()

    def advance(self, size_bytes: int) -> None:
        """One more value of ``size_bytes`` (with its line end) is done."""
        self._values += 1
        self._bytes += size_bytes
        # The bar draws itself some times a second; telling it of each value would cost more than the value.
        if self._bar is not None and self._task is not None and self._values % 256 == 0:
            self._bar.update(self._task, completed=self._bytes, values=self._values)

    def warn(self, message: str) -> None:
        """One line above the bar."""
        if self._bar is None:
            output.warn(message)
        else:
            self._bar.console.print(f"paxosctl: {message}", markup=False, highlight=False)

    def stop(self) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
