"""Flags are made from the settings' own fields: help, TOML comment and flag say the same."""

from __future__ import annotations

import re
import types

import pytest
import typer
from typer.testing import CliRunner

from g2d.cli import flags, main
from g2d.cli.console import commented
from g2d.errors import SettingsError
from g2d.service.http.options import Options, seconds, span
from g2d.settings import Settings
from g2d.settings.fields import as_toml

COMMANDS = typer.main.get_command(main.app).commands
SETTINGS, OPTIONS = flags.leaves(Settings), flags.leaves(Options)
POPULATION = {
    "task": "task__name", "data": "task__data", "eps": "task__eps",
    "members": "population__members", "recipe": "population__recipe",
    "basins": "population__basins", "seed": "population__seed",
    "workers": "population__workers", "harden": "harden__recipe",
}  # fmt: skip


def option_of(command: str, name: str):
    return next(p for p in COMMANDS[command].params if p.name == name)


def test_every_setting_has_a_meaning_that_its_toml_comment_says():
    lines = commented(Settings()).splitlines()
    told = {}
    for line in lines:
        if line.startswith("["):
            section = line[1:-1]
        elif line:
            key, _, text = line.partition("  # ")
            told[f"{section}__{key.partition(' = ')[0]}"] = text
    assert told == {key: leaf.help for key, leaf in SETTINGS.items()}
    assert all(leaf.item.metadata["doc"] for leaf in (*SETTINGS.values(), *OPTIONS.values()))


@pytest.mark.parametrize(("name", "key"), POPULATION.items())
def test_a_flag_of_population_says_what_its_setting_says(name, key):
    option, leaf = option_of("population", name), SETTINGS[key]
    assert option.opts == [f"--{name}"]
    assert option.help.removesuffix("; repeatable") == leaf.help
    assert option.show_default is False  # a task has defaults of its own
    assert option.default is None


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_a_flag_of_serve_that_says_what_it_says(name):
    option, leaf = option_of("serve", name), OPTIONS[name]
    assert option.opts == [f"--{name.replace('_', '-')}"]
    text, _, shown = option.help.removesuffix("; repeatable").partition("; default: ")
    assert text == leaf.help
    assert shown == leaf.shown
    if shown:  # what help calls the default is the default
        assert leaf.kind(leaf.read(shown)) == leaf.item.default
    else:
        assert leaf.item.default in ("", (), False)


def test_help_shows_meaning_range_and_default():
    wide = {"COLUMNS": "250", "TERMINAL_WIDTH": "250"}
    said = CliRunner().invoke(main.app, ["serve", "--help"], env=wide).output
    for leaf in OPTIONS.values():
        assert leaf.help in said
    assert re.search(r"--drain +TIME +time for answers .* \[0, 3600\]; default: 10s", said)
    assert "default: (" not in said
    said = CliRunner().invoke(main.app, ["population", "--help"], env=wide).output
    assert "number of checkpoints [2, 100000]" in said
    assert "default: 64" not in said  # digits have another number
    assert "(64)" not in said


@pytest.mark.parametrize(
    ("command", "flag", "value", "expected"),
    [
        ("population", "--workers", "5000", "workers must lie in [0, 1024], not 5000"),
        ("population", "--members", "1", "members must lie in [2, 100000], not 1"),
        ("population", "--eps", "-1", "eps must lie in [0, 1e+06], not -1.0"),
        ("population", "--eps", "nan", "eps must lie in"),
        ("serve", "--port", "65536", "port must lie in [0, 65535], not 65536"),
    ],
)
def test_a_number_out_of_range_is_a_usage_error(tmp_path, command, flag, value, expected):
    answer = CliRunner().invoke(main.app, [command, str(tmp_path / "v"), flag, value])
    assert answer.exit_code == 2
    assert f"Invalid value for '{flag}': {expected}" in answer.output
    assert not (tmp_path / "v").exists()


