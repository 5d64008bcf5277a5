"""What releases spend of privacy, and the epsilon that they prove together.

Composition is by privacy loss distributions (Koskela et al. 2020, arXiv 1906.03049; Doroshenko et
al. 2022, arXiv 2207.04380, which round towards the greater loss), from the package `dp-accounting`.
Neighbours differ in one unit that is there or is not. Where spendings are kept is not here.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal, get_args

from g2d.errors import G2DError

Mechanism = Literal["sampled_gaussian", "gaussian", "laplace", "sparse_vector", "unbounded"]
MECHANISMS: tuple[str, ...] = get_args(Mechanism)

UNIT, BUDGET, DELTA = "unit", "budget", "delta"
"""Keys of a spending's note."""

_GRID = 1e-3
"""Distance of the losses that are told apart; rounding adds less than 0.002 to usual epsilons."""

_COARSE = 0.3
"""Below this noise losses are so wide that the grid grows with their square, to bound memory."""


@dataclass(frozen=True)
class Spending:
    """One thing that was done with the records of a block, as an accountant sees it.

    Attributes:
        what: for people: "base", "member 3", "gate of generation 12". block: of whose records.
        mechanism: `sampled_gaussian`: the sum of gradients of a Poisson sample, as DP-SGD takes
            (Abadi et al. 2016, arXiv 1607.00133). `gaussian`, `laplace`: noise on a number or a
            vector. `sparse_vector`: AboveThreshold (Dwork & Roth 2014, algorithm 1) up to its first
            answer "above", started again `count` times; `noise` is the scale b of the Laplace noise
            on the threshold, and answers are noised by 2 b: one of them costs 2 / b.
            `unbounded`: records were used as they are.
        noise: standard deviation (Gaussian), or scale (Laplace), as a multiple of the sensitivity:
            how far one unit moves the result, in the Euclidean or in the L1 norm.
        rate: chance of each record to be in a sample; of `sampled_gaussian` alone.
        count: how many times.
        note: what else is kept. `UNIT`: whose records count as one. `BUDGET`, `DELTA`: how many
            such spendings there are hangs on records, and stops at this epsilon; see `guaranteed`.

    Raises:
        ValueError: a field is of another type, or out of its range.
    """

    what: str
    block: str
    mechanism: Mechanism
    noise: float
    rate: float = 1.0
    count: int = 1
    note: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.what, str) or not isinstance(self.block, str):
            raise ValueError(f"what and block are texts, not {self.what!r} and {self.block!r}")
        if self.mechanism not in MECHANISMS:
            raise ValueError(
                f"{self.mechanism!r} is no mechanism; it is one of {', '.join(MECHANISMS)}"
            )
        for name, value in (("noise", self.noise), ("rate", self.rate)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} is a number, not {value!r}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise is at least 0 and finite, not {self.noise}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate lies in (0, 1], not {self.rate}")
        if self.rate != 1 and self.mechanism != "sampled_gaussian":
            raise ValueError(f"nothing is known of a sampled {self.mechanism}: rate has to be 1")
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 0:
            raise ValueError(f"count is a whole number from 0, not {self.count!r}")
        if not isinstance(self.note, Mapping):
            raise ValueError(f"note is a table, not {self.note!r}")

    def to_json(self) -> dict[str, Any]:
        """Return a table of plain values; `from_json` is the inverse."""
        return asdict(self) | {"note": dict(self.note)}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Spending:
        """Read what `to_json` wrote.

        Raises:
            ValueError: a key is missing or unknown, or a value is none.
        """
        if not isinstance(table, Mapping):
            raise ValueError(f"a spending is a table, not {type(table).__name__}")
        known = {item.name for item in fields(cls)}
        if unknown := sorted(map(str, set(table) - known)):
            raise ValueError(f"a spending has no {', '.join(unknown)}")
        if missing := [n for n in ("what", "block", "mechanism", "noise") if n not in table]:
            raise ValueError(f"a spending says {', '.join(missing)}, and this one does not")
        return cls(**table)


def epsilon(spendings: Iterable[Spending], delta: float) -> float:
    """Return the epsilon, at `delta`, of everything that was done with the records of one block.

    Later mechanisms may depend on what earlier ones gave out. `math.inf` where records were used
    without noise; 0 where nothing was.

    Raises:
        ValueError: delta does not lie in (0, 1).
        G2DError: the package dp-accounting is not installed.
    """
    _check_delta(delta)
    groups = _groups(spendings)
    if not groups:
        return 0.0
    if _unbounded(groups):
        return math.inf
    return float(max(0.0, _composed(groups).get_epsilon_for_delta(delta)))


def delta_of(spendings: Iterable[Spending], eps: float) -> float:
    """Return the delta at which everything that was done with one block is `eps`-private.

    Raises:
        G2DError: the package dp-accounting is not installed.
    """
    groups = _groups(spendings)
    if not groups:
        return 0.0
    if _unbounded(groups):
        return 1.0
    return float(_composed(groups).get_delta_for_epsilon(eps))


def by_block(spendings: Iterable[Spending]) -> dict[str, list[Spending]]:
    """Sort spendings by the block whose records they used, in the order of their first ones."""
    blocks: dict[str, list[Spending]] = {}
    for one in spendings:
        blocks.setdefault(one.block, []).append(one)
    return blocks


