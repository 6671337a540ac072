"""``--log-json``: one JSON object for each event, on a line of its own.

`twisted.logger` has the observer; here are the file that it writes to, as twistd itself would open
and rotate it, and a field with the whole text, so that nobody has to put format and fields together.
"""

from __future__ import annotations

import signal
import sys
from typing import Any, Final

from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import ILogObserver, LogEvent, formatEvent, jsonFileLogObserver
from twisted.python.logfile import LogFile
from zope.interface import provider

STDOUT: Final = (None, "", "-")
"""What twistd's ``--logfile`` says for the terminal, in the foreground."""

FIELD: Final = "text"
"""The field with the whole text of an event."""


def json_observer(reactor: IReactorFromThreads, path: str | None) -> ILogObserver:
    """An observer that writes to the file at ``path``, or to stdout.

    SIGUSR1 starts a new file, as it does for twistd's own log, unless something else takes it.

    Args:
        reactor: where a new file is started.
        path: see `STDOUT`.

    Raises:
        OSError: the file cannot be opened.
    """
    file: Any = sys.stdout if path in STDOUT else LogFile.fromFullPath(path)
    if isinstance(file, LogFile) and not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda number, frame: reactor.callFromThread(file.rotate))
    # Lines, not RFC 7464's separators: what collects logs reads lines.
    write = jsonFileLogObserver(file, recordSeparator="")

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        write({**event, FIELD: formatEvent(event)})

    return observe
