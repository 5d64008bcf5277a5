"""The page and `/docs` in Debian's chromium, over stand-ins that can refuse at will."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from g2d.errors import GenerationError
from g2d.rotation.scheduler import Triggers
from g2d.service.http.options import Options
from places import DATA
from stand_ins import TOKEN, Harness, body, wait_for

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn")
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium on the PATH")
RESULTS = DATA / "results.json"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
TOKEN = TOKEN.replace(" ", "-")
WAIT = 60_000  # ms that anything may take to appear


def gates(distance: float = 1.3, accuracy: float = 0.002) -> list[dict]:
    measured = (("finite", 0.0, 0.0), ("accuracy", accuracy, 0.01), ("class", 0.004, 0.05),
                ("distance", distance, 0.02), ("stale_asr", 0.035, 0.5))  # fmt: skip
    return [
        {"gate": gate, "value": value, "limit": limit, "passed": True, "reason": ""}
        for gate, value, limit in measured
    ]


class Page:
    """A service over a real socket on a thread, and what a browser said while it showed it."""

    def __init__(self, harness: Harness, address: str, browser) -> None:
        self.harness, self.address, self.browser = harness, address, browser
        self.requests: list[str] = []
        self.said: list[str] = []

    def open(self, path: str = "/", **context):
        opened = self.browser.new_context(**context)
        opened.set_default_timeout(WAIT)
        shown = opened.new_page()
        shown.on("request", lambda request: self.requests.append(request.url))
        shown.on("console", lambda message: self.said.append(message.text))
        shown.on("pageerror", lambda error: self.said.append(str(error)))
        shown.goto(self.address + path, wait_until="domcontentloaded")
        if path == "/":
            shown.wait_for_selector("#link.on")
        return shown

    def rotate(self) -> int:
        return self.harness.rotation.request().result(60)

    def infer(self, times: int = 1) -> None:
        data = json.dumps(body()).encode()
        for _ in range(times):
            urllib.request.urlopen(f"{self.address}/v2/models/g2d/infer", data, 60).read()


@contextlib.contextmanager
def serving(harness: Harness) -> Iterator[str]:
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(harness.service, ws="none", lifespan="on", log_config=None,
                            timeout_graceful_shutdown=1)  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        harness.event_log.close()
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
        bound.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as run:
        opened = run.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@pytest.fixture
def made(request, browser, tmp_path) -> Iterator[Page]:
    """A page over `Harness(**param)`; "results" stands for a red team's file."""
    options = {"token": TOKEN} | getattr(request, "param", {})
    if "results" in options:
        options["results"] = tmp_path / "results.json"
    harness = Harness(**options)
    with serving(harness) as address:
        page = Page(harness, address, browser)
        yield page
        for context in browser.contexts:
            context.close()
        assert {url.split("/", 3)[2] for url in page.requests} <= {address.split("/")[2]}


def enter(shown, token: str) -> None:
    shown.fill("#token", token)
    shown.press("#token", "Enter")


def expect(shown, selector: str, pattern: str) -> None:
    playwright.expect(shown.locator(selector)).to_have_text(re.compile(pattern), timeout=WAIT)


