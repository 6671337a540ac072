"""Writes to etcd one put after another by its JSON gateway, 200 ms for each try, next member after a failure.

    python -m benchmarks.etcdwriter URL...

Prints the times of the acknowledgements, as `benchmarks.load` does with ``times``.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from urllib.parse import urlsplit

SECONDS = 12.0
TRY_S = 0.2
_BODY = json.dumps({"key": "ZmFpbC1vdmVy", "value": "dg=="})


def write(urls: list[str], seconds: float) -> list[float]:
    """Times of acknowledgements, on the monotonic clock."""
    acknowledged: list[float] = []
    at, connection = 0, None
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        try:
            if connection is None:
                connection = http.client.HTTPConnection(urlsplit(urls[at % len(urls)]).netloc, timeout=TRY_S)
            connection.request("POST", "/v3/kv/put", _BODY)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise OSError(answer.status)
            acknowledged.append(time.monotonic())
        except (OSError, http.client.HTTPException):
            if connection is not None:
                connection.close()
            at, connection = at + 1, None
            time.sleep(0.005)
    return acknowledged


def main() -> None:
    """See the module."""
    sys.stdout.write(json.dumps({"times_s": write(sys.argv[1:], SECONDS)}) + "\n")


if __name__ == "__main__":
    main()
