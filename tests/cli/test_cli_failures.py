"""Failures of the world: errors in one line, a full disk, Ctrl-C, closed and strange outputs."""

import errno
import os
import pty
import re
import signal
import subprocess
import sys
import time
import types
from contextlib import suppress

import pytest

from commands import (
    STEPS,
    fail,
    invoke,
    process,
    settings_file,
    succeed,
)
from g2d.errors import G2DError, VaultError
from g2d.vault.vault import Vault

# -- failures of the world -----------------------------------------------------------------------


@pytest.fixture
def failing_demo(monkeypatch):
    def arrange(error):
        def run(**_):
            raise error

        monkeypatch.setitem(sys.modules, "g2d.cli.demo", types.SimpleNamespace(run=run))

    return arrange


def test_errors_take_one_line_and_a_trace_if_asked(failing_demo, monkeypatch):
    failing_demo(G2DError("first line\n  and [gates] \x1b[2J second"))
    assert fail("demo") == "error: first line and [gates] ?[2J second\n"
    result = invoke("--traceback", "demo")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Traceback" in result.stderr
    assert "raise error" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: first line")
    monkeypatch.setenv("G2D_TRACEBACK", "1")
    assert "Traceback" in invoke("demo").stderr


def test_a_full_disk_is_named(failing_demo):
    failing_demo(OSError(errno.ENOSPC, "No space left on device", "demo/report.html"))
    said = fail("demo")
    assert said.startswith("error: demo/report.html: the disk is full.")
    failing_demo(PermissionError(errno.EACCES, "Permission denied", "demo"))
    assert fail("demo") == "error: demo: Permission denied\n"


def test_ctrl_c_is_one_line_and_130(failing_demo):
    failing_demo(KeyboardInterrupt())
    result = invoke("demo")
    assert result.exit_code == 130
    assert result.stderr == (
        "interrupted; what is complete is kept, run the same command again to go on\n"
    )


@pytest.mark.parametrize("arguments", [["show"], ["settings"]])
def test_a_broken_pipe_is_silent(vault, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    with process(*arguments, vault, stdout=writing) as running:
        os.close(writing)
        _, err = running.communicate(timeout=300)
    assert (running.returncode, err) == (1, "")


def test_a_full_standard_output_is_one_line(vault):
    with open("/dev/full", "w") as full, process("show", vault, stdout=full) as running:
        _, err = running.communicate(timeout=300)
    assert running.returncode == 1
    assert "the disk is full" in err
    assert "Traceback" not in err


def test_bars_on_a_terminal_and_no_colours_if_not_wanted():
    coloured = on_a_terminal(BARS, TERM="xterm-256color")
    assert "diffusion" in coloured
    assert "200/200" in coloured
    assert re.search("\x1b\\[(3|9)\\d", coloured)
    plain = on_a_terminal(BARS, TERM="xterm-256color", NO_COLOR="1")
    assert "200/200" in plain
    assert not re.search("\x1b\\[(3|9)\\d", plain)


BARS = """
from g2d.cli.progress import show_progress
with show_progress() as progress:
    for done in range(201):
        progress("diffusion", done, 200)
"""


def on_a_terminal(code, **environment):
    leader, follower = pty.openpty()
    text = b""
    with open(leader, "rb", buffering=0) as screen:
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stdout=follower, env=os.environ | environment):
            os.close(follower)
            with suppress(OSError):  # the other end is closed
                while part := screen.read(1 << 16):
                    text += part
    return text.decode()


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_complete_and_the_same_command_goes_on(tmp_path, serial):
    file = settings_file(tmp_path, STEPS.replace("fork_steps = 10", "fork_steps = 60"))
    vault = tmp_path / "vault"
    command = ["population", vault, "--settings", file, "--basins", "2", "--workers", "1"]
    command += ["--members", "6"]
    with process(*command, start_new_session=True) as running:
        while members_of(vault) < 2:
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the workers too
        out, err = running.communicate(timeout=300)
    assert running.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("interrupted; what is complete is kept")
    assert "Traceback" not in err
    with Vault.open(vault) as opened:
        kept = opened.entries("member")
    assert 2 <= len(kept) < 6
    result = succeed(*command)
    assert "6 of 6 members" in result.stdout
    assert f"population: {len(kept)} of 6\n" in result.stderr
    with Vault.open(vault) as opened:
        assert opened.entries("member")[: len(kept)] == kept


def members_of(vault):
    """How many are committed: a file appears a moment before its row."""
    try:
        with Vault.open(vault) as opened:
            return len(opened.entries("member"))
    except VaultError:
        return 0  # not there yet, or being made