@needs_chromium
def test_it_loads_says_what_is_live_and_follows_a_rotation(made):
    shown = made.open()
    expect(shown, "#generation", "^1$")
    expect(shown, "#countdown", "on demand")
    expect(shown, "#no-rotations", "No rotation yet")
    expect(shown, "#alarm-list", "None since")
    expect(shown, "#rejected-list", "None since")
    expect(shown, "#redteam-body", "No results yet. g2d attack VAULT")
    shown.evaluate("window.same = true")
    made.harness.facts[2] = {"gates": gates(), "accuracy": 0.9712, "distance": 1.3}
    wait_for(lambda: made.harness.rotation.status()["spare"] == 2)
    made.infer(5)
    assert made.rotate() == 2
    made.infer(5)
    expect(shown, "#generation", "^2$")
    line = "#timeline > li:first-child summary"
    expect(shown, line, "2live.*on demand.*97.1 %.*1.3.*5 of 5")
    shown.click(line)
    expect(shown, "#timeline table >> nth=0", "accuracy0.002≤ 0.01.*distance1.3≥ 0.02")
    expect(shown, "#timeline dl", "committed and swapped in")
    expect(shown, "#timeline table >> nth=1", r"median.*ms.*answers\D*\d")
    expect(shown, "#news", "Generation 2 is live")
    playwright.expect(shown.locator("#plot svg")).to_be_visible(timeout=WAIT)
    assert shown.evaluate("window.same"), "it was loaded anew"
    age = shown.inner_text("#age")
    expect(shown, "#age", f"^(?!{age}$)")  # it ticks
    assert made.said == []


@needs_chromium
def test_rotating_asks_for_the_token_and_says_what_was_refused(made):
    shown = made.open()
    shown.click("#rotate")
    playwright.expect(shown.locator("#ask")).to_be_visible()
    shown.keyboard.press("Escape")
    playwright.expect(shown.locator("#ask")).to_be_hidden()
    assert made.harness.live.number == 1
    shown.click("#rotate")
    enter(shown, "not the token at all")
    expect(shown, "#ask-wrong", "This token is wrong")
    assert made.harness.live.number == 1
    enter(shown, TOKEN)
    expect(shown, "#said", "Generation 2 is live")
    expect(shown, "#generation", "^2$")
    wait_for(lambda: made.harness.rotation.status()["spare"] == 3)
    made.harness.fake.commit_fails = [(False, GenerationError("the disk is full"))]
    shown.click("#rotate")  # the token is still known
    expect(shown, "#said", "Refused: the disk is full")
    expect(shown, "#alarm-list li >> nth=0", "no spare.*the disk is full")
    expect(shown, "#generation", "^2$")
    shown.click("#pause")
    expect(shown, "#countdown", "paused")
    shown.click("#rotate")
    expect(shown, "#said", "Refused: rotation is paused; resume it first")
    shown.click("#pause")
    expect(shown, "#said", "Rotation goes on")
    kept = shown.evaluate("[JSON.stringify(localStorage), JSON.stringify(sessionStorage),"
                          " document.cookie, location.href]")  # fmt: skip
    assert TOKEN not in "".join(kept)
    assert shown.input_value("#token") == ""
    shown.click("#forget")
    shown.click("#rotate")
    playwright.expect(shown.locator("#ask")).to_be_visible()
    # A refused call is an error to the console, and the only thing that may be.
    assert all("401" in text or "409" in text for text in made.said), made.said


@needs_chromium
def test_what_monitors_see_is_shown_to_whoever_has_the_token(made):
    more = {"level": "critical", "client": HOSTILE, "evidence": {"near": 0.97, "why": HOSTILE}}
    made.harness.rotation.alarm("query_attack", "near-duplicates", rotate=False, **more)
    pin = {"client": "jwt:a", "why": "query_attack", "generation": 1, "seconds": 60.0}
    made.harness.desk.pinned = lambda: [pin]
    shown = made.open()
    expect(shown, "#alarm-list", "None since")  # the stream of events tells nobody
    expect(shown, "#watched-note", "are for operators")
    shown.click("#watch")
    enter(shown, TOKEN)
    expect(shown, "#watched-body .strong", "query_attack.*near-duplicates.*near 0.97")
    expect(shown, "#watched-body", "pinned.*for another.*jwt:a.*query_attack.*1 min")
    more = {"level": "notice", "evidence": {}}
    made.harness.rotation.alarm("drift", "the world has moved", rotate=False, **more)
    expect(shown, "#watched-body", "critical: 1 alarm.*notice: 1 alarm")  # without a click
    shown.click("#forget")
    expect(shown, "#watched-body", "^$")
    assert shown.locator("#alarm-line").is_hidden()
    assert shown.locator("#alarm-plot *").count() == 0
    assert shown.title() != "owned"
    assert made.said == []


