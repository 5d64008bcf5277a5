"""What attacks are run in: task, test examples and the networks to attack, once a process.

A `RunSpec` is small and picklable; an `AttackContext` is what a worker makes of it, once. Networks
lie in files and are checked by digest when they are read.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from g2d.core.files import MOST_WEIGHTS, read_plain
from g2d.core.seeds import seed_of
from g2d.core.sources import Digests
from g2d.core.types import Bounds, Logits, State
from g2d.defence.defence import Defence
from g2d.errors import CheckpointError
from g2d.redteam.rows import Row
from g2d.redteam.scoring import Rate, accuracy_rate, attack_rate, pooled
from g2d.redteam.targets import as_logits, check_logits
from g2d.settings import Settings
from g2d.tasks.attack import BALL
from g2d.tasks.inference import load_model
from g2d.tasks.source import TaskSource, named_by, resolve
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.vault.code import load_only
from g2d.vault.sealing.envelope import is_sealed
from g2d.vault.sealing.sealer import Sealer
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import digest, unpack


@dataclass(frozen=True)
class Network:
    """A network's weights in a file, bound by digest."""

    path: str
    digest: str
    label: str = ""


@dataclass(frozen=True)
class Chain:
    """Networks in the order in which they are live; what an attacker meets over rotations.

    Attributes:
        cost: CPU seconds that one more network costs, or None where nobody measured it.
        fixed: all of them are one function (frozen, permuted), so one stands for all.
    """

    name: str
    networks: tuple[Network, ...]
    cost: float | None = None
    fixed: bool = False
    note: str = ""

    def split(self, exposed: int, later: int) -> tuple[tuple[Network, ...], tuple[Network, ...]]:
        """Return (the networks that the attacker has read, those that follow and are scored).

        The last `later` networks follow; the `exposed` ones just before them are read. A short
        chain gives up later ones first, then exposed ones. A fixed chain is one function: its first
        network is read, the others (or itself) are scored.
        """
        count = len(self.networks)
        if self.fixed or count == 1:
            return self.networks[:1], self.networks[1 : 1 + later] or self.networks[:1]
        exposed = max(1, min(exposed, count - 1))
        later = max(1, min(later, count - exposed))
        first = count - later
        return self.networks[first - exposed : first], self.networks[first:]


@dataclass(frozen=True)
class RunSpec:
    """Where an attack happens: everything that a worker needs, and nothing heavy.

    Attributes:
        chains: by name: "generated" (the vault's), the controls "frozen", "retrained", "soup",
            "noise", "permuted", and "draws" (fresh proposals that nobody has seen).
        n: test examples. eps: L-infinity budget in the units of the data.
        quick: small budgets, for the demo and CI: a smoke test, not evidence.
        attack: how the task is attacked ('ball', 'tokens', 'own', 'none').
        code: digests of the user's own code, which is loaded as no other; None: as it is there.
    """

    source: TaskSource
    vault: str
    settings: Settings
    chains: Mapping[str, Chain] = field(default_factory=dict)
    n: int = 1000
    eps: float = 0.0
    seed: int = 0
    quick: bool = False
    attack: str = BALL
    code: Digests | None = None


@dataclass(frozen=True)
class Case:
    """One piece of work: an attack of a family on a chain.

    Attributes:
        family: name of the threat that runs it. name: which of its attacks.
        chain: the chain that is attacked. reads: every chain whose networks decide the outcome.
        options: everything else that decides the outcome.
        generator: the outcome depends on the vault's generator or population too.
        cost: rough CPU seconds, to start long work first.
    """

    family: str
    name: str
    chain: str
    options: tuple[tuple[str, int | float | str], ...] = ()
    reads: tuple[str, ...] = ()
    generator: bool = False
    cost: float = 1.0

    def option(self, name: str, default: int | float | str = 0) -> int | float | str:
        """One of the options."""
        return dict(self.options).get(name, default)

    def number(self, name: str, default: int = 0) -> int:
        """One of the options, a whole number."""
        return int(self.option(name, default))


