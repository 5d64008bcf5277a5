"""The command line as a user meets it: what it prints, how it resumes, how it fails."""

import errno
import importlib.metadata
import os
import pty
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import types
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from typer.testing import CliRunner

import g2d
from g2d.cli import main as cli
from g2d.errors import G2DError, VaultError
from g2d.vault.vault import Vault

SOURCES = str(Path(next(iter(g2d.__path__))).parent)
SMALL = ["--members", "2", "--basins", "2", "--workers", "1"]
STEPS = "[population]\nbase_steps = 30\nearly_steps = 10\nfork_steps = 10\npool = 64\n"


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No setting of the machine that runs the tests changes what is printed."""
    for name in ("G2D_TRACEBACK", "G2D_THREADS", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONPATH", SOURCES)  # for spawned workers and subprocesses


@pytest.fixture
def vault(tiny_vault, tmp_path):
    return Path(shutil.copytree(tiny_vault, tmp_path / "vault"))


@pytest.fixture
def open_path():
    """A folder that user nobody can reach (pytest's own are private)."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        yield Path(parent) / "vault"


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


# -- light ---------------------------------------------------------------------------------------


def test_help_and_version_answer_at_once_and_without_torch():
    times = []
    for option in ("--help", "--version") * 3:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with process(option) as running:
            out, err = running.communicate(timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # CPU time, not wall: on a busy machine the clock measures the neighbours.
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert (running.returncode, err) == (0, "")
        assert ("population" in out) == (option == "--help")
    assert sorted(times)[2] < 0.5  # 0.07 to 0.2 s on one core


@pytest.mark.parametrize("arguments", [[], ["--help"], ["population", "--help"], ["--version"]])
def test_no_torch_is_imported_to_answer_help(arguments):
    code = (
        "import sys, g2d.cli.main\n"
        "try:\n    g2d.cli.main.app(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "assert not {'torch', 'numpy', 'sklearn'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_show_settings_and_export_import_no_torch(vault, tmp_path):
    code = (
        "import sys, g2d.cli.main\n"
        "for a in (['show', V], ['settings', V], ['export', V, O], ['generate', '/nowhere']):\n"
        "    try:\n        g2d.cli.main.app(a)\n"
        "    except SystemExit as end:\n        assert bool(end.code) == ('/nowhere' in a)\n"
        "assert 'torch' not in sys.modules"
    )
    code = f"V, O = {str(vault)!r}, {str(tmp_path / 'o.safetensors')!r}\n{code}"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_version_and_the_entry_point():
    assert succeed("--version").stdout == f"g2d {g2d.__version__}\n"
    points = importlib.metadata.entry_points(group="console_scripts", name="g2d")
    assert {point.value for point in points} <= {"g2d.cli.main:main"}
    assert callable(cli.main)


def test_a_misspelt_command_is_a_usage_error_with_a_suggestion():
    assert "Did you mean 'show'?" in fail("shw", code=2)


# -- the loop ------------------------------------------------------------------------------------


def test_population_makes_a_vault_and_goes_on_with_it(tmp_path):
    file = settings_file(tmp_path, STEPS + "members = 90\nseed = 3\n[guidance]\nmemory = 5\n")
    vault = tmp_path / "vault"
    first = succeed("population", vault, "--settings", file, *SMALL, "--eps", "0.1")
    assert "2 of 2 members (repelled) in 2 basins, accuracy min" in first.stdout
    assert f"Next: g2d fit {vault}" in first.stdout
    assert re.search(r"^population: 0 of 2$", first.stderr, re.MULTILINE)
    assert re.search(r"^population: 2 of 2, \d+\.\d s$", first.stderr, re.MULTILINE)
    assert "\x1b" not in first.output
    with Vault.open(vault) as opened:
        kept = g2d.Settings.from_toml(opened.settings_text)
        made = opened.entries("member")
    assert (kept.population.members, kept.population.seed) == (2, 3)  # flag over file, file
    assert (kept.guidance.memory, kept.task.eps) == (5, 0.1)
    assert kept.guidance.pool == 280  # the task's own default, not the general one
    for again in (["--settings", file, *SMALL, "--eps", "0.1"], [], ["--workers", "2"]):
        result = succeed("population", vault, *again)
        assert "population: 2 of 2\n" in result.stderr
    with Vault.open(vault) as opened:
        assert opened.entries("member") == made
        assert g2d.Settings.from_toml(opened.settings_text) == kept
    assert "other task or population settings" in fail("population", vault, "--eps", "0.12")


def test_population_adopts_checkpoints(tmp_path, tiny_vault):
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    for index, path in enumerate(sorted(tiny_vault.glob("population/00000?.safetensors"))[:3]):
        shutil.copy(path, zoo / f"mine {index}.safetensors")
    vault = tmp_path / "vault"
    result = succeed("population", vault, "--task", "digits", "--from-checkpoints", zoo)
    assert "3 of 3 members (adopted)" in result.stdout
    assert "adopting checkpoints: 3 of 3" in result.stderr


def test_population_takes_a_base_and_recipes(tmp_path, tiny_vault, tiny_settings):
    model = tiny_vault / "population" / "000001.safetensors"
    vault, toml = tmp_path / "vault", tmp_path / "s.toml"
    small = tiny_settings.override(
        population__members=2, population__basins=1, population__early_steps=0,
        population__fork_steps=10, harden__steps=2,
    )  # fmt: skip
    toml.write_text(small.to_toml())
    asked = ("--settings", toml, "--base", model, "--harden", "adversarial,clamp")
    succeed("population", vault, *asked, "--workers", "1")
    kept = g2d.Settings.from_file(vault / "task.toml")
    assert kept.harden.recipe == ("adversarial", "clamp")
    shown = succeed("show", vault).stdout
    assert "hardened by  adversarial (pgd, 2 steps, eps of the task, norm inf), clamp" in shown
    assert "no recipe 'l3'" in fail("population", tmp_path / "w", "--harden", "l3")
    assert "drop --members" in fail(
        "population", tmp_path / "w", "--from-checkpoints", tmp_path, "--base", model, code=2
    )


def test_fit_says_whether_it_fitted(vault):
    result = succeed("fit", vault)
    assert "was there already" in result.stdout
    assert result.stderr == ""
    result = succeed("fit", vault, "--again")
    assert "is fitted" in result.stdout
    assert "diffusion: 200 of 200" in result.stderr
    assert len(re.findall(r"^diffusion: ", result.stderr, re.MULTILINE)) <= 11


def test_generate_prints_each_generation_and_show_lists_it(vault):
    result = succeed("generate", vault, "-n", "2", "--seed", "4")
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if "generation" in line] == [
        "generation 2 (live)",
        "generation 3 (live)",
    ]
    number = r"-?[\d.]+%? \(limit [\d.]+%?\)"
    assert re.search(
        rf"accuracy drop bound {number}, class drop {number}, distance {number},"
        rf" stale ASR {number}, \d+\.\d\d CPU s$",
        lines[0],
    )
    assert "generating: " in result.stderr
    kept = succeed("generate", vault, "--no-activate").stdout
    assert "generation 4 (kept, not live)" in kept
    shown = succeed("show", vault).stdout
    assert "generations  4, live: 3" in shown
    rows = [line.split()[:2] for line in shown.splitlines() if re.match(r"\s+\d ", line)]
    assert rows == [["1", "past"], ["2", "past"], ["3", "live"], ["4", "kept"]]
    short = succeed("show", vault, "--last", "1").stdout
    assert "(the last 1; see --last)" in short
    assert "past" not in short


def test_the_same_seed_gives_the_same_bytes_at_once_and_one_by_one(vault, tmp_path):
    other = Path(shutil.copytree(vault, tmp_path / "other"))
    succeed("generate", vault, "-n", "2", "--seed", "7")
    for _ in range(2):
        succeed("generate", other, "--seed", "7")
    with Vault.open(vault) as a, Vault.open(other) as b:
        assert a.live() == b.live() == 3
        assert a.read_generation(3) == b.read_generation(3)
        assert a.read_generation(2) != a.read_generation(3)


def test_rejected_candidates_are_explained(vault):
    write_settings(vault, "stale_asr = 1.0", "stale_asr = 0.0")
    write_settings(vault, "distance = 0.02", "distance = 1000.0")
    write_settings(vault, "attempts = 4", "attempts = 2")
    result = invoke("generate", vault, "--seed", "1")
    assert result.exit_code == 1
    assert "no candidate passed its gates in 2 attempts" in result.stderr
    assert result.stdout.count("rejected: ") == 2
    assert result.stdout.count("aligned distance") == 2
    shown = succeed("show", vault).stdout
    assert "generations  1, live: 1" in shown
    assert "rejected     2 candidates" in shown
    assert "aligned distance" in shown


def test_demo_prints_the_table_and_where_the_report_is(monkeypatch, tmp_path):
    def run(out, seed, workers, progress):
        progress("judging", 0, 1)
        progress("judging", 1, 1)
        rows = [{"what": "frozen", "ASR": 0.998}, {"what": "rotated [guided]", "ASR": 0.03}]
        return {"table": rows, "asked": (out, seed, workers)}

    monkeypatch.setitem(sys.modules, "g2d.cli.demo", types.SimpleNamespace(run=run))
    result = succeed("demo", "--out", tmp_path / "d", "--seed", "2", "--workers", "1")
    assert re.search(r"rotated \[guided\]\s+0\.03\b", result.stdout)
    assert str(tmp_path / "d" / "report.html") in result.stdout
    assert str(tmp_path / "d" / "summary.json") in result.stdout
    assert re.search(r"Done in [\d.]+ s\.", result.stdout)
    assert "judging: 1 of 1" in result.stderr


def test_a_kept_generation_is_activated_later(tiny_vault, tmp_path):
    vault = tmp_path / "vault"
    shutil.copytree(tiny_vault, vault)
    succeed("generate", vault, "--keep", "--seed", "1")
    with Vault.open(vault) as opened:
        assert opened.live() == 1
    assert "Generation 2 is live." in succeed("activate", vault, "2").stdout
    assert "replay" in fail("activate", vault, "1")
    assert "no generation 9" in fail("activate", vault, "9")


# -- reading -------------------------------------------------------------------------------------


def test_show_of_a_vault_without_a_population(tmp_path):
    Vault.create(tmp_path / "vault", "[task]\nname = 'my_module:my_task'\n").close()
    shown = succeed("show", tmp_path / "vault").stdout
    assert "my_module:my_task" in shown
    assert "0 of 64 members" in shown
    assert shown.count("none yet") == 3


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
        return subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: PLW1510

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


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "digit"], "no task 'digit'. Did you mean 'digits'?"),
        (["--task", "mnist", "--data", "/nowhere"], "/nowhere does not exist; point --data at"),
        (["--task", "no_such_module:task"], "there is no module 'no_such_module'"),
        (["--eps", "5"], "eps 5 is larger than the data's range"),
        (["--eps", "-1"], "eps must lie in [0, 1e+06], not -1.0"),
        (["--eps", "nan"], "eps must lie in"),
        (["--members", "1"], "members must lie in [2, 100000], not 1"),
        (["--recipe", "repeled"], "Did you mean 'repelled'?"),
        (["--settings", "/nowhere.toml"], "cannot read the settings file /nowhere.toml"),
    ],
)
def test_bad_input_is_explained_and_makes_no_vault(tmp_path, arguments, expected):
    assert expected in fail("population", tmp_path / "vault", *arguments)
    assert not (tmp_path / "vault").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[population]\nmember = 4\n", "unknown key 'member'. Did you mean 'members'?"),
        ("[poplation]\n", "unknown key 'poplation'. Did you mean 'population'?"),
        ("[population]\nrate = 20.0\n", "rate must lie in [1e-08, 10], not 20.0"),
        ("population = 4\n", "'population' is a section, write [population]"),
        ("[population\n", "is not valid TOML"),
    ],
)
def test_a_bad_settings_file_is_explained(tmp_path, text, expected):
    file = settings_file(tmp_path, text)
    said = fail("population", tmp_path / "vault", "--settings", file)
    assert expected in said
    assert str(file) in said
    assert not (tmp_path / "vault").exists()


