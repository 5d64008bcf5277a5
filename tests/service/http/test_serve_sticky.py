"""`g2d serve --policy sticky` as a process: what is live together, and after a kill."""

from __future__ import annotations

import json
import urllib.request

import numpy as np
import pytest

from service_process import TOKEN, Process, expected
from stand_ins import wait_for


@pytest.mark.slow
def test_a_kill_brings_nobody_back_and_the_older_ones_are_live_again(vault, x, tmp_path):
    flags = ("--policy", "sticky", "--live", "2")

    def serving(served: Process) -> dict:
        request = urllib.request.Request(
            f"{served.address}/status", headers={"authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.loads(response.read())["serving"]

    with Process(vault, *flags, log=tmp_path / "first") as served:
        assert serving(served)["live"] == [1]
        # Asked for once: where it takes longer than the call waits, a second call is a second one.
        assert served.ask("/admin/rotate", method="POST")[0] in (200, 202)
        wait_for(lambda: len(serving(served)["live"]) == 2, 400.0)
        live = serving(served)["live"]
        assert live[0] == 1
        assert len(live) == 2
        tag, logits = served.infer(x)
        right = [np.allclose(logits, expected(vault, number, x), atol=1e-5) for number in live]
        assert right.count(True) == 1, "wholly from one of them"
        assert served.ask("/status")[1]["hidden"]
        served.process.kill()
    with Process(vault, *flags, log=tmp_path / "second") as served:
        assert serving(served)["live"] == live
        again, same = served.infer(x)
        assert again == tag
        assert np.allclose(same, logits, atol=1e-5)
        wait_for(lambda: any(line["event"] == "serving" for line in served.lines()))
        (line,) = [line for line in served.lines() if line["event"] == "serving"]
        assert (line["policy"], line["live"]) == ("sticky", live)
