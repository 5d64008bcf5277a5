"""The networks to attack: the vault's generations, the controls beside them, and fresh draws.

What costs nothing (soup, noise, permutation) is made here at once; retrainings and draws are jobs.
Every network is a file in the run's folder, named after what decides it.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from g2d.core.engine import Engine
from g2d.core.files import make_folder, read_text, write_bytes
from g2d.core.folders import PRIVATE
from g2d.core.seeds import seed_of
from g2d.core.types import Progress, State
from g2d.defence.defence import Defence
from g2d.defence.members import begin_in
from g2d.protect.watermark.mark import Mark
from g2d.redteam.cache import code_version, key_of, own_code
from g2d.redteam.context import AttackContext, Chain, Network, RunSpec, enter, read_network
from g2d.redteam.controls import FittedMembers, hardened, noised, permuted, retraining, soups
from g2d.tasks.inference import load_model, predict
from g2d.tasks.source import data_digest
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.loop import Batches
from g2d.training.population import run_job, stays_of
from g2d.training.recipes import HardenedTraining, stale
from g2d.training.recipes.distil import teacher_of
from g2d.vault.basin_costs import basin_lines
from g2d.vault.sealing.sealer import Sealer
from g2d.weights.checkpoints import digest, pack, unpack

_DRAWS = 4  # proposals a job: some seconds each


@dataclass(frozen=True)
class Sizes:
    """How many networks each control has, and how many draws a random target is scored on."""

    cheap: int = 31  # soups and noised members: 20 exposed, 11 later
    permuted: int = 12
    retrained: int = 6
    draws: int = 100
    attacker: int = 16  # the attacker's own draws
    rival: int = 3
    hardened: int = 1  # one seed and one data set: the base's

    @classmethod
    def of(cls, quick: bool) -> Sizes:
        """Full, or a smoke test."""
        return cls(8, 3, 2, 8, 3, 1) if quick else cls()


def build_chains(
    defence: Defence,
    spec: RunSpec,
    folder: Path,
    engine: Engine,
    names: set[str],
    progress: Progress,
) -> dict[str, Chain]:
    """Make or find every chain of `names`.

    Returns:
        chains by name; "draws" and "attacker" are left out where the vault has no generator, and
        soup, noise and "permuted" where its members or architecture have none.
    """
    sizes, store = Sizes.of(spec.quick), NetworkStore(folder, defence.vault.sealing)
    chains = {"generated": _generated(defence), "frozen": _frozen(defence, store)}
    made: dict[str, tuple[Callable[[], list[State]], bool, str]] = {
        "soup": (
            lambda: soups(FittedMembers.of(defence), sizes.cheap, spec.seed),
            False,
            "mean of four members",
        ),
        "noise": (
            lambda: noised(FittedMembers.of(defence), sizes.cheap, spec.seed),
            False,
            "a member plus noise of a tenth of each tensor's magnitude",
        ),
        "permuted": (
            lambda: permuted(defence.task, _base(defence), sizes.permuted, spec.seed),
            True,
            "the base with its hidden units in random order: the same function",
        ),
    }
    for name, (make, fixed, note) in made.items():
        if name in names:
            networks = store.find_or_make(name, _identity(defence, spec, name), make)
            if networks:
                chains[name] = Chain(name, networks, fixed=fixed, note=note)
    if len(chains["generated"].networks) > 1:
        live = chains["generated"].networks[-1:]
        note = "the live generation, never rotated again"
        chains["unrotated"] = Chain("unrotated", live, fixed=True, note=note)
    jobs = {"retrained": sizes.retrained, "hardened": sizes.hardened}
    if defence.vault.entry("generator") is not None:
        jobs |= {"draws": sizes.draws, "attacker": sizes.attacker, "rival": sizes.rival}
    wanted = {name: count for name, count in jobs.items() if name in names}
    # A worker needs the settings, not the chains.
    bare = replace(spec, chains={})
    for name, networks, cost in _made_by_jobs(defence, bare, store, engine, wanted, progress):
        chains[name] = Chain(name, networks, cost, note=_NOTES[name])
    return chains


_NOTES = {
    "retrained": "fresh seeds, the recipe of the base",
    "hardened": "the base's own seed and data, with FGSM at half of eps beside",
    "draws": "proposals for the next generation that passed the gates; nobody has seen them",
    "attacker": "the attacker's own proposals for the next generation",
    "rival": "fresh seeds, trained on clean data and on the attacks that guide the next generation",
}


def _identity(defence: Defence, spec: RunSpec, name: str) -> str:
    vault = defence.vault
    generator = vault.entry("generator")
    own = name in ("draws", "attacker", "rival")
    return key_of(
        name=name,
        members=[e.files["weights"] for e in vault.entries("member")],
        base=[e.files["weights"] for e in vault.entries("base")],
        generator=generator.files["weights"] if own and generator else "",
        exposed=[vault.generation(k).files["weights"] for k in vault.exposures()] if own else [],
        task=task_identity(defence),
        settings=asdict(defence.settings) | {"task": ""},
        own=own_code(defence.settings),
        seed=spec.seed,
        code=code_version("g2d.redteam.chains"),
    )


def task_identity(defence: Defence) -> dict[str, Any]:
    """What a task is, as far as results go: data, bounds, the function of its model, its source.

    The model's function is that of the base on a few inputs; the source is that of the module that
    the factory comes from (built-in tasks are part of the code version anyway).
    """
    task, base = defence.task, defence.vault.entry("base")
    assert base is not None  # a vault with generations has a base
    model = load_model(task, unpack(defence.vault.read(base)))
    logits = predict(model, task.splits.gate.x[:16])
    try:
        source = inspect.getsource(inspect.getmodule(task.factory) or task.factory)
    except (OSError, TypeError):
        source = ""
    budget = {} if task.budget is None else {"budget": asdict(task.budget)}
    return (
        budget
        | {
            "data": data_digest(task),
            "bounds": task.bounds,
            "classes": task.classes,
            "function": digest(pack({"logits": logits})),
            "source": digest(source.encode()),
        }
        | _attack_of(task)
    )


def _attack_of(task: Task) -> dict[str, Any]:
    """What a task's own attack, its limits on tokens and its metrics are; {} in the ball of eps."""
    named: dict[str, Any] = {f"metric {name}": metric for name, metric in task.metrics.items()}
    named |= {"attack": task.attack} if callable(task.attack) else {}
    found = {name: _code_of(function) for name, function in named.items()}
    tokens = {} if task.tokens is None else {"tokens": repr(task.tokens)}
    words = {"words": task.attack_words} if task.attack_words else {}
    return ({"attacked": words | tokens} if words else {}) | ({"own": found} if found else {})


