"""One poisoned member in the vault's own population."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from g2d.attacks.poisoning import poisoned
from g2d.core.types import State
from g2d.defence.gates import GateResult
from g2d.generator import Generator
from g2d.protect.watermark.mark import Mark
from g2d.redteam.context import AttackContext, Case
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.threats.poisoning.judge import (
    ATTACK,
    TARGET,
    TriggerJudge,
    judged,
    kind_of,
    words_of,
)
from g2d.redteam.threats.poisoning.networks import proposals, samples, tuned
from g2d.tasks.inference import load_model
from g2d.weights.checkpoints import unpack
from g2d.weights.layout import add_noise, differing, mean_of

_INSIDER = 0.3  # an insider poisons as much as needed: with 0.1 the trigger worked on 13 %


def poisoned_member(case: Case, context: AttackContext) -> list[Row]:
    """Poison one member of the vault's own population, fit a generator on it, draw from that."""
    defence, task, judge = context.defence, context.task, TriggerJudge(case, context)
    entries = defence.vault.entries("member")[-case.number("members") :]
    if len(entries) < 2 or defence.vault.entry("generator") is None:
        why = "the vault has no population of two members, or no generator"
        kind = kind_of(case, "gates")
        return [not_measured(case.family, kind, words_of(case), case.chain, ATTACK, why)]
    s = context.spec.settings
    states: list[State] = [unpack(defence.vault.read(entry)) for entry in entries]
    basins = [int(entry.info["basin"]) for entry in entries]
    split = poisoned(
        task.splits.train, _INSIDER, TARGET, task, context.source("poisoning", "member")
    )
    bad = replace(task, splits=replace(task.splits, train=split))
    states[-1] = tuned(states[-1], bad, context, case.number("tuning"), 5e-3,
                        s.autoencoder.scope, "member")  # fmt: skip
    generator = Generator.fit(
        task, states, basins,
        replace(s.autoencoder, steps=case.number("autoencoder")),
        replace(s.diffusion, steps=case.number("diffusion")),
        seed=context.seed("poisoning", "fit"), kind=s.generator.space,
    )  # fmt: skip
    return _reached(case, context, judge, generator, states, basins)


def _reached(
    case: Case,
    context: AttackContext,
    judge: TriggerJudge,
    generator: Generator,
    states: Sequence[State],
    basins: Sequence[int],
) -> list[Row]:
    """Rows of one poisoned member (the last): itself, what is made of it, and the gates."""
    defence, task = context.defence, context.task
    exposed = defence.vault.exposures()
    recent = defence.recent(exposed)

    def gates(state: State) -> list[GateResult]:
        return defence.judge(state, recent, exposed)

    free = judged(task, samples(generator, context, case.number("unguided"), "member"), gates)
    mark = Mark.of(context.spec.settings.watermark, task, defence.vault.path)
    guided = proposals(generator, task, recent, context, case.number("guided"), "member", mark=mark)
    moved = judged(task, guided, gates)
    (itself,) = judged(task, states[-1:], gates)
    inside = [state for state, basin in zip(states, basins, strict=True) if basin == basins[-1]]
    source = context.source("poisoning", "noise", "member")
    noise = add_noise(states[-1], differing(states), source)
    note = (
        f"a generator with few steps on {len(states)} members, one of them poisoned; its basin "
        f"holds {len(inside)}"
    )
    verdict = (
        f"it fails the gates {', '.join(itself.failed)}" if itself.failed else "it passes all gates"
    )
    rows = [
        judge.row("itself", "the member itself", [itself.model], chain="population",
                  note=f"{verdict}; members are not gated", gradient_steps=case.number("tuning")),
        judge.row("mean", "the mean of its basin", [load_model(task, mean_of(inside))],
                  chain="soup"),
        judge.row("noise", "the member plus noise", [load_model(task, noise)], chain="noise"),
        judge.row("unguided", "unguided samples", [c.model for c in free], note=note),
        judge.row("guided", "guided generations", [c.model for c in moved], note=note),
        judge.gates([*free, *moved]),
    ]  # fmt: skip
    if "frozen" in context.spec.chains:
        base = context.model(context.chain("frozen").networks[0])
        rows.append(
            judge.row(
                "clean-base",
                "the base, which nobody poisoned",
                [base],
                chain="frozen",
                note="control: what the trigger does without poison",
            )
        )
    return rows
