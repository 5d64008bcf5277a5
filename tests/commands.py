"""What the tests of the command line share: running a command here, or in a process of its own."""

import re
import sqlite3
import subprocess
import sys
from contextlib import closing

from typer.testing import CliRunner

from g2d.cli import main as cli

SMALL = ["--members", "2", "--basins", "2", "--workers", "1"]
STEPS = "[population]\nbase_steps = 30\nearly_steps = 10\nfork_steps = 10\npool = 64\n"


def invoke(*arguments, **options):
    return CliRunner().invoke(cli.app, [str(part) for part in arguments], **options)


def succeed(*arguments, **options):
    result = invoke(*arguments, **options)
    assert result.exit_code == 0, result.output
    return result


def fail(*arguments, code=1):
    """Run a command that must fail; return what it says: one line, no trace."""
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    if code == 1:
        assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
        assert result.stdout == ""
    return result.stderr


def process(*arguments, **options):
    command = [sys.executable, "-m", "g2d", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **streams | options)


def settings_file(folder, text):
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def write_settings(vault, old, new):
    path = vault / "task.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def edit_ledger(vault, *statements):
    with closing(sqlite3.connect(vault / "ledger.sqlite")) as ledger, ledger:
        for statement in statements:
            ledger.execute(statement)
