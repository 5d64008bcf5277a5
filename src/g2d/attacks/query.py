"""Query attacks: an attacker who sees nothing but the scores that an API answers.

Square and HopSkipJump are ART's, unchanged; `clock_square` is our own, for what no library has: a
search that knows when the network behind the API changes. All attack n images side by side: an API
here takes inputs and the number of the image (the lane) that each of them is about. Who counts
queries and says what was won does not live here.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from g2d.attacks.art import array, black_box, quiet, tensor
from g2d.attacks.pgd import check_budget, project
from g2d.attacks.tables import is_region, subset
from g2d.core.types import Bounds

Api = Callable[[Tensor, Tensor], Tensor]
"""Maps inputs (m, ...) and their lanes (m,) to scores (m, classes); may raise `SpentError`."""

# Square attack, section 5 of arXiv 1912.00049: the share of changed pixels halves at these points
# of 10,000 queries; other budgets stretch them.
_HALVE_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
TOLERANCE = 1e-4  # of a margin, relative: batches of another size round otherwise
# HopSkipJump's last loop halves its step until the input is adversarial; on a network that has
# changed it may never be. After so many failures in a row (its own start may fail 100 times) the
# attacker begins again.
_STUCK = 130


class SpentError(Exception):
    """Nothing is left to ask: every lane of the batch is decided or has spent its budget."""


class _StuckError(Exception):
    """The search hangs on a point that the present network classifies correctly."""


def clock_square(
    api: Api, x: Tensor, y: Tensor, *, eps: float, budget: int, generator: torch.Generator,
    bounds: Bounds = (0.0, 1.0), every: int | None = None, share: float = 0.8,
    start: Tensor | None = None, beyond: bool = False, sure: bool = True,
) -> Tensor:  # fmt: skip
    """Random search over squares (Andriushchenko et al. 2020, arXiv 1912.00049) that knows a clock.

    With `every`, the network changes after so many queries of a lane: what the best point was worth
    then says nothing now, so the first query to a new network asks for the best point again, and
    the squares begin large again. One query a proposal and one a re-evaluation; nothing else.
    Where the clock only says when a network may change (not `sure`), a lane whose best point is
    worth what it was goes on with small squares, and takes the next tick for its end.

    Args:
        x: clean images (n, channels, height, width); inputs of another shape are taken as one row
            of pixels. y: their labels (n,).
        eps: radius of the ball, in units of `x`. budget: queries an image.
        every: queries of a lane between two rotations, None: none that the attacker knows of.
        share: share of the pixels that the first square covers.
        start: points to begin at, shape of `x`, clipped to ball and range; None: random stripes.
        beyond: go on after the first flip, to the point that is misclassified by the most.
        sure: the network does change at every tick.

    Returns:
        The best point of every image, shape of `x`, inside ball and range.

    Raises:
        SettingsError: eps is negative, no number or larger than the data range.
    """
    check_budget(eps, 1, bounds)
    shape, x = x.shape, x if x.dim() == 4 or is_region(bounds) else x.reshape(len(x), 1, 1, -1)
    if start is None:
        start = stripes(x, eps, bounds, generator)
    best = project(start.reshape(x.shape), x, eps, bounds)
    loss = torch.full((len(x),), math.inf, dtype=x.dtype)
    active = torch.arange(len(x))
    period = min(every or budget, budget)
    age = torch.zeros(len(x), dtype=torch.long)  # queries of each lane since its network changed
    for query in range(budget if len(x) else 0):
        again = query % period == 0
        point = best[active]
        if not again:
            end = period * (age[active] // period + 1)
            parts = [share * shrink(p) for p in (age[active].double() / end).tolist()]
            point = propose_each(point, x[active], eps, parts, bounds, generator)
        try:
            scores = api(point.reshape(-1, *shape[1:]), active)
        except SpentError:
            break
        margin = margins(scores, y[active]).to(loss.dtype)
        if again:
            age[active[sure | differ(margin, loss[active])]] = 0
        age[active] += 1
        better = torch.ones_like(margin, dtype=torch.bool) if again else margin < loss[active]
        best[active[better]], loss[active[better]] = point[better], margin[better]
        active = active if beyond else active[loss[active] >= 0]
        if not len(active):
            break
    return best.reshape(shape)


def shrink(progress: float) -> float:
    """Factor of the square's share of pixels at a point of the search in [0, 1]."""
    return 0.5 ** bisect.bisect_left(_HALVE_AT, progress * 10_000)


