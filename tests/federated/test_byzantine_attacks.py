"""What malicious clients send: within the papers' own bounds, and tuned to the rule; no torch."""

from __future__ import annotations

import numpy as np
import pytest

from g2d.attacks.byzantine import ATTACKS, Seen, find_attack, min_max, replaced, sign_flip
from g2d.errors import SettingsError
from g2d.training.federated import rules

CRAFTED = [name for name, attack in ATTACKS.items() if attack.craft]


def honest(n=16, p=30, seed=0):
    return np.random.default_rng(seed).normal(0.5, 0.3, (n, p)).astype(np.float32)


@pytest.mark.parametrize("name", CRAFTED)
@pytest.mark.parametrize(
    "rule", [rules.mean, rules.median, lambda rows: rules.trimmed_mean(rows, 4)]
)
def test_every_attack_proposes_what_moves_the_aggregate_and_alike_each_time(name, rule):
    X, craft = honest(), ATTACKS[name].craft
    seen = Seen(X, 4, rule)
    sent = craft(seen)
    assert (sent.shape, sent.dtype) == ((30,), np.float32)
    assert np.isfinite(sent).all()
    np.testing.assert_array_equal(sent, craft(Seen(X, 4, rule)))
    assert seen.moved(sent) > 0.05


def test_an_attack_knows_its_rule():
    """Against the mean the largest strength goes farthest; one that drops outliers is deaf."""
    X = honest()

    def deaf(rows):
        lengths = rules.norms(rows)
        return rules.mean(rows[lengths <= 1.5 * np.median(lengths)])

    loud, quiet = sign_flip(Seen(X, 4, rules.mean)), sign_flip(Seen(X, 4, deaf))
    assert rules.norms(loud[None])[0] > 4 * rules.norms(quiet[None])[0]
    assert Seen(X, 4, deaf).moved(quiet) > Seen(X, 4, deaf).moved(loud)


@pytest.mark.parametrize("rule", [rules.median, lambda rows: rules.multi_krum(rows, 4)])
def test_alie_pushes_the_same_way_in_every_round(rule):
    """What turns round from round to round cancels itself, and a rule looks better than it is."""
    pushed = []
    for seed in range(12):
        X = honest(seed=seed) - 0.5
        sent = ATTACKS["alie"].craft(Seen(X, 4, rule))
        pushed.append(float((sent - X.mean(0)).sum()))
    assert len({value > 0 for value in pushed}) == 1


def test_min_max_lies_no_farther_out_than_honest_updates_do_from_each_other():
    X = honest()
    sent = min_max(Seen(X, 4, rules.mean))
    assert rules.norms(X - sent).max() <= rules.distances(X).max() * (1 + 1e-5)
    assert min_max(Seen(X[:1], 1, rules.mean)).shape == (30,)


def test_model_replacement_replaces_the_mean_and_hides_from_a_rule_that_looks_at_norms():
    X, wanted = 0.01 * honest(), np.linspace(-1, 1, 30).astype(np.float32)

    def near(aggregate):
        return -float(np.square(aggregate - wanted).sum())

    sent = replaced(wanted, 20, 4, Seen(X, 4, rules.mean), near)
    rows = np.concatenate([X, np.tile(sent, (4, 1))])
    assert np.linalg.norm(rules.mean(rows) - wanted) < 0.05 * np.linalg.norm(wanted)

    def strict(rows):
        return rules.mean(rows[rules.norms(rows) <= 2 * np.median(rules.norms(rows))])

    hidden = replaced(wanted, 20, 4, Seen(X, 4, strict), near)
    assert rules.norms(hidden[None])[0] <= rules.norms(X).max() * 1.0001


def test_there_is_no_other_attack():
    with pytest.raises(SettingsError, match="Did you mean 'alie'"):
        find_attack("alia")
