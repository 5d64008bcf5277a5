"""A vault that 0.1.0 made still opens, under the settings' new names, and goes on.

`tests/data/vault-0.1.0` was made by the code of that release: three members, a generator, the base
and two generations, of which the last is kept and not live. Five of its settings have another name
now, and none of the five has its default.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import g2d
from g2d.cli import main as cli
from g2d.cli.shared import prepare
from g2d.core.engine import SerialEngine
from g2d.defence.members import identity_of
from g2d.errors import SettingsError
from g2d.generator import Generator
from g2d.settings import Settings
from g2d.training.population import fingerprint
from g2d.vault.vault import Vault
from places import DATA
from vaults import private

OLD = DATA / "vault-0.1.0"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return private(Path(shutil.copytree(OLD, tmp_path / "vault")))


def no_progress(*_: object) -> None:
    raise AssertionError("something was trained or fitted anew")


def test_its_settings_are_read_under_their_new_names(old):
    with g2d.Defence.open(old, write=False) as defence:
        s = defence.settings
    assert s.population.light_eps == 0.25
    assert s.autoencoder.newest_share == 0.75
    assert s.guidance.newest_weight == 3.0
    assert s.guidance.robust_weight == 0.1
    assert s.diffusion.distance_weight == 0.01
    text = (old / "task.toml").read_text()
    assert "harden = 0.25" in text, "reading alone writes nothing"
    with pytest.raises(SettingsError, match="'harden' is called 'light_eps' now"):
        Settings.from_toml(text)


def test_a_task_of_the_users_own_may_bring_former_names(old, tmp_path, digits):
    own = replace(digits, name="own", settings={"guidance": {"robust": 0.5, "newest": 2.0}})
    with g2d.Defence.create(own, tmp_path / "new") as defence:
        assert defence.settings.guidance.robust_weight == 0.5
        assert defence.settings.guidance.newest_weight == 2.0


def test_a_file_is_laid_over_a_task_that_brings_former_names(tmp_path, monkeypatch):
    (tmp_path / "own_old.py").write_text(
        "from dataclasses import replace\nimport g2d\n\ndef make(**_):\n"
        "    own = {'guidance': {'robust': 0.5, 'mu': 3.0}}\n"
        "    return replace(g2d.load_task('digits'), settings=own)\n"
    )
    (tmp_path / "g2d.toml").write_text("[guidance]\nrobust_weight = 0.7\n")
    monkeypatch.syspath_prepend(tmp_path)
    defence, _ = prepare(tmp_path / "v", tmp_path / "g2d.toml", {"task__name": "own_old:make"})
    with defence:
        assert defence.settings.guidance.robust_weight == 0.7
        assert defence.settings.guidance.mu == 3.0


def test_what_a_manifest_says_of_its_settings_is_what_it_said(old):
    with g2d.Defence.open(old, write=False) as defence:
        said = defence.generation(3).manifest["settings"]
        assert hashlib.sha256(defence.settings.to_toml(former=True).encode()).hexdigest() == said


def test_show_and_settings_print_it(old, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(cli.app, ["show", str(old)])
    assert shown.exit_code == 0, shown.output
    assert "digits" in shown.output
    printed = CliRunner().invoke(cli.app, ["settings", str(old)])
    assert printed.exit_code == 0, printed.output
    assert "light_eps = 0.25" in printed.output
    assert "harden = " not in printed.output


def test_every_file_is_what_its_ledger_says(old):
    with Vault.open(old) as vault:
        read = [
            (entry.files[name], vault.read(entry, name))
            for kind in ("base", "early", "member", "generator")
            for entry in vault.entries(kind)
            for name in entry.files
        ]
        for record in vault.generations():
            read += [(record.files[n], vault.read_generation(record.number, n))
                     for n in record.files]  # fmt: skip
    assert len(read) == 2 * 5 + 1 + 2 * 3
    assert all(hashlib.sha256(data).hexdigest() == digest for digest, data in read)


def test_its_digests_are_what_they_were(old):
    with g2d.Defence.open(old, write=False) as defence:
        s, vault = defence.settings, defence.vault
        kept = vault.entry("generator")
        assert identity_of(vault.entries("member"), s) == kept.info["identity"]
        made = fingerprint(s.population, s.harden, None)
        assert made == vault.entry("base").info["settings"]
        data = vault.read(kept)
        assert Generator.from_bytes(data).to_bytes() == data


def test_nothing_is_trained_or_fitted_anew_and_new_names_are_written(old):
    with g2d.Defence.create("digits", old, None) as defence:
        defence.populate(SerialEngine())
        defence.fit(no_progress)
        with pytest.raises(AssertionError, match="anew"):
            defence.fit(no_progress, again=True)
    text = (old / "task.toml").read_text()
    assert "light_eps = 0.25" in text
    assert "harden = " not in text
    assert Settings.from_toml(text).autoencoder.newest_share == 0.75


def test_its_kept_generation_becomes_live_and_the_next_is_made(old):
    with g2d.Defence.open(old) as defence:
        assert defence.vault.live() == 2
        defence.activate(3)
        (made,) = defence.generate(1, seed=0)
        assert made.number == 4
        assert defence.vault.live() == 4
        assert made.manifest["exposed"] == [1, 2, 3]