def test_bad_checkpoints_are_explained(tmp_path, tiny_vault):
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    member = tiny_vault / "population" / "000000.safetensors"
    shutil.copy(member, zoo / "a.safetensors")
    adopt = ("population", tmp_path / "vault", "--from-checkpoints", zoo)
    assert "holds 1 checkpoint(s)" in fail(*adopt)
    state = load_file(member)
    name = next(iter(state))
    save_file(state | {name: torch.full_like(state[name], torch.nan)}, zoo / "b.safetensors")
    assert "b.safetensors" in fail(*adopt)
    torch.save({"f": print}, zoo / "b.pt")
    (zoo / "b.safetensors").unlink()
    assert "b.pt" in fail(*adopt)
    assert "drop --members" in fail(*adopt, "--members", "3", code=2)


@pytest.mark.parametrize("command", ["show", "fit", "generate", "settings"])
def test_what_is_not_a_vault_is_named(tmp_path, command):
    assert "is not a vault" in fail(command, tmp_path)
    assert "there is no vault at" in fail(command, tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["show", "population", "generate"])
def test_a_vault_of_a_newer_version_is_refused(vault, command):
    edit_ledger(vault, "PRAGMA user_version = 99")
    assert "vault format 99" in fail(command, vault)


def test_commands_out_of_order_say_what_comes_first(vault):
    with Vault.open(vault, write=True) as opened:
        opened.delete("generator")
    assert "run `g2d fit` first" in fail("generate", vault)
    with Vault.open(vault, write=True) as opened:
        opened.delete("member")
    assert "run `g2d population` first" in fail("fit", vault)


