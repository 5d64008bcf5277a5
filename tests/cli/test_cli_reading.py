"""What answers without torch or changes nothing: help, version, show, export, settings."""

import importlib.metadata
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from safetensors.torch import load, load_file

import g2d
from commands import fail, process, succeed
from g2d.cli import main as cli
from g2d.vault.vault import Vault

# -- light ---------------------------------------------------------------------------------------


def test_help_and_version_answer_at_once_and_without_torch():
    times, libraries = [], []
    for option in ("--help", "--version") * 2:
        with cpu_time() as own, process(option) as running:
            out, err = running.communicate(timeout=300)
        times += own
        assert (running.returncode, err) == (0, "")
        assert ("population" in out) == (option == "--help")
        # What every command line of this kind has to import, on this machine at this moment.
        needed = "import typer, rich.console, rich.table, rich.panel, rich.markdown"
        with cpu_time() as own:
            subprocess.run([sys.executable, "-c", needed], check=True, timeout=300)
        libraries += own
    assert sorted(times)[1] < 4 * sorted(libraries)[1]  # about twice; torch alone is ten times


@contextmanager
def cpu_time() -> Iterator[list[float]]:
    """CPU seconds of the processes that ended meanwhile: a clock would measure the neighbours."""
    took: list[float] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield took
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def without_torch(*commands: list[str]) -> None:
    """Run commands in one fresh interpreter, which must not import torch or numpy."""
    code = (
        "import sys, g2d.cli.main\n"
        "for arguments, ends in eval(sys.argv[1]):\n"
        "    try:\n        g2d.cli.main.app(arguments)\n"
        "    except SystemExit as end:\n        assert bool(end.code) == ends, arguments\n"
        "    heavy = {'torch', 'numpy', 'sklearn'} & set(sys.modules)\n"
        "    assert not heavy or heavy == {'numpy'} and 'verify' in arguments, arguments"
    )
    ends = [(command, command == [] or "/nowhere" in command) for command in commands]
    command = [sys.executable, "-c", code, repr(ends)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def test_no_torch_is_imported_to_answer_help_or_to_read_a_vault(vault, tmp_path):
    help_of = [[name, "--help"] for name in ("population", "serve", "keys")]
    out = str(tmp_path / "o.safetensors")
    without_torch(
        [], ["--help"], ["--version"], *help_of, ["show", str(vault)], ["settings", str(vault)],
        ["export", str(vault), out], ["generate", "/nowhere"], ["verify", str(vault)],
    )  # fmt: skip


def test_version_and_the_entry_point():
    assert succeed("--version").stdout == f"g2d {g2d.__version__}\n"
    points = importlib.metadata.entry_points(group="console_scripts", name="g2d")
    assert {point.value for point in points} <= {"g2d.cli.main:main"}
    assert callable(cli.main)


def test_a_misspelt_command_is_a_usage_error_with_a_suggestion():
    assert "Did you mean 'show'?" in fail("shw", code=2)


# -- reading -------------------------------------------------------------------------------------


def test_show_of_a_vault_without_a_population(tmp_path):
    Vault.create(tmp_path / "vault", "[task]\nname = 'my_module:my_task'\n").close()
    shown = succeed("show", tmp_path / "vault").stdout
    assert "my_module:my_task" in shown
    assert "0 of 64 members" in shown
    assert shown.count("none yet") == 3
    assert "private" not in shown


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            "[privacy]\nenabled = true\nepsilon = 2.0",
            "within epsilon 2 at delta 1e-05 for each record",
        ),
        ("[federated]\nprivate = true", "by its clients' own ledgers"),
    ],
)
def test_show_says_that_a_vault_is_private_and_where_to_read_on(tmp_path, table, words):
    Vault.create(tmp_path / "vault", f"[task]\nname = 'digits'\n{table}\n").close()
    shown = " ".join(succeed("show", tmp_path / "vault").stdout.split())
    assert words in shown
    assert f"g2d privacy {tmp_path / 'vault'}" in shown


def test_show_needs_no_write_access(open_path, tiny_vault):
    shutil.copytree(tiny_vault, open_path)
    for item in (open_path, *open_path.rglob("*")):
        item.chmod(0o555 if item.is_dir() else 0o444)
    code = (
        "import os, sys, g2d.cli.main\n"
        "try:  # import all: nobody may not be able to read this interpreter\n"
        "    g2d.cli.main.app(['show', sys.argv.pop()])\n"
        "except SystemExit:\n    print('readable, now read-only')\n"
        "if os.geteuid() == 0:\n    os.setgid(65534), os.setuid(65534)\n"
        "g2d.cli.main.app(sys.argv[1:])"
    )

    def run(*arguments):
        command = [sys.executable, "-c", code, *map(str, arguments), str(tiny_vault)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)  # noqa: PLW1510

    try:
        shown, written = run("show", open_path), run("export", open_path, open_path / "out")
    finally:
        for item in (open_path, *open_path.rglob("*")):
            item.chmod(0o755 if item.is_dir() else 0o644)
    assert "4 of 4 members" in shown.stdout.partition("read-only")[2], shown.stderr
    assert (written.returncode, written.stderr.count("\n")) == (1, 1)
    assert "Permission denied" in written.stderr


def test_show_drops_control_characters(tmp_path):
    with Vault.create(tmp_path / "vault", '[task]\nname = "\\u001b[2Jdigits"\n') as vault:
        vault.reject({"attempt": 0, "reasons": ["[red]bad\x1b]0;title\x07"], "at": 0.0})
    shown = succeed("show", tmp_path / "vault").stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[red]bad" in shown


def test_export_writes_a_state_dict_and_overwrites_only_if_told(vault, tmp_path):
    out = tmp_path / "live.safetensors"
    succeed("export", vault, out)
    with Vault.open(vault) as opened:
        assert out.read_bytes() == opened.read_generation(1)
    g2d.load_task("digits").model(0).load_state_dict(load_file(out))
    out.write_bytes(b"mine")
    assert "--force" in fail("export", vault, out)
    assert out.read_bytes() == b"mine"
    succeed("export", vault, out, "--number", "1", "--force")
    assert load(out.read_bytes())
    assert "no generation 9" in fail("export", vault, tmp_path / "o", "--number", "9")
    assert "No such file" in fail("export", vault, tmp_path / "nowhere" / "o")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["live.safetensors", "vault"]


def test_export_refuses_a_corrupt_generation(vault, tmp_path):
    weights = vault / "generations" / "000001" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert "is corrupt" in fail("export", vault, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_settings_are_printed_as_toml_that_reads_back(vault, tiny_settings):
    text = succeed("settings", "--defaults").stdout
    assert g2d.Settings.from_toml(text) == g2d.Settings()
    assert "members = 64  # number of checkpoints [2, 100000]" in text
    assert 'sampler = "ddim"  # reverse process (ddim, ddpm)' in text
    lines = [line for line in text.splitlines() if " = " in line]
    assert all("  # " in line for line in lines)
    own = succeed("settings", vault).stdout
    assert g2d.Settings.from_toml(own).population == tiny_settings.population
    fail("settings", code=2)
    fail("settings", vault, "--defaults", code=2)
