"""The demo end to end, and the parts of it that need no training."""

import json

import pytest

from g2d.cli import demo
from g2d.errors import GenerationError


class Refusing:
    """A defence whose first `refusals` rotations find no candidate."""

    def __init__(self, refusals):
        self.refusals, self.seeds = refusals, []

    def generate(self, count, *, seed):
        self.seeds.append(seed)
        if len(self.seeds) <= self.refusals:
            raise GenerationError("no candidate passed")

    def snapshot(self):
        return "snapshot"


def test_a_rotation_is_tried_again_with_other_draws():
    defence = Refusing(2)
    assert demo._Seeded(defence, 4, demo.silent).advance() == "snapshot"
    assert len(set(defence.seeds)) == 3
    again = Refusing(2)
    demo._Seeded(again, 4, demo.silent).advance()
    assert again.seeds == defence.seeds


def test_a_rotation_that_never_passes_says_so():
    with pytest.raises(GenerationError, match="no candidate"):
        demo._Seeded(Refusing(99), 0, demo.silent).advance()


def test_its_vault_is_signed_and_sealed_from_its_first_file_on(tmp_path):
    for _ in range(2):  # a run that goes on finds its keys
        with demo._create(tmp_path / "vault", 0) as defence:
            assert defence.vault.sealing.record.state == "sealed"
            assert defence.settings.signing.key == str(tmp_path / "keys" / "signing.key")
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == [
        "custodian.key", "signing.key", "signing.pub",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_whole_demo(tmp_path):
    """The command's own, with fewer of its rotations and members, each made like the others."""
    stages = []
    fewer = {"rotations": 3, "members": 12}
    summary = demo.run(tmp_path, progress=lambda stage, done, total: stages.append(stage), **fewer)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(row["what"] in page for row in summary["table"])
    assert [g["number"] for g in summary["generations"]] == list(range(1, 5))
    assert len({tuple(row) for row in summary["table"]}) == 1
    wanted = {"population", "autoencoder", "diffusion", "rotations", "networks", "attacks"}
    assert wanted <= set(stages)
    assert {row["status"] for row in summary["red_team"]} <= {"ok", "not measured"}

    n = summary["numbers"]
    assert n["permutation_asr"] == pytest.approx(n["frozen_asr"], abs=0.01)
    # The demo's members are hardened: the frozen model gains from that too.
    assert n["stale_single_asr"] < n["undefended_asr"] - 0.5
    assert n["stale_single_asr"] < n["frozen_asr"] - 0.1
    assert n["stale_single_asr"] < n["white_box_asr"]
    assert n["clean_accuracy_worst"] > n["frozen_clean_accuracy"] - 0.05

    # The second run finds all of it done and measures the same.
    again = demo.run(tmp_path, **fewer)
    assert again["digests"] == summary["digests"]
    volatile = ("rotation_cpu_seconds", "retrain_cpu_seconds")
    assert {k: v for k, v in again["numbers"].items() if k not in volatile} == {
        k: v for k, v in n.items() if k not in volatile
    }