def test_a_folder_that_holds_other_things_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    said = fail("population", tmp_path, *SMALL)
    assert "not an empty folder" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_locked_vault_can_be_shown_and_names_its_writer(vault):
    with Vault.open(vault, write=True):
        succeed("show", vault)
        assert f"another g2d process (pid {os.getpid()}) is writing" in fail("generate", vault)


def test_g2d_threads_is_checked(vault, monkeypatch):
    monkeypatch.setenv("G2D_THREADS", "many")
    assert "G2D_THREADS is 'many'" in fail("fit", vault)
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setenv("G2D_THREADS", "3")
    succeed("fit", vault)
    monkeypatch.delenv("G2D_THREADS")
    succeed("fit", vault)
    assert asked == [3, 1]


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


def test_our_own_bugs_keep_their_trace(failing_demo):
    failing_demo(ZeroDivisionError("ours"))
    assert isinstance(invoke("demo").exception, ZeroDivisionError)


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
        _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (1, "")


def test_a_full_standard_output_is_one_line(vault):
    with open("/dev/full", "w") as full, process("show", vault, stdout=full) as running:
        _, err = running.communicate(timeout=60)
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
from g2d.cli.console import show_progress
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


def test_ctrl_c_keeps_what_is_complete_and_the_same_command_goes_on(tmp_path):
    file = settings_file(tmp_path, STEPS.replace("fork_steps = 10", "fork_steps = 60"))
    vault = tmp_path / "vault"
    command = ["population", vault, "--settings", file, "--basins", "2", "--workers", "1"]
    command += ["--members", "8"]
    with process(*command, start_new_session=True) as running:
        while members_of(vault) < 2:
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the workers too
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("interrupted; what is complete is kept")
    assert "Traceback" not in err
    with Vault.open(vault) as opened:
        kept = opened.entries("member")
    assert 2 <= len(kept) < 8
    result = succeed(*command)
    assert "8 of 8 members" in result.stdout
    assert f"population: {len(kept)} of 8\n" in result.stderr
    with Vault.open(vault) as opened:
        assert opened.entries("member")[: len(kept)] == kept


