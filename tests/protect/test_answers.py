"""What answers tell: the label always stays, AAA's margins are the paper's, votes are fair."""

import numpy as np
import pytest

from g2d.protect.answers import answers_of, attack_the_attacker, combined, rounded
from g2d.settings import ServeSettings

DESIGNS = ("linear", "sine")


def logits(n: int = 400, classes: int = 10, scale: float = 4.0) -> np.ndarray:
    return (scale * np.random.default_rng(0).standard_normal((n, classes))).astype(np.float32)


def margin(scores: np.ndarray) -> np.ndarray:
    top = np.sort(scores.astype(np.float64), axis=1)
    return top[:, -1] - top[:, -2]


def confidence(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return 1.0 / shifted.sum(1)


@pytest.mark.parametrize("answers", ["rounded", "label", "aaa"])
def test_every_answer_keeps_the_label(answers):
    made = answers_of(ServeSettings(answers=answers, decimals=0))
    assert made is not None
    for z in (logits(), logits(classes=2), logits(scale=0.01), logits(scale=1e4), logits(n=1)):
        told = made(z)
        label = told if answers == "label" else told.argmax(1)
        assert (label == z.argmax(1)).all()
        assert np.isfinite(told).all()
        assert told.dtype == (np.int64 if answers == "label" else np.float32)


def test_scores_are_told_as_they_are():
    assert answers_of(ServeSettings()) is None


@pytest.mark.parametrize("design", DESIGNS)
def test_degenerate_scores_stay_finite(design):
    for z in ([[1.0, 1.0, 1.0]], [[0.0, -1e30, 3e38]], [[5.0]], [[-3.0, -3.0]]):
        told = attack_the_attacker(np.float32(z), design)
        assert np.isfinite(told).all()
        assert told.argmax(1) == np.argmax(z)


def wanted(m: np.ndarray, design: str) -> np.ndarray:
    """Equations of Chen et al. 2022, written anew."""
    tau, alpha = {"linear": (4.0, 1.0), "sine": (6.0, 0.7)}[design]
    a = (np.floor(m / tau) + 0.5) * tau
    if design == "linear":
        return a - alpha * (m - a)
    return m - alpha * tau * np.sin(np.pi * (1 - 2 / tau * (m - a)))


@pytest.mark.parametrize("design", DESIGNS)
def test_aaa_has_the_papers_margin_where_the_confidence_allows_it(design):
    z = np.zeros((200, 10), np.float32)
    z[:, 0] = np.linspace(0.01, 3.99, 200)
    told = attack_the_attacker(z, design)
    target = np.maximum(wanted(margin(z), design), 1e-3)
    both = confidence(z) >= 1 / (1 + 9 * np.exp(-target))
    reach = both & (confidence(z) <= 1 / (1 + np.exp(-target)))
    assert np.allclose(margin(told)[reach], target[reach], atol=1e-4)
    assert np.allclose(confidence(told)[reach], confidence(z)[reach], atol=1e-4)
    assert reach.sum() > 20


def test_a_search_that_follows_the_margin_is_misled():
    """In most of each period the margin told rises as the network's own falls."""
    z = np.zeros((300, 10), np.float32)
    z[:, 0] = np.linspace(4.1, 7.9, 300)  # one period of the linear design
    told = margin(attack_the_attacker(z, "linear"))
    assert (np.diff(told) < 0).mean() > 0.9


@pytest.mark.parametrize("design", DESIGNS)
def test_aaa_is_at_least_as_near_to_the_papers_aim_as_the_scores_are(design):
    z = logits()
    told = attack_the_attacker(z, design)
    target, p = wanted(margin(z), design), confidence(z.astype(np.float64))

    def aim(scores: np.ndarray) -> np.ndarray:
        return np.abs(margin(scores) - target) + 5 * np.abs(confidence(scores) - p)

    assert (aim(told.astype(np.float64)) <= aim(z.astype(np.float64)) + 1e-2).all()
    assert aim(told).mean() < 0.7 * aim(z).mean()


def test_rounding_never_ties_the_label_away():
    told = rounded(np.float32([[0.501, 0.504, 0.1], [2.0, -0.001, 1.0]]), 2)
    assert told[0].tolist() == pytest.approx([0.5, 0.51, 0.1])
    assert told[1].tolist() == [2.0, 0.0, 1.0]
    assert not np.signbit(told[1, 1])


def test_several_answers_are_the_mean_softmax_or_the_majority():
    a, b, c = np.float32([[1, 0, 0]]), np.float32([[2, 0, 0]]), np.float32([[0, 0, 50]])
    assert combined([a]) is a
    mean = np.exp(combined([a, b, c]))
    assert mean.sum() == pytest.approx(1.0)
    assert combined([a, b, c], labels=True).argmax() == 0
    tie = combined([a, c], labels=True)
    assert tie.argmax() == 2, "among equals the class that they are surer of"
    assert np.isfinite(combined([np.float32([[1e4, 0, 0]])] * 2)).all()
