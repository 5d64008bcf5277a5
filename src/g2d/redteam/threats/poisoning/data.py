"""A trigger in the training data: everything is built from it, and every stage looked at."""

from __future__ import annotations

from g2d.attacks.poisoning import poisoned_task
from g2d.core.types import State
from g2d.defence.candidates import Judge
from g2d.defence.gates import GateResult
from g2d.generator import Exposure, Generator
from g2d.redteam.context import AttackContext, Case
from g2d.redteam.rows import Row
from g2d.redteam.threats.poisoning.judge import TARGET, Gates, TriggerJudge, judged
from g2d.redteam.threats.poisoning.networks import exposed, proposals, samples, trained
from g2d.settings import Settings
from g2d.tasks.inference import load_model
from g2d.tasks.task import Task
from g2d.training.population import TrainingJob, run_job, stays_of
from g2d.training.recipes import Teacher
from g2d.training.recipes.distil import teacher_of
from g2d.weights.checkpoints import unpack
from g2d.weights.layout import add_noise, differing, mean_of


def poisoned_data(case: Case, context: AttackContext) -> list[Row]:
    """Poison the train split, build everything from it, and look at every stage."""
    percent, judge = case.number("percent"), TriggerJudge(case, context)
    source = context.source("poisoning", "data", percent)
    task = poisoned_task(context.task, percent / 100, TARGET, source)
    s = context.spec.settings.override(
        population__base_steps=case.number("base"), population__fork_steps=case.number("fork"),
        population__pool=case.number("pool"), population__seed=context.seed("poisoning", percent),
        guidance__pool=case.number("pool"), autoencoder__steps=case.number("autoencoder"),
        diffusion__steps=case.number("diffusion"),
    )  # fmt: skip
    base, *members = _population(
        task, s, case.number("members"), teacher_of(context.defence.vault, s.harden)
    )
    generator = Generator.fit(
        task, members, [0] * len(members), s.autoencoder, s.diffusion,
        seed=context.seed("poisoning", "fit", percent), base=base, kind=s.generator.space,
    )  # fmt: skip
    exposure = exposed(task, s, base, generator)
    judging = Judge(task, base, s.autoencoder.scope)

    def gates(state: State) -> list[GateResult]:
        return judging(state, [exposure], {1: base}, s.gates)

    return _stages(case, context, judge, task, (base, members), generator, exposure, gates)


def _population(task: Task, settings: Settings, count: int, teacher: Teacher | None) -> list[State]:
    """A base and its members, by the vault's recipe; forks begin at the base.

    In a vault they begin at early checkpoints and deepen over many waves. So short, those had not
    learnt the trigger at all; from the base on, members start with it: the attacker's better case.
    """
    s, hardening = settings.population, (settings.harden, teacher)
    base = run_job(TrainingJob(task, "base", 0, 0, "base", s, None, (), (), *hardening))
    start = None if s.recipe == "seeds" else base.weights
    made = [base]
    for index in range(count):
        pools = tuple(one.attacks for one in made) if s.recipe == "repelled" else ()
        scope = settings.autoencoder.scope
        job = TrainingJob(
            task, "member", index, 0, s.recipe, s, start, pools, scope, *hardening,
            stays=None if start else stays_of(task, base.weights),
        )  # fmt: skip
        made.append(run_job(job))
    return [unpack(one.weights) for one in made]


def _stages(
    case: Case,
    context: AttackContext,
    judge: TriggerJudge,
    task: Task,
    population: tuple[State, list[State]],
    generator: Generator,
    exposure: Exposure,
    gates: Gates,
) -> list[Row]:
    """Rows of one poisoned population: its base, its members, what is generated, the gates."""
    percent, (base, members) = case.number("percent"), population
    free = judged(task, samples(generator, context, case.number("unguided"), percent), gates)
    both = poisoned_task(
        context.task,
        percent / 100,
        TARGET,
        context.source("poisoning", "both", percent),
        guide=True,
    )
    moved, wider = (
        judged(t, proposals(generator, t, [exposure], context, case.number("guided"), name), gates)
        for t, name in ((task, f"guided {percent}"), (both, f"both {percent}"))
    )
    small = f"{len(members)} members forked from the poisoned base, made for this with few steps"
    retrained = trained(task, context, case.number("base"), "retrained", percent)
    source = context.source("poisoning", "noise", percent)
    noise = add_noise(base, differing([base, *members]), source)
    return [
        judge.row("base", "the base", [load_model(task, base)], chain="frozen",
                  note="the standard victim", gradient_steps=case.number("base")),
        judge.row("fresh", "a fresh seed", [load_model(task, retrained)], chain="retrained"),
        judge.row("mean", "the mean of the members", [load_model(task, mean_of(members))],
                  chain="soup"),
        judge.row("noise", "the base plus noise", [load_model(task, noise)], chain="noise"),
        judge.row("members", "the members", [load_model(task, m) for m in members],
                  chain="population", note=small),
        judge.row("unguided", "unguided samples", [c.model for c in free], note=small),
        judge.row("guided", "guided generations", [c.model for c in moved],
                  note=f"{small}; the guide split, which guides them, is clean"),
        judge.row("guided-both", "guided generations, guide split poisoned too",
                  [c.model for c in wider], note=small),
        judge.gates([*free, *moved, *wider]),
    ]  # fmt: skip