def members_of(vault):
    """How many are committed: a file appears a moment before its row."""
    try:
        with Vault.open(vault) as opened:
            return len(opened.entries("member"))
    except VaultError:
        return 0  # not there yet, or being made


# --- the red team --------------------------------------------------------------------------------


def test_attack_and_report(tiny_vault, tmp_path, monkeypatch):
    """`g2d attack` runs a family, says where the results are; `g2d report` makes the pages."""
    pytest.importorskip("art")
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "red"
    answer = CliRunner().invoke(
        cli.app,
        ["attack", str(tiny_vault), "--quick", "--threat", "universal", "--workers", "1",
         "--out", str(out)],
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    assert "results.json" in answer.output
    assert "smoke test" in answer.output
    answer = CliRunner().invoke(cli.app, ["report", str(tiny_vault), "--out", str(out)])
    assert answer.exit_code == 0, answer.output
    assert "<html" in (out / "report.html").read_text("utf-8")
    assert "| " in (out / "table.md").read_text("utf-8")


def test_report_without_results(tiny_vault, tmp_path):
    answer = CliRunner().invoke(cli.app, ["report", str(tiny_vault), "--out", str(tmp_path)])
    assert answer.exit_code == 1
    assert "run `g2d attack` first" in answer.stderr


def test_attack_of_an_unknown_threat(tiny_vault):
    answer = CliRunner().invoke(cli.app, ["attack", str(tiny_vault), "--threat", "querry"])
    assert answer.exit_code == 1
    assert "Did you mean 'query'?" in answer.stderr