def guaranteed(spendings: Iterable[Spending], delta: float) -> float:
    """Return the epsilon that may be claimed of one block.

    Composition is of a number of mechanisms that is fixed beforehand. Where answers about records
    decide how many there are, and so when somebody looks at the sum, the sum so far is no
    guarantee (an odometer: Rogers et al. 2016, arXiv 1605.08294); that of the longest run which the
    budget allows is, as whoever stops early sees less of it. At a smaller delta than the budget was
    kept at nothing is known of that run: infinite.

    Raises:
        As `epsilon`.
    """
    own = list(spendings)
    return max(epsilon(own, delta), _stopped_at(own, delta))


def guaranteed_delta(spendings: Iterable[Spending], eps: float) -> float:
    """Return the delta that may be claimed of one block at an epsilon, as `guaranteed` claims.

    Where answers decided how many spendings there are, only the budget and its delta are known.

    Raises:
        As `delta_of`.
    """
    own = list(spendings)
    kept = [at if budget <= eps else 1.0 for budget, at in _budgets(own)]
    return max([delta_of(own, eps), *kept])


def total(spendings: Iterable[Spending], delta: float) -> float:
    """Return the epsilon of all blocks together: the greatest, unless a unit is in two of them.

    What is done with the second block of such a unit has to be charged to its first one, too.

    Parallel composition (McSherry 2009, theorem 4): the block of a unit depends on this unit alone,
    as that of a keyed hash does.

    Raises:
        As `epsilon`.
    """
    return max((guaranteed(own, delta) for own in by_block(spendings).values()), default=0.0)


def naive(spendings: Iterable[Spending], delta: float) -> float:
    """Return the rival's epsilon: those of single spendings, added up, each at its share of delta.

    Basic composition (Dwork & Roth 2014, theorem 3.16), which holds at the same `delta` as
    `epsilon`; the greatest sum over the blocks.

    Raises:
        As `epsilon`.
    """
    sums = [
        max(_stopped_at(own, delta), sum(epsilon([one], delta / len(own)) for one in own))
        for own in by_block(spendings).values()
    ]
    return float(max(sums, default=0.0))


def _stopped_at(own: Iterable[Spending], delta: float) -> float:
    """The greatest budget under which answers decided how many spendings there are; 0: none."""
    found = (budget if at <= delta else math.inf for budget, at in _budgets(own))
    return max(found, default=0.0)


def _budgets(own: Iterable[Spending]) -> list[tuple[float, float]]:
    """The budgets that spendings stopped at, each with the delta at which it was kept."""
    told = [(one.note[BUDGET], one.note.get(DELTA, 1.0)) for one in own
            if one.count and BUDGET in one.note]  # fmt: skip
    return [(_positive(budget, math.inf), _positive(at, 1.0)) for budget, at in told]


def _positive(found: object, unknown: float) -> float:
    known = isinstance(found, int | float) and not isinstance(found, bool) and found > 0
    return float(found) if known else unknown  # type: ignore[arg-type]


Group = tuple[str, float, float, int]  # mechanism, noise, rate, count


def _groups(spendings: Iterable[Spending]) -> tuple[Group, ...]:
    """What is alike, counted together: thirty forks are one self-composition."""
    counts: Counter[tuple[str, float, float]] = Counter()
    for one in spendings:
        counts[one.mechanism, float(one.noise), float(one.rate)] += one.count
    return tuple(sorted((*kind, count) for kind, count in counts.items() if count))


def _unbounded(groups: tuple[Group, ...]) -> bool:
    return any(mechanism == "unbounded" or noise == 0 for mechanism, noise, _, _ in groups)


def _composed(groups: tuple[Group, ...]) -> Any:
    """The privacy loss distribution of all groups."""
    grid = _GRID * max(1.0, (_COARSE / min(noise for _, noise, _, _ in groups)) ** 2)
    found = _distribution(groups[0], grid)
    for group in groups[1:]:
        found = found.compose(_distribution(group, grid))
    return found


@lru_cache(maxsize=64)
def _distribution(group: Group, grid: float) -> Any:
    """The privacy loss distribution of one group, on a grid of losses."""
    mechanism, noise, rate, count = group
    pld = require().pld.privacy_loss_distribution
    if mechanism == "gaussian":  # closed under composition: the noise of all is that of one
        return pld.from_gaussian_mechanism(
            noise / math.sqrt(count), value_discretization_interval=grid
        )
    if mechanism == "sampled_gaussian":
        one = pld.from_gaussian_mechanism(
            noise, value_discretization_interval=grid, sampling_prob=rate
        )
    elif mechanism == "laplace":
        one = pld.from_laplace_mechanism(noise, value_discretization_interval=grid)
    else:
        assert mechanism == "sparse_vector", "nothing else has a bound"
        pure = require().pld.common.DifferentialPrivacyParameters(2 / noise, 0)
        one = pld.from_privacy_parameters(pure, value_discretization_interval=grid)
    return one.self_compose(count) if count > 1 else one


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta lies between 0 and 1, not {delta}")


def require() -> Any:
    """Import the accountant's package.

    Raises:
        G2DError: it is not installed, or so old that it lacks what is used here.
    """
    try:
        package: Any = importlib.import_module("dp_accounting")
        importlib.import_module("dp_accounting.pld.privacy_loss_distribution")
    except ImportError as error:
        raise G2DError(
            f"the accounting of [privacy] needs dp-accounting 0.6 ({error}): "
            "pip install 'g2d[privacy]'"
        ) from error
    return package
