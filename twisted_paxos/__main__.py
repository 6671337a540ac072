"""``python -m twisted_paxos A``: the seed's short form of ``twistd -n paxos --id A``."""

from __future__ import annotations

import sys

from twisted.scripts import twistd

USAGE = "usage: python -m twisted_paxos ID [options of twistd paxos]"


def twistd_arguments(arguments: list[str]) -> list[str]:
    """What twistd is to be given for ``arguments``.

    Raises:
        SystemExit: there is no id.
    """
    if not arguments:
        raise SystemExit(USAGE)
    if arguments[0].startswith("-"):
        return ["-n", "paxos", *arguments]
    return ["-n", "paxos", "--id", *arguments]


def main() -> None:
    """Run one node in the foreground."""
    sys.argv = ["twistd", *twistd_arguments(sys.argv[1:])]
    twistd.run()


if __name__ == "__main__":
    main()