def _code_of(value: Any) -> str:
    """The name of a function of the user's, or of an object's class, and its module's source."""
    own = value if hasattr(value, "__qualname__") else type(value)
    try:
        source = inspect.getsource(inspect.getmodule(own) or own)
    except (OSError, TypeError):
        source = ""
    return f"{own.__module__}.{own.__qualname__} {digest(source.encode())}"


def _generated(defence: Defence) -> Chain:
    vault = defence.vault
    # Those that are retired have no weights any more, and attack nobody.
    numbers = [number for number in vault.exposures() if number > vault.retired]
    records = [vault.generation(number) for number in numbers]
    networks = [
        Network(str(vault.generation_file(r.number)), r.files["weights"], str(r.number))
        for r in records
    ]
    cpu = [r.manifest["cpu_seconds"] for r in records[1:] if "cpu_seconds" in r.manifest]
    each = sum(cpu) / len(cpu) if cpu else None
    # What grown basins took is in no generation's own time: it is said beside.
    note = "; ".join(basin_lines(vault))
    return Chain("generated", tuple(networks), each, note=f"Basins: {note}." if note else "")


def _frozen(defence: Defence, store: NetworkStore) -> Chain:
    base = defence.vault.entry("base")
    assert base is not None  # a vault with generations has a base
    data = defence.vault.read(base)
    network = store.keep("base", digest(data), 0, data)
    return Chain("frozen", (network,), fixed=True, note="the base, never rotated")


def _base(defence: Defence) -> State:
    """The network that was deployed first."""
    base = defence.vault.entry("base")
    assert base is not None  # a vault with generations has a base
    return unpack(defence.vault.read(base))


# --- jobs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Order:
    """Networks of one chain for a worker to make."""

    spec: RunSpec
    key: str
    name: str
    indices: tuple[int, ...]


def _made_by_jobs(
    defence: Defence, spec: RunSpec, store: NetworkStore, engine: Engine, wanted: dict[str, int],
    progress: Progress,
) -> Iterator[tuple[str, tuple[Network, ...], float]]:  # fmt: skip
    keys = {name: _identity(defence, spec, name) for name in wanted}
    orders = []
    for name, count in wanted.items():
        missing = [i for i in range(count) if not store.known(name, keys[name], i)]
        each = 1 if name in ("retrained", "rival", "hardened") else _DRAWS
        orders += [
            _Order(spec, keys[name], name, tuple(missing[i : i + each]))
            for i in range(0, len(missing), each)
        ]
    total = sum(wanted.values())
    done = total - sum(len(order.indices) for order in orders)
    progress("networks", done, total)
    for position, made in engine.run(make, orders):
        order = orders[position]
        for index, (data, seconds) in zip(order.indices, made, strict=True):
            store.keep(order.name, order.key, index, data, seconds)
        done += len(made)
        progress("networks", done, total)
    for name, count in wanted.items():
        found = [store.find(name, keys[name], index) for index in range(count)]
        networks = tuple(network for network in found if network is not None)
        costs = [store.cost(name, keys[name], index) for index in range(count)]
        if networks:
            yield name, networks, sum(costs) / len(networks)


def make(order: _Order) -> list[tuple[bytes, float]]:
    """Make the networks of an order in a worker: weights (empty: none passed) and CPU seconds."""
    context = enter(order.spec, order.key)
    made = []
    for index in order.indices:
        began = time.process_time()
        if order.name == "rival":
            data = pack(_rival(context, index))
        elif order.name == "hardened":
            data = pack(hardened(context.spec.source, context.spec.settings, index))
        elif order.name == "retrained":
            teacher = teacher_of(context.defence.vault, context.spec.settings.harden)
            job = retraining(
                context.spec.source, context.spec.settings, index, teacher, _stays(context)
            )
            data = run_job(job).weights
        else:
            drawn = _draw(context, order.name, index)
            data = b"" if drawn is None else pack(drawn)
        made.append((data, time.process_time() - began))
    return made


