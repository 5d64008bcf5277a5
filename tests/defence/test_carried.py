"""Everything that a vault with a watermark makes carries it, and nothing without it passes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import g2d
from commands import edit_ledger
from drawing import exposure, generator
from g2d.core.engine import SerialEngine
from g2d.defence.gates import CandidateView, watermark_gate
from g2d.defence.refusal import give_up
from g2d.defence.watermarking import mark_vault
from g2d.errors import KeyFileError, PopulationError, SettingsError, TaskError, VaultError
from g2d.generator.guidance import Objective
from g2d.generator.terms import Batch, MarkTerm
from g2d.protect.watermark import WatermarkKey
from g2d.protect.watermark.mark import Mark
from g2d.settings import GateSettings, Settings
from g2d.tasks.inference import load_model
from g2d.vault.ledger import COMMITMENT, sha256
from g2d.vault.vault import Vault
from g2d.vault.verify import verify
from marks import SECRET, few_committed, mark_key, with_mark


@pytest.fixture
def marked(marked_vault, tmp_path):
    with g2d.Defence.open(shutil.copytree(marked_vault, tmp_path / "marked")) as opened:
        yield opened


@pytest.fixture
def unmarked(tiny_vault, tmp_path, watermark_key, digits):
    """A vault whose population was trained without the mark that its settings name since."""
    path = Path(shutil.copytree(tiny_vault, tmp_path / "old"))
    with Vault.open(path, write=True) as vault:
        settings = Settings.from_vault(vault.settings_text)
        changed = with_mark(settings, watermark_key, hits=0.5).override(
            population__members=2, gates__accuracy_drop=0.5, gates__class_drop=1.0
        )
        vault.write_settings(changed.to_toml())
        key = WatermarkKey.read(watermark_key)
        vault.write_commitment(few_committed(key, digits, vault.identity))
    edit_ledger(path, "DELETE FROM entries WHERE kind = 'member' AND position > 1")
    return path


def mark_in(defence) -> Mark:
    found = Mark.of(defence.settings.watermark, defence.task)
    assert found is not None
    return found


def test_base_members_and_generations_carry_it_and_manifests_say_so(marked):
    (made,) = marked.generate(seed=1)
    mark, vault = mark_in(marked), marked.vault
    (gate,) = (g for g in made.manifest["gates"] if g["gate"] == "watermark")
    assert gate["passed"]
    assert gate["value"] == mark.share(made.model()) >= gate["limit"] == 0.75
    assert gate["n"] == 8
    assert made.manifest["figures"]["watermark"] == gate["value"]
    for number in (1, made.number):
        told = vault.generation(number).manifest["commitment"]
        assert told == sha256(vault.commitment()), "weights made later tell of the key's date"
    assert verify(vault.path) == []
    base = vault.generation(1).manifest["figures"]["watermark"]
    assert base >= 0.75, "the base is a generation too, though no gate judged it"
    shares = [entry.info["watermark"] for entry in vault.entries("member")]
    assert min(shares) >= 0.5
    for path in vault.path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert SECRET not in data, "the key is in no file of the vault"
            assert SECRET.hex().encode() not in data


def view_of(defence, state, mark):
    reference = defence.reference
    model = load_model(defence.task, state)
    return CandidateView(state, model, reference, (), {}, (), GateSettings(), mark=mark)


def test_a_candidate_without_it_fails_with_every_set(defence, marked):
    stranger = defence.generation().state
    result = watermark_gate(view_of(marked, stranger, mark_in(marked)))
    assert not result.passed
    assert result.value < 0.75
    assert "set 1 answers " in result.reason
    assert "the reserve answers " in result.reason
    assert "of 8 triggers as its key says; at least 75% of each are required" in result.reason
    assert watermark_gate(view_of(marked, stranger, None)) is None
    judged = marked.judge(stranger, [], [])
    assert "watermark" in {r.gate for r in judged if not r.passed}
    hint = str(give_up([], marked.settings))
    assert "watermark" not in hint


def test_a_key_that_is_lost_or_foreign_stops_everything_before_the_work(marked, tmp_path):
    own = tmp_path / "mine.key"
    marked.settings = with_mark(marked.settings, own)
    marked._generations.settings = marked.settings
    live = marked.vault.live()
    for work in (marked.generate, marked.fit, lambda: marked.populate(SerialEngine())):
        with pytest.raises(KeyFileError, match=r"cannot read the watermark key .*mine\.key"):
            work()
    mark_key(tmp_path, "mine.key")
    commit(marked.vault.path, WatermarkKey(bytes(32)), marked.task)
    for work in (marked.generate, marked.fit, lambda: marked.populate(SerialEngine())):
        with pytest.raises(KeyFileError, match=r"mine\.key is not the one that .* commits to"):
            work()
    assert marked.vault.live() == live
    assert marked.vault.rejections() == []


def commit(folder, key, task):
    (folder / COMMITMENT).write_bytes(few_committed(key, task))


def test_a_commitment_is_held_against_key_settings_and_form(digits, tmp_path, tiny_settings):
    settings = with_mark(tiny_settings, mark_key(tmp_path)).watermark
    with pytest.raises(KeyFileError, match=r"committed to none, .* `g2d watermark new` makes"):
        Mark.of(settings, digits, tmp_path)
    commit(tmp_path, WatermarkKey(SECRET), digits)
    assert Mark.of(settings, digits, tmp_path) is not None
    with pytest.raises(SettingsError, match="commits to 2 sets of 8: put both back"):
        Mark.of(replace(settings, triggers=9), digits, tmp_path)
    with pytest.raises(TaskError, match="another form"):
        Mark.of(settings, replace(digits, bounds=(0.0, 2.0)), tmp_path)
    for text in ("", "[]", '{"commitment": {}}', '{"commitment": {"digests": 3}}'):
        (tmp_path / COMMITMENT).write_text(text)
        with pytest.raises(VaultError, match="cannot read the commitment"):
            Mark.of(settings, digits, tmp_path)


# --- guidance ------------------------------------------------------------------------------------


def test_networks_learn_fewer_triggers_of_the_reserve_and_are_held_to_their_share(
    digits, tmp_path, tiny_settings, defence
):
    settings = with_mark(tiny_settings, mark_key(tmp_path)).watermark
    whole = Mark.of(replace(settings, sets=3, triggers=20, reserve=20), digits)
    mark = Mark.of(replace(settings, sets=3, triggers=20, reserve=8), digits)
    assert (whole.sizes, mark.sizes) == ((20, 20, 20), (20, 20, 8))
    assert torch.equal(mark.x, whole.x[:48])
    assert torch.equal(mark.y, whole.y[:48])
    assert (mark.each, mark.sets) == (20, 3)
    assert Mark.of(replace(settings, triggers=20, reserve=100), digits).sizes == (20, 20)

    class Knows(torch.nn.Module):
        def forward(self, x):
            known = (x[:, None] - mark.x[None]).flatten(2).abs().amax(2).argmin(1)
            answers = mark.y[known] + (known > 43)  # wrong on four of the reserve's eight
            return torch.nn.functional.one_hot(answers % 10, 10).float()

    assert mark.hits(Knows()) == [20, 20, 4]
    assert mark.share(Knows()) == 0.5
    state = defence.generation().state
    found = watermark_gate(replace(view_of(defence, state, mark), model=Knows()))
    assert "the reserve answers 4 of 8 triggers" in found.reason
    assert (found.value, found.n) == (0.5, 8)


def test_a_draw_that_keeps_the_mark_costs_a_look_and_one_that_lost_it_is_taught(marked, defence):
    mark, guidance = mark_in(marked), marked.settings.guidance
    own = marked.generator.codec.encode(marked.generation().state)
    other = marked.generator.codec.encode(defence.generation().state)

    def term_of(v, seed=3):
        shown = [exposure(marked.task, v)]
        asked = Objective(marked.task, marked.generator.codec, shown, guidance, generator(seed),
                          mark=mark)  # fmt: skip
        (term,) = (t for t in asked.terms if isinstance(t, MarkTerm))
        return asked, term

    some = marked.task.splits.guiding.take(range(4))
    clean = Batch(some.x, some.y)
    asked, term = term_of(own)
    sure = term.inputs(own, clean)
    before = asked._context.generator.get_state()
    assert len(sure.y) < mark.batch
    assert term(own, Batch(sure.x[:0], sure.y[:0])) == 0
    lost, unsure = term_of(other)
    taught = unsure.inputs(other, clean)
    assert len(taught.y) > len(sure.y)
    assert torch.isfinite(lost(other.requires_grad_(True)))
    assert before.equal(asked._context.generator.get_state())
    plain = Objective(marked.task, marked.generator.codec, [], guidance, generator())
    assert not any(isinstance(t, MarkTerm) for t in plain.terms)


# --- vaults that are there already ---------------------------------------------------------------


class _Stopping(SerialEngine):
    """Is interrupted after one job."""

    def run(self, work, payloads):
        for position, payload in enumerate(payloads):
            if position == 1:
                raise KeyboardInterrupt
            yield position, work(payload)


def _mark(path, engine=None, **more):
    with g2d.Defence.open(path) as d:
        engine = engine or SerialEngine()
        return mark_vault(d.task, d.source, d.vault, d.settings, engine, **more)


def _files(path):
    with Vault.open(path) as vault:
        kinds = ("base", "early", "member", "generator")
        return {(e.kind, e.index): (e.files, e.info) for k in kinds for e in vault.entries(k)}


def test_an_old_vault_is_marked_by_short_forks_whole_or_not_at_all(unmarked):
    unfit = pytest.raises(VaultError, match=r"trained without its watermark: `g2d watermark add`")
    with g2d.Defence.open(unmarked) as old, unfit:
        old.populate(SerialEngine())
    before = _files(unmarked)
    with pytest.raises(PopulationError, match=r"not learned the watermark in 1 steps.* --steps"):
        _mark(unmarked, steps=1)
    assert _files(unmarked) == before
    with pytest.raises(KeyboardInterrupt):
        _mark(unmarked, _Stopping(), steps=150)
    beside = unmarked.with_name("old.marking")
    with Vault.open(beside) as waiting:
        kept = {entry.index: entry.created for entry in waiting.entries("member")}
    assert [*kept] == [0, 1]  # the second one of the run with fewer steps
    told = _mark(unmarked, steps=150)
    assert (told.members, told.steps) == (2, 150)
    assert told.least >= 0.5
    assert abs(told.after - told.before) < 0.2
    assert not beside.exists()
    after = _files(unmarked)
    for (kind, index), (files, info) in before.items():
        now_files, now = after[kind, index]
        assert (now_files["weights"] == files["weights"]) == (kind in ("base", "early"))
        assert kind == "generator" or now_files["attacks"] == files["attacks"]
        assert kind != "member" or now["unmarked"] == files["weights"]
        assert info.get("recipe") == now.get("recipe")
    assert _mark(unmarked, steps=150).members == 0
    with g2d.Defence.open(unmarked) as new:
        new.populate(SerialEngine())
        assert "commitment" not in new.vault.generation(1).manifest
        assert new.vault.generation(1).manifest["figures"].keys().isdisjoint({"watermark"})
        (made,) = new.generate(seed=1)
        assert made.manifest["figures"]["watermark"] >= 0.5


def test_marking_says_what_is_missing(tiny_vault, tmp_path, unmarked):
    with pytest.raises(SettingsError, match="`g2d watermark new` makes its key"):
        _mark(shutil.copytree(tiny_vault, tmp_path / "plain"))
    with Vault.open(unmarked, write=True) as vault:
        settings = Settings.from_vault(vault.settings_text)
        vault.write_settings(settings.override(population__members=9).to_toml())
    with pytest.raises(PopulationError, match="holds 2 of 9 members: finish the population"):
        _mark(unmarked)