class AttackContext:
    """What the cases of one vault share in one process.

    Raises:
        VaultError: the user's own code is not what the spec says; nothing of it has been run.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        if spec.code is not None:
            load_only(spec.code, Path(spec.vault), spec.settings)
        self.task: Task = resolve(spec.source)
        generator = torch.Generator().manual_seed(seed_of(spec.seed, "examples"))
        self._examples = self.task.splits.test.sample(spec.n, generator)
        self._models: dict[str, nn.Module] = {}
        self._defence: Defence | None = None
        self.remark = ""  # what readers of every row must know of the task's models

    @property
    def eps(self) -> float:
        """The attack budget."""
        return self.spec.eps

    @property
    def bounds(self) -> Bounds:
        """Range of the data, or the budget of a table: what every attack is given."""
        return self.task.reach

    @property
    def defence(self) -> Defence:
        """The vault, read-only."""
        if self._defence is None:
            source = named_by(self.spec.source)
            task, data = (source, "") if isinstance(source, Task) else (None, source[1])
            spec = self.spec
            self._defence = Defence.open(spec.vault, task, write=False, data=data, code=spec.code)
        return self._defence

    def examples(self, n: int | None = None) -> Split:
        """The first `n` of the run's test examples (all of them, if None or fewer)."""
        if n is None or n >= len(self._examples):
            return self._examples
        return self._examples.take(torch.arange(n))

    def source(self, *name: object) -> torch.Generator:
        """A random source of its own for every name."""
        return torch.Generator().manual_seed(self.seed(*name))

    def seed(self, *name: object) -> int:
        """A seed of its own for every name, below 2^31 for libraries that want that."""
        return seed_of(self.spec.seed, *name) % (2**31 - 1)

    # --- networks ---

    def chain(self, name: str) -> Chain:
        """A chain by name."""
        return self.spec.chains[name]

    def state(self, network: Network) -> State:
        """Read a network's weights.

        Raises:
            CheckpointError: the file is gone or is not what was planned.
        """
        try:
            data = read_plain(Path(network.path), MOST_WEIGHTS)
            if is_sealed(data):
                data = read_network(Path(network.path), self._sealing)
        except OSError as error:
            raise CheckpointError(
                f"cannot read {network.path}: {error}; run the same command again"
            ) from error
        if digest(data) != network.digest:
            raise CheckpointError(
                f"{network.path} has changed since the attack was planned; run `g2d attack` again"
            )
        return unpack(data, network.path)

    @functools.cached_property
    def _sealing(self) -> Sealer:
        """What opens the networks of a sealed vault: the task need not be loaded for it."""
        return Vault.open(self.spec.vault).sealing

    def model(self, network: Network) -> nn.Module:
        """A network's model, frozen, in evaluation mode; built once per process."""
        if network.digest not in self._models:
            if len(self._models) >= 256:
                self._models.clear()
            model = load_model(self.task, self.state(network))
            self.remark = check_logits(model, self.task.splits.gate.x[:64])
            self._models[network.digest] = as_logits(model) if self.remark else model
        return self._models[network.digest]

    def models(self, networks: Sequence[Network]) -> list[nn.Module]:
        """Models of several networks."""
        return [self.model(network) for network in networks]

    # --- judging ---

    def score(
        self, model: Logits, proposed: Tensor, split: Split, eps: float | None = None
    ) -> Rate:
        """ASR of proposals against a model: held to the task's limits, run by our own code."""
        eps = self.eps if eps is None else eps
        return attack_rate(model, proposed, split, eps, self.bounds, self.task)

    def score_all(
        self, models: Sequence[Logits], proposed: Tensor, split: Split, eps: float | None = None
    ) -> tuple[Rate, Rate, Rate]:
        """Score proposals on several models: (mean ASR, worst ASR, mean clean accuracy)."""
        rates = [self.score(model, proposed, split, eps) for model in models]
        clean = pooled([accuracy_rate(model, split) for model in models])
        return pooled(rates), max(rates, key=lambda rate: rate.value), clean

    def row(
        self, case: Case, kind: str, threat: str, attack: str, value: Rate | None, **more: object
    ) -> Row:
        """A row of a case; `chain` is the case's, and `target` the chain's name, unless given."""
        chain = more.get("chain", case.chain)
        known: dict[str, object] = {"target": chain, "chain": chain}
        known |= {"seed": self.spec.seed, "eps": self.eps if self.spec.attack == BALL else None}
        if self.remark:
            known["note"] = "; ".join(filter(None, (str(more.pop("note", "")), self.remark)))
        return Row(
            family=case.family,
            kind=kind,
            threat=threat,
            attack=attack,
            value=value,
            **(known | more),  # type: ignore[arg-type]
        )


@functools.lru_cache(maxsize=2)
def _context(key: str, spec: _Hidden) -> AttackContext:
    return AttackContext(spec.spec)


class _Hidden:
    """A spec that counts as equal to any other: the key beside it tells them apart."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden)

    def __hash__(self) -> int:
        return 0


def read_network(path: Path, sealing: Sealer) -> bytes:
    """Read a network's file: one of the vault's own, or one that was made for an attack.

    Raises:
        OSError: it cannot be read. SealingError: it is sealed, and cannot be opened.
    """
    found = sealing.content(path)
    return read_plain(path, MOST_WEIGHTS) if found is None else found


def enter(spec: RunSpec, key: str) -> AttackContext:
    """Return what cases of a spec share in this process, made once."""
    return _context(key, _Hidden(spec))