def _rival(context: AttackContext, index: int) -> State:
    """Retrain from a fresh seed on clean data and on the attacks of the last exposed generations.

    What a rotation by retraining with the same knowledge would give; as many steps as the base,
    and hardened as it was.
    """
    defence, splits = context.defence, context.task.splits
    s = context.spec.settings.population
    pools = [exposure.guide for exposure in defence.recent(defence.vault.exposures())]
    clean = Split(
        torch.cat([splits.train.x, splits.guide.x]), torch.cat([splits.train.y, splits.guide.y])
    )
    batches = Batches(context.task, clean, s.batch, context.source("rival", index))
    seed = context.seed("rival", index)
    # No looks: they would choose its weights on the guide split, which it trains on. Without looks
    # there is no guard either, and a collapsed rival would flatter us: PGD in FGSM's place.
    harden = replace(context.spec.settings.harden, checks=0, patience=0)
    if harden.method == "fgsm":
        harden = replace(harden, method="pgd")
    model = context.task.placed(context.task.model(seed))
    teacher = teacher_of(context.defence.vault, harden)
    if stays := _stays(context):
        model.load_state_dict(unpack(stays), strict=False)
    training = HardenedTraining(
        context.task, harden, batches, s.base_steps, seed=seed, extra=(stale,), pools=pools,
        teacher=teacher.load(context.task) if teacher else None,
    )  # fmt: skip
    training.run(model, s.rate)
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _stays(context: AttackContext) -> bytes | None:
    """What every network of the task has as the base has it: a seed would draw it anew."""
    return stays_of(context.task, pack(_base(context.defence)))


def _draw(context: AttackContext, name: str, index: int) -> State | None:
    """Propose for the next generation until a candidate passes its gates, as a rotation does.

    None where all attempts were rejected: the live generation would stay.
    """
    defence = context.defence
    generator, exposed = defence.generator, defence.vault.exposures()
    recent = defence.recent(exposed)
    mark = Mark.of(context.spec.settings.watermark, defence.task, defence.vault.path)
    begin = begin_in(defence.vault, context.spec.settings)
    for attempt in range(context.spec.settings.gates.attempts):
        source = torch.Generator().manual_seed(seed_of(context.spec.seed, name, index, attempt))
        v = generator.propose(
            defence.task, recent, context.spec.settings.guidance, source, mark=mark, begin=begin,
            base=load_model(defence.task, _base(defence)),
        )  # fmt: skip
        state = generator.to_state(v)
        if all(result.passed for result in defence.judge(state, recent, exposed)):
            return state
    return None


# --- files ---------------------------------------------------------------------------------------


class NetworkStore:
    """Files of networks, each named after its chain, what decides it, and its place.

    Beside a sealed vault they are sealed, too, wherever the folder is: they are made of its own.
    """

    def __init__(self, folder: Path, sealing: Sealer) -> None:
        self._folder, self._sealing = make_folder(folder, PRIVATE), sealing

    def find_or_make(
        self, name: str, key: str, produce: Callable[[], Sequence[State]]
    ) -> tuple[Network, ...]:
        """Return the networks of a cheap chain, which is made whole."""
        states = produce()
        return tuple(self.keep(name, key, i, pack(state)) for i, state in enumerate(states))

    def find(self, name: str, key: str, index: int) -> Network | None:
        """Return one network, if there is one."""
        path = self._path(name, key, index)
        if not path.exists():
            return None
        return Network(str(path), digest(read_network(path, self._sealing)), f"{name} {index + 1}")

    def known(self, name: str, key: str, index: int) -> bool:
        """Whether one network has been made, or was refused by its gates."""
        return self._path(name, key, index).with_suffix(".json").exists()

    def cost(self, name: str, key: str, index: int) -> float:
        """CPU seconds that one network took."""
        path = self._path(name, key, index).with_suffix(".json")
        return float(json.loads(read_text(path))["cpu_seconds"])

    def keep(self, name: str, key: str, index: int, data: bytes, seconds: float = 0.0) -> Network:
        """Write one network, whole or not at all; empty data only notes that there is none."""
        path = self._path(name, key, index)
        if data and (not path.exists() or read_network(path, self._sealing) != data):
            about = partial(self._sealing.other, "network", path.name, data)
            write_bytes(path, self._sealing.shut(data, about), 0o600)
        note = json.dumps({"cpu_seconds": round(seconds, 3)})
        if not path.with_suffix(".json").exists():
            write_bytes(path.with_suffix(".json"), note.encode(), 0o600)
        return Network(str(path), digest(data), f"{name} {index + 1}")

    def _path(self, name: str, key: str, index: int) -> Path:
        return (self._folder / f"{name}-{key[:12]}-{index:03d}.safetensors").absolute()
