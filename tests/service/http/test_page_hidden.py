"""The page in chromium under a serving policy, for who may not know when it rotates."""

from __future__ import annotations

import shutil
import socket
import threading

import pytest

from g2d.settings import ServeSettings
from stand_ins import Harness, wait_for

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn")
CHROMIUM = shutil.which("chromium")
TOKEN = "a-token-of-the-page"
WAIT = 60_000  # ms that anything may take to appear


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium on the PATH")
def test_who_may_not_know_sees_that_it_answers_and_no_generation():
    harness = Harness(serving=ServeSettings(policy="sticky"), token=TOKEN)
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(harness.service, ws="none", lifespan="on", log_config=None,
                            timeout_graceful_shutdown=1)  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    wait_for(lambda: server.started)
    try:
        with playwright.sync_playwright() as run:
            browser = run.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
            )
            shown, said = browser.new_page(), []
            shown.on("pageerror", lambda error: said.append(str(error)))
            shown.goto(f"http://127.0.0.1:{bound.getsockname()[1]}/")
            shown.wait_for_selector("#link.on", timeout=WAIT)
            assert harness.rotation.request().result(60) == 2
            ticked = "state.now > 0 && state.hidden && performance.now() / 1000 - state.at < 1"
            shown.wait_for_function(ticked, timeout=WAIT)
            for place in ("#generation", "#countdown", "#spare"):
                assert shown.locator(place).inner_text() == "not told"
            assert not shown.get_by_text("live for").is_visible()
            for place in ("#alarms", "#rotations", "#rejected"):
                assert shown.locator(place).is_hidden()
            shown.click("#watch")
            shown.fill("#token", TOKEN)
            shown.press("#token", "Enter")
            generation = playwright.expect(shown.locator("#generation"))
            generation.to_have_text("2", timeout=WAIT)
            assert "sticky: 1, 2 answer" in shown.locator("#schedule").inner_text()
            shown.click("#forget")
            generation.to_have_text("not told", timeout=WAIT)
            assert shown.title() == "G2D g2d"
            assert said == []
            browser.close()
    finally:
        harness.event_log.close()
        server.should_exit = True
        thread.join(60)
        bound.close()
