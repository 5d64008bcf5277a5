"""The two pages, `/` and `/docs`: put together once, each whole, nothing loaded from outside.

Their look is the reports' (`templates/style.html`); their text, style and scripts lie in `web`.
Only the script and the style that are in the page run: the policy names them by digest.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Response

_WEB = Path(__file__).parent / "web"
_LOOK = Path(__file__).parents[2] / "report" / "templates" / "style.html"
_PAGES = {
    "/": (
        "page.html",
        (
            "dom.js",
            "rotations.js",
            "redteam.js",
            "page.js",
            "admin.js",
            "watched.js",
            "alarmline.js",
        ),
    ),
    "/docs": ("docs.html", ("dom.js", "docs.js")),
}


def add_pages(app: FastAPI) -> None:
    """Add the pages to an application."""
    for path, (name, scripts) in _PAGES.items():
        body, headers = assemble(name, scripts)
        app.add_api_route(
            path,
            _sends(Response(body, headers=headers, media_type="text/html")),
            methods=["GET", "HEAD"],
            include_in_schema=False,
        )


def assemble(name: str, scripts: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Return a page with its style and scripts inside, and the headers that guard it."""
    look = _LOOK.read_text("utf-8").strip().removeprefix("<style>").removesuffix("</style>")
    style = look + _read("page.css")
    script = '"use strict";\n' + "\n".join(map(_read, scripts))
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    page = _read(name).replace("<style></style>", f"<style>{style}</style>")
    page = page.replace("<script></script>", f"<script>{script}</script>")
    return page, {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
    }


def _sends(response: Response) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return response

    return send


def _read(name: str) -> str:
    return (_WEB / name).read_text("utf-8")


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