@needs_chromium
@pytest.mark.parametrize("made", [{"token": ""}], indirect=True)
def test_without_a_token_admin_calls_are_off_and_it_says_so(made):
    shown = made.open()
    shown.click("#rotate")
    expect(shown, "#said", "Refused: admin calls are off")


@needs_chromium
@pytest.mark.parametrize("made", [{"options": Options(timeout=0.3)}], indirect=True)
@pytest.mark.parametrize("fails", [False, True])
def test_a_rotation_that_waits_for_its_spare_says_how_it_ended(made, fails):
    fake, may, plain = made.harness.fake, threading.Event(), made.harness.fake.make

    def slow(after: int) -> int:
        assert may.wait(60)
        if fails:
            raise GenerationError("no candidate passed")
        return plain(after)

    wait_for(lambda: made.harness.rotation.status()["spare"] == 2)
    fake.make = slow
    made.rotate()
    shown = made.open()
    expect(shown, "#spare", "being made")
    shown.click("#rotate")
    enter(shown, TOKEN)
    expect(shown, "#said", "Not yet: no spare was ready in time")
    expect(shown, "#schedule", "due: on demand")
    may.set()
    expect(shown, "#said", "Refused: no candidate passed" if fails else "Generation 3 is live")
    fake.make = plain


@needs_chromium
def test_the_keyboard_is_enough(made):
    shown = made.open()
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.textContent") == "Skip to the rotations"
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.id") == "rotate"
    outline = shown.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "what has the focus does not show it"
    shown.keyboard.press("Enter")
    assert shown.evaluate("document.activeElement.id") == "token"
    for _ in range(6):  # the dialog keeps the focus; the body has it while the browser's bar does
        shown.keyboard.press("Tab")
        assert shown.evaluate("document.activeElement.matches('body, dialog *')")
    shown.focus("#token")
    shown.keyboard.type(TOKEN)
    shown.keyboard.press("Enter")
    expect(shown, "#generation", "^2$")
    playwright.expect(shown.locator("#ask")).to_be_hidden()
    assert shown.evaluate("document.activeElement.id") == "rotate"
    shown.focus("#timeline summary >> nth=0")
    shown.keyboard.press("Enter")
    playwright.expect(shown.locator("#timeline details[open]")).to_have_count(1)


@needs_chromium
@pytest.mark.parametrize("made", [{"results": True}], indirect=True)
def test_what_it_is_told_is_text_and_never_markup(made, tmp_path):
    results = json.loads(RESULTS.read_text())
    for row in results["rows"]:
        row["threat"] = HOSTILE
    results["families"][0]["title"] = results["task"] = HOSTILE
    (tmp_path / "results.json").write_text(json.dumps(results))
    gate = {"gate": HOSTILE, "value": 0.1, "limit": 0.2, "passed": False, "reason": HOSTILE}
    made.harness.facts[2] = {"gates": [gate], "origin": HOSTILE}
    made.harness.tell("rejected", {"generation": 2, "gates": [gate]})
    made.harness.rotation.alarm(HOSTILE, HOSTILE, rotate=False)
    made.rotate()
    shown = made.open()
    made.harness.rotation.alarm(HOSTILE, HOSTILE, rotate=False)
    shown.click("#timeline summary >> nth=0")
    for place in ("#alarm-list", "#timeline", "#rejected-list", "#redteam-body", "#news"):
        playwright.expect(shown.locator(place)).to_contain_text(HOSTILE, timeout=WAIT)
    assert shown.locator("main script, main img").count() == 0
    assert "owned" not in shown.title()
    assert made.said == []


