"""A client in a process of its own: asks all the time, writes who answered what and when.

    python asking.py HOST PORT

One JSON line an answer: `asked` and `got` in seconds since 1970, status (0: none in time), replica,
generation. Imports nothing but the standard library, so that it starts at once.
"""

from __future__ import annotations

import http.client
import json
import sys
import time

_EVERY, _PATIENCE = 0.1, 3.0  # seconds
_BODY = json.dumps({"inputs": [
    {"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
]})  # fmt: skip


def main() -> None:
    """Ask until killed."""
    host, port = sys.argv[1:]
    line: http.client.HTTPConnection | None = None
    while True:
        asked = time.time()
        said = {"asked": asked, "status": 0, "replica": "", "generation": 0}
        try:
            line = line or http.client.HTTPConnection(host, int(port), timeout=_PATIENCE)
            line.request("POST", "/v2/models/g2d/infer", _BODY)
            answer = line.getresponse()
            told = json.loads(answer.read())
            said["status"] = answer.status
            said["replica"] = answer.headers.get("g2d-replica", "")
            if answer.status == 200:
                said["generation"] = told["parameters"]["generation"]
        except (OSError, http.client.HTTPException, ValueError):
            if line is not None:
                line.close()
            line = None
        print(json.dumps(said | {"got": time.time()}), flush=True)
        time.sleep(max(0.0, _EVERY - (time.time() - asked)))


if __name__ == "__main__":
    main()