def _side(share: float, height: int, width: int) -> int:
    """Side of a square that covers a share of the image: at least a pixel, at most what fits."""
    return min(max(1, round(math.sqrt(share * height * width))), height, width)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(0, 2, shape, generator=generator) - 1.0


def stripes(x: Tensor, eps: float, bounds: Bounds, generator: torch.Generator) -> Tensor:
    """Vertical stripes of plus or minus eps on images; a sign for each feature of a table."""
    if is_region(bounds):
        return x + bounds.radius(eps, x) * _signs(tuple(x.shape), generator)
    return x + eps * _signs((len(x), x.shape[1], 1, x.shape[3]), generator)


def _inside(x: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    return x if bounds is None else x.clamp(*bounds)


def propose(
    best: Tensor,
    x: Tensor,
    eps: float,
    share: float,
    bounds: Bounds,
    generator: torch.Generator,
) -> Tensor:
    """Set a random square of every image to plus or minus eps, a sign for each channel."""
    if is_region(bounds):
        return subset(best, x, eps, share, bounds, generator)
    n, channels, height, width = x.shape
    size = _side(share, height, width)
    top = torch.randint(0, height - size + 1, (n, 1), generator=generator)
    left = torch.randint(0, width - size + 1, (n, 1), generator=generator)
    rows, columns = torch.arange(height), torch.arange(width)
    inside = ((rows >= top) & (rows < top + size))[:, None, :, None]
    inside = inside & ((columns >= left) & (columns < left + size))[:, None, None, :]
    signs = _signs((n, channels, 1, 1), generator)
    point = torch.where(inside, _inside(x + eps * signs, bounds), best)
    # A square that changes nothing would waste a query: turn its signs.
    idle = (point == best).flatten(1).all(1)
    turned = torch.where(inside, _inside(x - eps * signs, bounds), best)
    return torch.where(idle[:, None, None, None], turned, point)


def propose_each(
    best: Tensor,
    x: Tensor,
    eps: float,
    shares: Sequence[float],
    bounds: Bounds,
    generator: torch.Generator,
) -> Tensor:
    """Propose as `propose` does, for each image by a square of its own share of pixels (m,)."""
    point, own = best.clone(), torch.tensor(shares, dtype=torch.float64)
    for share in own.unique().tolist():
        rows = own == share
        point[rows] = propose(best[rows], x[rows], eps, share, bounds, generator)
    return point


def differ(margin: Tensor, before: Tensor) -> Tensor:
    """Which margins (n,) are others than before, more than rounding tells (n,) bool."""
    return (margin - before).abs() > TOLERANCE * (1 + before.abs())


def margins(scores: Tensor, y: Tensor) -> Tensor:
    """Margins (n,) of scores (n, classes): the right class's less the best other's.

    Negative where misclassified; `y` are the labels (n,).
    """
    right = scores.gather(1, y[:, None])[:, 0]
    others = scores.scatter(1, y[:, None], -math.inf).amax(1)
    return right - others


def art_square(
    api: Api,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    budget: int,
    seed: int,
    bounds: tuple[float, float],
    classes: int,
) -> Tensor:
    """ART's `SquareAttack`, unchanged: it knows no clock and asks up to three times an iteration.

    Arguments as in `clock_square`; `seed` is NumPy's while it runs. An iteration first asks about
    all images, then twice about those that are not misclassified yet; so lanes are told apart.

    Returns:
        ART's proposals; the clean images where the budget ended it.
    """
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    everyone = torch.arange(len(x))
    lanes = {"robust": everyone}

    def answer(inputs: Any) -> Any:
        asked = everyone if len(inputs) == len(x) else lanes["robust"]
        assert len(asked) == len(inputs), "ART asks about all images or about the robust ones"
        return array(api(tensor(inputs).to(x.dtype), asked))

    def adversarial(scores: Any, labels: Any) -> Any:
        """ART's own criterion; only ever called on the scores of all images."""
        wrong = np.argmax(scores, axis=1) != np.argmax(labels, axis=1)
        lanes["robust"] = torch.from_numpy(np.flatnonzero(~wrong))
        return wrong

    estimator = BlackBoxClassifierNeuralNetwork(
        answer, tuple(x.shape[1:]), classes, clip_values=bounds
    )
    height, width = x.shape[2:]
    attack = SquareAttack(
        estimator,
        adv_criterion=adversarial,
        max_iter=max(1, (budget - 3) // 3),
        eps=eps,
        # ART draws the corner below (side - square) and fails where nothing is left to draw.
        p_init=min(0.8, (min(height, width) - 1.5) ** 2 / (height * width)),
        batch_size=len(x),
        verbose=False,
    )
    with quiet(seed), contextlib.suppress(SpentError):
        return tensor(attack.generate(array(x), y.numpy())).to(x.dtype)
    return x.clone()


def hop_skip_jump(
    api: Api,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    bounds: tuple[float, float],
    classes: int,
) -> Tensor:
    """ART's `HopSkipJump` (Chen et al. 2020, arXiv 1904.02144), L-infinity: it reads labels alone.

    It finds its own start. It knows no clock; where it has come to its end, or hangs because the
    network changed, it begins again until the budget is spent.

    Args:
        x: clean inputs (n, ...). y: their labels (n,). seed: NumPy's while it runs.

    Returns:
        ART's last proposals; the clean inputs where the budget ended it.
    """
    from art.attacks.evasion import HopSkipJump

    proposed = x.clone()
    for lane in range(len(x)):
        with quiet(seed + lane), _seeded_states(), contextlib.suppress(SpentError):
            while True:
                with contextlib.suppress(_StuckError):
                    proposed[lane] = _hop(HopSkipJump, api, x, y, lane, bounds, classes)
    return proposed


def _hop(
    library: Any, api: Api, x: Tensor, y: Tensor, lane: int, bounds: tuple[float, float],
    classes: int,
) -> Tensor:  # fmt: skip
    """One run of HopSkipJump on one image."""
    failures = 0
    label = int(y[lane])

    def answer(inputs: Tensor) -> Tensor:
        nonlocal failures
        scores = api(inputs, torch.full((len(inputs),), lane))
        right = len(inputs) == 1 and int(scores[0].argmax()) == label
        failures = failures + 1 if right else 0
        if failures > _STUCK:
            raise _StuckError
        return scores

    estimator = black_box(answer, tuple(x.shape[1:]), classes, bounds, x.dtype)
    # A batch is ART's own matter: every input counts as one query.
    attack = library(estimator, batch_size=1024, norm=np.inf, verbose=False)
    one = slice(lane, lane + 1)
    return tensor(attack.generate(array(x[one]), y[one].numpy()))[0]


@contextlib.contextmanager
def _seeded_states() -> Iterator[None]:
    """Give unseeded `RandomState`s a seed: HopSkipJump draws its start from one (ART 1.20)."""
    original = np.random.RandomState

    class Seeded(original):  # type: ignore[misc, valid-type]
        def __init__(self, seed: int | None = None) -> None:
            super().__init__(np.random.randint(2**31) if seed is None else seed)

    np.random.RandomState = Seeded  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        np.random.RandomState = original  # type: ignore[misc]
