"""Malicious clients who send a backdoor: followed from the base to members to generations.

Only where clients trained the vault's population. Everything is made anew, by its own rule and f in
fewer rounds, in one process; no vault is written.
"""

from __future__ import annotations

from g2d.attacks.byzantine import ATTACKS
from g2d.core.types import State
from g2d.defence.candidates import Judge
from g2d.defence.federating import begin_at
from g2d.defence.gates import GateResult
from g2d.errors import G2DError, PopulationError
from g2d.generator import Generator
from g2d.redteam.context import AttackContext, Case, RunSpec
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.threats.poisoning.judge import (
    ATTACK,
    TriggerJudge,
    judged,
    kind_of,
    words_of,
)
from g2d.redteam.threats.poisoning.networks import exposed, proposals, samples
from g2d.settings import Settings
from g2d.tasks.inference import load_model
from g2d.tasks.task import Task
from g2d.training.federated.simulate import Hostile, Simulation
from g2d.vault.federated import is_federated
from g2d.vault.vault import Vault

CASE = "federated"


def was_federated(spec: RunSpec) -> bool:
    """Whether clients, two at least, have trained the population of the vault that is attacked."""
    if not spec.vault or spec.settings.federated.clients < 2:
        return False
    try:
        with Vault.open(spec.vault) as vault:
            return is_federated(vault)
    except G2DError:
        return False  # whatever is wrong with it is said where it is attacked


def sizes(spec: RunSpec) -> tuple[tuple[str, int], ...]:
    """Clients, of whom malicious as many as the rule is to bear (one, where it bears none)."""
    s = spec.settings.federated
    return (
        ("clients", s.clients), ("malicious", min(max(1, s.f), s.clients - 1)),
        ("rounds", min(s.rounds, 2 if spec.quick else 60)),
        ("forks", min(s.fork_rounds, 1 if spec.quick else 10)),
    )  # fmt: skip


def malicious_clients(case: Case, context: AttackContext) -> list[Row]:
    """Have clients make a base and members, some of them with a backdoor; look at every stage."""
    task, judge = context.task, TriggerJudge(case, context)
    s = context.spec.settings.override(
        population__seed=context.seed("poisoning", CASE), population__pool=case.number("pool"),
        guidance__pool=case.number("pool"), autoencoder__steps=case.number("autoencoder"),
        diffusion__steps=case.number("diffusion"), autoencoder__scope=(),
    )  # fmt: skip
    try:
        base, members = _population(case, task, s, case.number("malicious"))
        honest, _ = _population(case, task, s, 0, members=0)
    except PopulationError as error:
        kind = kind_of(case, "gates")
        why = f"clients made no population: {error}"
        return [not_measured(case.family, kind, words_of(case), case.chain, ATTACK, why)]
    generator = Generator.fit(
        task, members, [0] * len(members), s.autoencoder, s.diffusion,
        seed=context.seed("poisoning", "fit", CASE), base=base, kind=s.generator.space,
    )  # fmt: skip
    exposure = exposed(task, s, base, generator)
    judging = Judge(task, base, s.autoencoder.scope)

    def gates(state: State) -> list[GateResult]:
        return judging(state, [exposure], {1: base}, s.gates)

    free = judged(task, samples(generator, context, case.number("unguided"), CASE), gates)
    guided = proposals(generator, task, [exposure], context, case.number("guided"), CASE)
    moved = judged(task, guided, gates)
    note = (
        f"rule {s.federated.rule}, f = {s.federated.f}; {len(members)} members, in "
        f"{case.number('rounds')} and {case.number('forks')} rounds, made for this"
    )
    return [
        judge.row("base", "the base", [load_model(task, base)], chain="frozen", note=note),
        judge.row("members", "the members", [load_model(task, m) for m in members],
                  chain="population", note=note),
        judge.row("unguided", "unguided samples", [c.model for c in free], note=note),
        judge.row("guided", "guided generations", [c.model for c in moved], note=note),
        judge.gates([*free, *moved]),
        judge.row("honest", "a base of honest clients alone", [load_model(task, honest)],
                  chain="frozen", note="control: what the trigger does without poison"),
    ]  # fmt: skip


def _population(
    case: Case, task: Task, settings: Settings, malicious: int, members: int | None = None
) -> tuple[State, list[State]]:
    """A base and members that begin at it; no early checkpoints, which gives the backdoor more."""
    hostile = Hostile(ATTACKS["backdoor"], malicious) if malicious else None
    sim = Simulation(task, settings, begin_at(task, settings), hostile=hostile)
    start = sim.networks.vector(sim.like)
    base = sim.train("base-0", start, case.number("rounds")).vector
    repelled = ("base-0",) if settings.population.recipe == "repelled" else ()
    if repelled:
        sim.send("base-0", base)
    made = [
        sim.train(f"member-{k}", base, case.number("forks"), repelled).vector
        for k in range(case.number("members") if members is None else members)
    ]
    return sim.networks.state(base, sim.like), [sim.networks.state(v, sim.like) for v in made]