@needs_chromium
@pytest.mark.parametrize(
    "made", [{"results": True, "triggers": Triggers(every=600.0)}], indirect=True
)
def test_a_phone_scrolls_one_way_and_both_schemes_are_readable(made, tmp_path):
    shutil.copy(RESULTS, tmp_path / "results.json")
    for number in range(2, 14):
        made.harness.facts[number] = {"gates": gates(), "accuracy": 0.97, "distance": 1.3}
        assert made.rotate() == number
    failed = gates()[1] | {"passed": False, "reason": "worse than the base by " + "0123456789" * 9}
    made.harness.tell("rejected", {"generation": 14, "gates": [failed]})
    made.harness.rotation.alarm("integrity", "weights/" + "layer." * 30 + " changed", rotate=False)
    pages = {}
    for scheme, width in (("light", 360), ("dark", 1280)):
        shown = made.open(color_scheme=scheme, viewport={"width": width, "height": 740})
        shown.click("#timeline summary >> nth=0")
        shown.click("#redteam-body summary")
        shown.wait_for_selector("#redteam-body .all")
        playwright.expect(shown.locator("#timeline > li")).to_have_count(10)
        wide = shown.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{wide} px too wide at {width}"
        pages[scheme] = shown.evaluate(CONTRAST)
    for scheme, (page, least, where) in pages.items():
        assert least >= 4.5, f"{where} has a contrast of {least:.2f} in {scheme}"
        assert (page > 0.5) == (scheme == "light")
    shown.click("#older")
    playwright.expect(shown.locator("#timeline > li")).to_have_count(12)
    expect(shown, "#countdown", r"\d min \d+ s")


CONTRAST = """() => {
  const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3)
    .map((c) => (colour.startsWith("color(srgb") ? Number(c) : c / 255))
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return light(colour);
    }
    return 1;
  };
  const page = behind(document.body);
  let least = [page, 99, ""];
  for (const node of document.querySelectorAll("main *")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(node.closest("svg") ? style.fill : style.color), behind(node)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least[1]) least = [page, ratio, `${node.tagName} ${node.textContent.slice(0, 40)}`];
  }
  return least;
}"""


@needs_chromium
def test_a_lost_connection_is_said_and_the_state_read_again(made):
    shown = made.open()
    context = shown.context
    # Closing every stream is what a service that ends does; a new one is opened at once.
    context.route("**/events", lambda route: route.abort())
    listeners = made.harness.event_log._listeners
    for listener, loop in list(listeners.items()):
        loop.call_soon_threadsafe(listener.put_nowait, None)
    expect(shown, "#link", "connection lost")
    made.rotate()
    expect(shown, "#generation", "^1$")
    context.unroute("**/events")
    expect(shown, "#link", "^connected$")
    expect(shown, "#generation", "^2$")


@needs_chromium
def test_docs_need_nobody_else(made):
    shown = made.open("/docs")
    shown.wait_for_selector(".call")
    expect(shown, "#about", "Open Inference Protocol v2")
    text = shown.inner_text("#calls")
    for path in ("/v2/models/{name}/infer", "/admin/rotate", "/metrics", "/redteam"):
        assert path in text
    shown.click("summary:has-text('/admin/rotate')")
    expect(shown, "details[open]", "Authorization: Bearer TOKEN.*409")
    assert made.said == []


def test_the_policy_and_the_names_in_the_pages():
    """Without a browser: nothing may be loaded, and scripts name only elements that are there."""
    from g2d.service.http import web_page as page

    for name, scripts in page._PAGES.values():
        html, headers = page.assemble(name, scripts)
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        # Relative, so that a proxy may put a prefix before them.
        assert not re.search(r"(?:src|href)=\"(?!\./|[a-z.]+\"|#|data:,)", html)
        assert not re.search(r"(?:fetch\(|EventSource\(|path: )\"/", html)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "Storage"):
            assert word not in html
        for wanted in re.findall(r"(?:\$|write)\(\"([a-z-]+)\"", html):
            there = f'id="{wanted}"' in html or f'id: "{wanted}"' in html
            assert there or name == "docs.html", wanted
