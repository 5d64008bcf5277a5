"""What follows from rejected candidates: the next is guided otherwise, or an error says what helps.

Judging is in `gates`, making candidates in `candidates`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from g2d.defence.candidates import Candidate, Draw
from g2d.defence.gates.accuracy import too_few
from g2d.errors import GenerationError, SettingsError
from g2d.settings import GuidanceSettings, Settings
from g2d.tasks.task import Task

_CLEAN = frozenset({"accuracy", "class", "former_data", "new_data"})
_LEAST = 1 / 8  # of mu: below that, what is left of guidance is not worth its time
_LONGEST = 10**6  # polish_steps that [guidance] takes


def adapting(
    draws: list[Draw],
    settings: Settings,
    candidates: Callable[[list[Draw], Settings], Iterator[Candidate]],
    most: int = 1,
) -> Iterator[Candidate]:
    """Yield candidates in order of draws, each guided as those before it ask for.

    After one that lacks nothing but accuracy the next has half of mu, where that adapts, and twice
    the steps of polish, up to `most` times; above one, mu adapts in any case. The same ones
    wherever they are made: those that were made ahead otherwise are made again.

    Args:
        candidates: makes those of some draws with the settings given, in order. most: see
            `longest`.
    """
    first = settings.guidance
    while draws:
        for candidate in candidates(draws, settings):
            draws = draws[1:]
            yield candidate
            if not lacks_accuracy(candidate):
                continue
            guidance = _eased(settings.guidance, first, most)
            if guidance != settings.guidance:
                settings = replace(settings, guidance=guidance)
                break


def _eased(guidance: GuidanceSettings, first: GuidanceSettings, most: int) -> GuidanceSettings:
    """Guidance that costs less accuracy than this, as far as may be; `first`: what it was."""
    mu, steps = guidance.mu, guidance.polish_steps
    if (guidance.adapt or most > 1) and mu > first.mu * _LEAST:
        mu /= 2
    steps = min(most * first.polish_steps, 2 * steps, _LONGEST)
    return replace(guidance, mu=mu, polish_steps=steps)


def longest(task: Task, settings: Settings) -> int:
    """How many times as long as set a candidate is polished at most; 1: no longer.

    A refresh forks members for a few steps, beside attacks on others: on what is new they stay
    below the base, which learns nothing else, by more than the gates allow. On NSL-KDD's own shift
    by 1.2 points, of which 300 steps made up for 0.7, and 900 without repelling for 1.0. Gates on
    stale attacks stay as they are.
    """
    return settings.refresh.polish if task.splits.added("gate") else 1


def lacks_accuracy(candidate: Candidate) -> bool:
    """Whether accuracy is all that it lacks: stale attacks had failed on it."""
    failed = {result.gate for result in candidate.results if not result.passed}
    return bool(failed) and failed <= _CLEAN


def check_gate_split(n: int, settings: Settings) -> None:
    """Refuse, before the work, an accuracy gate that `n` gate examples can let no candidate pass.

    Raises:
        SettingsError: too few examples for the drop that is allowed.
    """
    if short := too_few(n, settings.gates):
        allowed = f"{settings.gates.accuracy_drop:.2%}"
        raise SettingsError(f"[gates] accuracy_drop allows a drop of {allowed}{short}")


def give_up(rejected: Sequence[Candidate], settings: Settings) -> GenerationError:
    """The error that ends a generation: why its candidates failed, and what would help."""
    robust = [r.value for one in rejected for r in one.results if r.gate == "robust"]
    best = f" The most robust candidate reached {max(robust):.1%}." if robust else ""
    reasons = "; ".join(rejected[-1].reasons) if rejected else ""
    failed = _failed(rejected)
    hints = [_hint(gate, settings) for gate in failed]
    if {"accuracy", "class"} & {*failed} and {"stale_asr", "stale_share"} & {*failed}:
        hints = [_both(settings)]
    hint = "; ".join(dict.fromkeys(hints)) or _hint("stale_asr", settings)
    return GenerationError(
        f"no candidate passed its gates in {settings.gates.attempts} attempts; the live "
        f"generation stays. The last one failed because: {reasons}.{best} Loosen "
        f"[gates], or {hint}; `g2d population VAULT --settings FILE` changes both"
    )


def _failed(rejected: Sequence[Candidate]) -> list[str]:
    """Gates that rejected a candidate, those that rejected most of them first."""
    counts = Counter(r.gate for one in rejected for r in one.results if not r.passed)
    return [gate for gate, _ in counts.most_common()]


def _both(settings: Settings) -> str:
    """What helps where candidates fail for accuracy and for old attacks, which pull mu apart."""
    g = settings.guidance
    return (
        f"raise polish_steps in [guidance] (it is {g.polish_steps}): mu ({g.mu:g}) trades accuracy "
        "against old attacks, and more steps serve both"
    )


def _hint(gate: str, settings: Settings) -> str:
    """What helps where a gate rejects."""
    g = settings.guidance
    clean = (
        f"lower mu in [guidance] (it is {g.mu:g}): repelling old attacks costs accuracy"
        if g.mu > 0
        else "lower polish_rate in [guidance], or train a more accurate population"
    )
    stale = f"raise polish_steps in [guidance] (it is {g.polish_steps}), or mu ({g.mu:g})"
    hints = {
        "finite": "lower polish_rate and latent_rate in [guidance]",
        "accuracy": clean,
        "class": clean,
        "distance": "make a population that differs more (more members or basins in [population], "
        "in a new vault, or `g2d fit --again` after more members)",
        "basin": "lower basin_rest in [gates]" if g.resting else "set resting = true in [guidance]",
        "stale_asr": stale,
        "stale_share": stale,
        "pre_activation": "lower polish_rate in [guidance], or raise pre_activation in [gates] (it "
        f"is {settings.gates.pre_activation:g})",
        "backdoor": "look for it in the population, or lower backdoor in [gates] (it is "
        f"{settings.gates.backdoor:g})",
        "watermark": _unmarked(settings),
        "people": "raise gate_drop in [privacy]: noise alone rejects some",
        "former_data": clean,
        "new_data": clean,
        "robust": f"raise robust_weight in [guidance] (it is {g.robust_weight:g})"
        if g.robust_weight
        else "set robust_weight in [guidance], which then keeps candidates robust",
    }
    return hints.get(gate, f"see what your gate {gate!r} asks for")


def _unmarked(settings: Settings) -> str:
    """What helps where candidates lose the watermark, or never had it."""
    return (
        "mark a population that was trained without it (`g2d watermark add`); else raise weight in "
        f"[watermark] (it is {settings.watermark.weight:g}), or polish_steps in [guidance]"
    )
