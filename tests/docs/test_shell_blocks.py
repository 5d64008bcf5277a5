"""What README and the pages show for a shell: README's *serve it* runs, and every command parses.

Not run here: `make demo` and `pip install` (an index, minutes), `make test` (this), and the red
team (minutes; `tests/redteam`).
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import typer

from g2d.cli.main import app
from places import ROOT
from stand_ins import wait_for

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text("utf-8")


def blocks(text: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)


def block_of(heading: str) -> str:
    (found,) = blocks(re.split(r"^## ", README.split(f"## {heading}\n")[1], flags=re.M)[0])
    return found


def commands(text: str) -> list[list[str]]:
    """Every call of g2d in a page's blocks, as its words."""
    whole = "".join(blocks(text)).replace("\\\n", " ")
    parts = [part.strip() for line in whole.splitlines() for part in line.split("&&")]
    return [shlex.split(part, comments=True)[1:] for part in parts if part.startswith("g2d ")]


@functools.cache
def _g2d():
    return typer.main.get_command(app)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_of_a_page_is_one(page):
    """Its flags are there, and what they are given is what they take; nothing is run."""
    for words in commands(page.read_text("utf-8")):
        command, rest = _g2d(), list(words)
        context = command.make_context("g2d", list(rest))
        while hasattr(command, "commands"):
            named = rest.pop(0) if rest[0] in command.commands else command.default
            command = command.commands[named]
        with command.make_context(command.name, rest, parent=context) as read:
            assert read.command is command  # an unknown flag, or value, would have raised


def test_every_pip_call_uses_the_index_that_is_given():
    if shutil.which("make") is None:
        pytest.skip("needs make")
    url = "https://an.index/of/builds for cpus"

    def installs(*arguments: str) -> list[str]:
        done = subprocess.run(
            ["make", "--dry-run", "--always-make", "demo", "test", "docs", *arguments], cwd=ROOT,
            capture_output=True, text=True, check=True,
            env={name: value for name, value in os.environ.items() if name != "TORCH_INDEX"},
        )  # fmt: skip
        return [line for line in done.stdout.splitlines() if re.search(r"\bpip\b.* install ", line)]

    given = installs(f"TORCH_INDEX={url}")
    assert len(given) == 3
    assert [shlex.split(line)[5:8] for line in given] == [["--quiet", "--extra-index-url", url]] * 3
    assert [line for line in installs() if "index-url" in line] == []


def test_readme_puts_g2d_on_the_path_where_it_is_made():
    """Its first block ended with an environment that no later block but one had activated."""
    first = [line.split("#")[0].strip() for line in blocks(README)[0].splitlines()]
    assert first[:2] == ["make demo", ". .venv/bin/activate"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_serve_it_runs_as_printed(tiny_vault, tmp_path):
    """After the line that activates what `make demo` made; with another port, 8000 may be taken."""
    if not Path(sys.prefix, "bin", "activate").is_file():
        pytest.skip(f"needs a virtual environment that a shell can activate, not {sys.prefix}")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    shutil.copytree(tiny_vault, tmp_path / "demo" / "vault")
    (activate,) = re.findall(r"^\. \.venv/bin/activate.*\n", README, re.M)
    block, count = re.subn(r"^(g2d serve .*)$", r"\1 --port 0", block_of("Serve it"), flags=re.M)
    assert count == 1
    env = {name: value for name, value in os.environ.items() if name != "XDG_CONFIG_HOME"}
    log = tmp_path / "log"
    with log.open("w") as out:
        shell = subprocess.Popen(
            ["sh", "-e", "-c", activate + block], cwd=tmp_path, env=env | {"HOME": str(tmp_path)},
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
        try:
            wait_for(lambda: " is live at " in log.read_text() or shell.poll() is not None, 500)
            assert shell.poll() is None, log.read_text()
            address = log.read_text().split(" is live at ")[1].split("/v2")[0]
            with urllib.request.urlopen(f"{address}/v2/health/ready", timeout=120) as response:
                assert response.status == 200
            os.killpg(shell.pid, signal.SIGTERM)
            wait_for(lambda: "stop" in _events(log), 120)
        finally:
            if shell.poll() is None:
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    said = log.read_text()
    assert "generation 2 is live at " in said
    assert "unsigned" not in said


def _events(log: Path) -> list[str]:
    return re.findall(r'"event": ?"(\w+)"', log.read_text())
