"""What follows from rejected candidates: hints that fit the reason, and less of mu for the next."""

import pytest

from g2d.defence.candidates import Candidate, Draw
from g2d.defence.gates import GateResult
from g2d.defence.refusal import adapting, check_gate_split, give_up
from g2d.errors import SettingsError
from g2d.settings import Settings


def candidate(*failed, attempt=0, mu=None):
    gates = ("accuracy", "class", "distance", "stale_asr")
    results = [
        GateResult(gate, gate not in failed, 0.5, 0.1, f"{gate} is bad")
        for gate in dict.fromkeys([*gates, *failed])
    ]
    return Candidate(Draw(attempt, b"secret", False), {}, results, 0.0, 0.0, mu)


@pytest.mark.parametrize(
    ("failed", "says"),
    [
        ("accuracy", "lower mu in [guidance] (it is 2)"),
        ("class", "lower mu in [guidance]"),
        ("stale_asr", "raise polish_steps in [guidance] (it is 150), or mu (2)"),
        ("stale_share", "raise polish_steps in [guidance]"),
        ("distance", "make a population that differs more"),
        ("basin", "set resting = true in [guidance]"),
        ("robust", "set robust_weight in [guidance]"),
        ("finite", "lower polish_rate and latent_rate"),
        ("pre_activation", "lower polish_rate in [guidance], or raise pre_activation in [gates]"),
        ("backdoor", "look for it in the population, or lower backdoor in [gates]"),
        ("flatness", "see what your gate 'flatness' asks for"),
    ],
)
def test_the_hint_fits_the_reason(failed, says):
    """It always said to raise polish_steps, which costs accuracy where accuracy had failed."""
    said = str(give_up([candidate(failed)], Settings()))
    assert f"{failed} is bad" in said
    assert says in said
    assert ("polish_steps" in said) == failed.startswith("stale")


def test_what_rejects_most_is_named_first():
    said = str(give_up([candidate("stale_asr", "distance"), candidate("distance")], Settings()))
    assert said.index("differs more") < said.index("polish_steps")


def test_what_pulls_mu_both_ways_is_one_hint():
    """It said to raise mu and to lower it, in one line."""
    said = str(give_up([candidate("accuracy", "stale_asr")], Settings()))
    assert "more steps serve both" in said
    assert "lower mu" not in said
    assert "or mu" not in said


def followed(settings, *failures, longest=1, of=lambda guidance: guidance.mu):
    """Run through candidates that fail so, one a draw; return mu, or what is asked for, of each."""
    made = []

    def ahead(draws, settings):
        for draw in draws:
            made.append(draw.attempt)
            mu = of(settings.guidance)
            yield candidate(*failures[draw.attempt], attempt=draw.attempt, mu=mu)

    draws = [Draw(k, b"secret", False) for k in range(len(failures))]
    found = list(adapting(draws, settings, ahead, longest))
    assert [one.draw.attempt for one in found] == list(range(len(failures))) == made
    return [one.mu for one in found]


def test_mu_adapts_where_accuracy_alone_fails_and_only_where_it_may():
    clean, both = ("accuracy", "class"), ("accuracy", "stale_asr")
    adapting_mu = Settings().override(guidance__adapt=True)
    assert followed(adapting_mu, clean, both, clean, clean, clean, clean) == [
        2,
        1,
        1,
        0.5,
        0.25,
        0.25,
    ]
    assert followed(Settings(), clean, clean) == [2, 2]  # as ever, unless it is asked for


def test_a_renewed_vault_polishes_longer_where_accuracy_alone_fails():
    """Its members are short forks: candidates that are polished as before stay below its base."""
    new, stale = ("new_data",), ("accuracy", "stale_asr")

    def steps(*failures, longest=4):
        own = Settings().override(guidance__polish_steps=300)
        return followed(own, *failures, longest=longest, of=lambda g: g.polish_steps)

    assert steps(new, stale, new, new, new) == [300, 600, 600, 1200, 1200]
    assert steps(new, new, new, longest=3) == [300, 600, 900]
    assert steps(new, new, longest=1) == [300, 300]  # one that was never renewed: as ever
    assert followed(Settings(), new, new, longest=4) == [2, 1]  # and repels less


def test_too_few_gate_examples_are_refused_before_the_work():
    with pytest.raises(SettingsError, match=r"1\.00%, which 28 gate examples cannot show .* 299"):
        check_gate_split(28, Settings())
    check_gate_split(299, Settings())