def test_what_serve_is_given_becomes_its_options(monkeypatch, tmp_path):
    given = {}

    def reached(path):
        raise SettingsError("far enough")

    from g2d.cli import serve

    made = types.SimpleNamespace(options=lambda **values: given.update(values) or Options(**values))
    monkeypatch.setattr(serve, "Options", made.options)
    monkeypatch.setattr(serve, "vault_settings", reached)
    monkeypatch.setattr(serve, "leave_on_sigterm", lambda: None)
    arguments = [
        "serve", str(tmp_path), "--every", "5m", "--drain", "500ms", "--patience", "1h",
        "--max-waiting", "7", "--allow-host", "a.example", "--allow-host", "b.example,c.example",
        "--rate", "2.5", "--port", "0",
    ]  # fmt: skip
    answer = CliRunner().invoke(main.app, arguments)
    assert "far enough" in answer.output
    assert given == {
        "every": 300.0, "drain": 0.5, "patience": 3600.0, "max_waiting": 7, "rate": 2.5, "port": 0,
        "allow_host": ("a.example", "b.example", "c.example"),
    }  # fmt: skip


@pytest.mark.parametrize("value", [0.0, 0.5, 0.001, 1.0, 10.0, 90.0, 900.0, 3600.0, 86400.0, 1.5])
def test_a_span_reads_back(value):
    assert seconds(span(value)) == value


# -- --set -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_can_be_set(key):
    leaf = SETTINGS[key]
    name, default = key.replace("__", ".", 1), leaf.item.default
    assert flags.read_changes([f"{name}={as_toml(default)}"]) == {key: default}
    assert (
        Settings().override(**flags.read_changes([f" {name} = {as_toml(default)}"])) == Settings()
    )
    if "range" in leaf.item.metadata:
        low, _ = leaf.item.metadata["range"]
        with pytest.raises(SettingsError, match=f"{leaf.item.name} must lie in"):
            Settings().override(**flags.read_changes([f"{name}={low - 1}"]))


def test_a_text_needs_no_quotes_and_a_list_no_brackets():
    changes = ["population.recipe=forks", "harden.recipe=l2,clamp", "task.name=my:task"]
    made = Settings().override(**flags.read_changes(changes))
    assert made.population.recipe == "forks"
    assert made.harden.recipe == ("l2", "clamp")
    assert made.task.name == "my:task"
    changes = ['population.recipe="forks"', 'harden.recipe=["l2"]', "harden.norm=2"]
    made = Settings().override(**flags.read_changes(changes))
    assert (made.population.recipe, made.harden.recipe, made.harden.norm) == ("forks", ("l2",), "2")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["population.member=4"], "Did you mean 'population.members'?"),
        (["zzz=4"], "See `g2d settings --defaults`"),
        (["population.members"], "write it as --set section.key=value"),
        (["population.members=4", "population.members=5"], "population.members twice"),
        (["population.members=many"], "members must be int, not 'many'"),
        (["population.recipe=repeled"], "Did you mean 'repelled'?"),
        (["gates.distance=nan"], "distance must lie in"),
    ],
)
def test_a_bad_change_is_explained(tmp_path, changes, expected):
    arguments = [part for change in changes for part in ("--set", change)]
    answer = CliRunner().invoke(main.app, ["population", str(tmp_path / "v"), *arguments])
    assert answer.exit_code == 1
    assert expected in " ".join(answer.stderr.split())
    assert not (tmp_path / "v").exists()


def test_a_flag_and_a_change_of_the_same_setting_are_refused(tmp_path):
    arguments = ["population", str(tmp_path / "v"), "--members", "3", "--set"]
    answer = CliRunner().invoke(main.app, [*arguments, "population.members=4"])
    assert "population.members is given by its own flag and by --set" in answer.stderr
    arguments = ["population", str(tmp_path / "v"), "--from-checkpoints", str(tmp_path), "--set"]
    answer = CliRunner().invoke(main.app, [*arguments, "population.members=4"])
    assert answer.exit_code == 2
    assert "drop --members" in answer.output
