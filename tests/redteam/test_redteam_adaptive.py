"""Whoever owns the generator: averaging over draws, and what its rows say."""

import pytest
import torch

from g2d.core.engine import SerialEngine
from g2d.errors import SettingsError
from g2d.redteam import attack
from g2d.redteam.rows import Row
from g2d.redteam.scoring import share

pytest.importorskip("art")
pytest.importorskip("pyautoattack")


def test_adaptive_draws_fold_into_the_best(tmp_path):
    from g2d.redteam.threats.adaptive.threat import merge

    def row(draws, wins, attacker="samples"):
        extra = {"attacker": attacker, "draws": draws}
        return Row("adaptive", "k", "t", "generated", "EOT", share(wins, 100), extra=extra)

    folded = merge([row(1, 10), row(10, 30), row(50, 31), row(20, 9, "proposals")])
    assert len(folded) == 2
    assert folded[0].value.value == 0.31
    assert [point["draws"] for point in folded[0].extra["curve"]] == [1, 10, 50]
    assert "no longer help, within the interval" in folded[0].note
    assert "still rising" in merge([row(1, 10), row(10, 90)])[0].note


def test_adaptive_rows_say_where_knowing_more_wins_less():
    from g2d.redteam.threats.adaptive.threat import merge

    def row(attacker, draws, wins):
        extra = {"attacker": attacker, "draws": draws}
        value = share(wins, 100)
        return Row("adaptive", "k", "t", "generated", "EOT", value, note="n", extra=extra)

    samples, proposals, everything, recipe = merge(
        [row("samples", 50, 40), row("proposals", 16, 38), row("everything", 60, 10),
         row("recipe", 3, 1)]
    )  # fmt: skip
    assert "knows more" not in samples.note
    assert proposals.note.startswith("n; knows more than whoever owns the generator (40.0 %)")
    assert proposals.note.endswith("wins less (within the interval): averages over fewer networks")
    assert everything.note.endswith("yet wins less: averaging over more networks weakens each")
    assert recipe.note == "n"


@pytest.mark.slow
def test_adaptive_runs_on_a_tiny_vault(vault):
    results = attack(vault, threats=["adaptive"], quick=True, engine=SerialEngine())
    by = {(row["extra"].get("attacker"), row["target"]): row for row in results["rows"]}
    assert by["samples", "generated"]["scored"] == results["chains"]["draws"]["networks"]
    assert by["own generator", "generated"]["status"] == "ok"
    losses = {row["attack"].partition("steps of ")[2] for row in results["rows"]
              if row["extra"].get("attacker") == "everything"}  # fmt: skip
    assert losses == {"4, cross-entropy loss", "4, probability loss"}
    assert "known networks, 1 of them" in by["recipe", "frozen"]["attack"]
    assert by["recipe", "frozen"]["gradient_steps"] == 10
    # A permutation is the same function: what works on the frozen model works on it.
    frozen, permuted = by["recipe", "frozen"], by["recipe", "permuted"]
    assert abs(frozen["value"]["value"] - permuted["value"]["value"]) < 0.02


def test_eot_averages_over_draws():
    from g2d.attacks.eot import eot_pgd

    x, y = torch.full((4, 2), 0.5), torch.zeros(4, dtype=torch.long)
    # Two linear networks that disagree on the first coordinate and agree on the second.
    nets = [
        lambda z, s=s: torch.stack([s * 3 * z[:, 0] + z[:, 1], 0 * z[:, 0]], 1) for s in (1, -1)
    ]
    made = eot_pgd(
        lambda: nets, x, y, eps=0.1, steps=20, generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(made[:, 1], torch.tensor(0.4), atol=1e-3)
    with pytest.raises(SettingsError, match="eps"):
        eot_pgd(lambda: nets, x, y, eps=2, steps=1, generator=torch.Generator())
    with pytest.raises(SettingsError, match="one step"):
        eot_pgd(lambda: nets, x, y, eps=0.1, steps=0, generator=torch.Generator())
    with pytest.raises(SettingsError, match="loss"):
        eot_pgd(lambda: nets, x, y, eps=0.1, steps=1, generator=torch.Generator(), loss="hinge")


def test_eot_maximises_the_probability_of_an_error():
    from g2d.attacks.eot import eot_pgd

    # One network errs already, and its cross-entropy is the steeper one; the other can be made to.
    nets = [
        lambda z, a=a, b=b: torch.stack([a * z[:, 0] + b, 0 * z[:, 0]], 1)
        for a, b in ((30, -40), (-10, 5.5))
    ]
    x, y, wins = torch.full((4, 2), 0.5), torch.zeros(4, dtype=torch.long), {}
    for loss in ("cross-entropy", "probability"):
        made = eot_pgd(
            lambda: nets, x, y, eps=0.1, steps=20, generator=torch.Generator().manual_seed(0),
            loss=loss,
        )  # fmt: skip
        wins[loss] = sum(float((net(made)[:, 0] < 0).float().mean()) for net in nets)
    assert wins == {"cross-entropy": 1, "probability": 2}
