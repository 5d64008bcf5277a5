"""The command line as a user meets it: the loop from a population to a live generation."""

import re
import shutil
import sys
import types
from pathlib import Path

import g2d
from commands import SMALL, STEPS, fail, invoke, settings_file, succeed, write_settings
from g2d.vault.vault import Vault

# -- the loop ------------------------------------------------------------------------------------


def test_population_makes_a_vault_and_goes_on_with_it(tmp_path, serial):
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


def test_population_takes_a_base_and_recipes(tmp_path, tiny_vault, tiny_settings, serial):
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
