"""AutoAttack, APGD and Square (Croce & Hein 2020, arXiv 2003.01690), run by pyautoattack.

The library takes inputs to be float32 in [0, 1], draws from torch's global generator and assumes
ten classes; all three are dealt with here. Needs `pip install 'g2d[attacks]'`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from g2d.attacks.art import quiet
from g2d.attacks.pgd import check_budget, project
from g2d.attacks.tables import is_region, through
from g2d.core.types import Bounds, Logits
from g2d.errors import SettingsError

VERSIONS = ("standard", "plus", "rand")


NO_BUDGET = (
    "it knows one eps for all features and drops rows on its way, so the budget of a table cannot "
    "be laid around it; APGD, PGD and our own Square are run inside the budget"
)
"""Why AutoAttack's ensemble and Square say nothing of a task that has a budget."""


def box(x: Tensor, eps: float, bounds: Bounds) -> Bounds:
    """Return the range of the data, or where there is none one that holds every ball around `x`.

    For attacks that must clip: in that range clipping changes nothing. A budget stays what it is.
    """
    if is_region(bounds):
        return bounds
    if bounds is not None or not len(x):
        return bounds or (0.0, 1.0)
    low, high = (float(end) for end in x.aminmax())
    slack = 0.01 * eps
    return low - eps - slack, high + eps + slack


def autoattack(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    seed: int,
    bounds: Bounds = (0.0, 1.0),
    version: str = "standard",
    batch: int = 250,
) -> Tensor:
    """Run AutoAttack under the L-infinity norm: "standard" is APGD-CE, APGD-T, FAB-T and Square.

    With fewer than ten classes, every class but the true one is a target. The targeted loss needs
    four classes and the untargeted ratio loss three: with fewer, APGD-T and APGD-DLR are left out.

    Args:
        model: maps inputs (n, ...) to logits (n, classes).
        x: clean inputs, shape (n, ...). y: their labels, shape (n,).
        eps: radius of the ball, in units of `x`.
        bounds: range of the data.
        version: "standard", "plus", or "rand" for a model that draws at random.
        batch: inputs at a time.

    Returns:
        Proposed inputs, shape of `x`, inside ball and range; the clean input where nothing worked.

    Raises:
        SettingsError: the data have no range, eps does not fit into it, or the version is unknown.
    """
    if version not in VERSIONS:
        raise SettingsError(f"AutoAttack comes as {', '.join(VERSIONS)}, not {version!r}")
    room = _UnitCube(x, eps, 1, bounds)
    if not len(x):
        return x.clone()
    from pyautoattack import AutoAttack

    with _silent(), quiet(seed):
        unit = room.enter(model)
        classes = unit(room.x[:1]).shape[-1]
        attack = AutoAttack(unit, eps=room.eps, seed=seed, version=version)
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
        impossible = {"apgd-t"} if classes == 3 else {"apgd-t", "apgd-dlr"} if classes < 3 else {}
        attack.attacks_to_run = [a for a in attack.attacks_to_run if a not in impossible]
        found, _ = attack.run_standard_evaluation(room.x, y, batch_size=batch)
    return room.leave(found)


def apgd(
    models: Logits | Sequence[Logits],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    seed: int,
    bounds: Bounds = (0.0, 1.0),
    loss: Literal["ce", "dlr"] = "ce",
    restarts: int = 1,
    keep: Literal["loss", "flip"] = "loss",
    batch: int = 250,
) -> Tensor:
    """Run AutoAttack's APGD on one model, or jointly on the summed loss of several.

    The library's own loop does the work; the joint loss enters by the one hook that it has for a
    loss of logits. Highest loss is what carries over to other networks; to flip this one network
    an iterate of lower loss may do.

    Args:
        models: one map from inputs (n, ...) to logits (n, classes), or several.
        x: clean inputs, shape (n, ...). y: their labels, shape (n,).
        eps: radius of the ball, in units of `x`.
        steps: gradient steps a restart. restarts: each from a random start of its own.
        bounds: range of the data.
        loss: cross-entropy, or the difference of logits ratio (three classes or more).
        keep: of all iterates the one of highest "loss", or, with one model, the last that made it
            err ("flip") and the highest loss where none did.
        batch: inputs at a time.

    Returns:
        Proposed inputs, shape of `x`, inside ball and range.

    Raises:
        SettingsError: the data have no range, eps does not fit into it, no step is asked for, the
            loss is unknown, or "flip" is asked for with several models.
    """
    ensemble = [models] if callable(models) else list(models)
    _room(x, eps, min(steps, restarts), bounds)
    if loss not in ("ce", "dlr"):
        raise SettingsError(f'APGD takes the loss "ce" or "dlr", not {loss!r}')
    if keep == "flip" and len(ensemble) > 1:
        raise SettingsError('keep="flip" asks whether one model errs; give one, or keep="loss"')
    if not len(x):
        return x.clone()
    parts = []
    for clean, label in zip(x.split(batch), y.split(batch), strict=True):
        room = _room(clean, eps, min(steps, restarts), bounds)
        attack = _apgd([room.enter(model) for model in ensemble], room.eps, steps, loss)
        with _silent(), quiet(seed):
            parts.append(room.leave(_best(attack, room.x, label, restarts, keep == "flip")))
    return torch.cat(parts)


def square(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    queries: int,
    seed: int,
    bounds: Bounds = (0.0, 1.0),
    batch: int = 250,
) -> Tensor:
    """Run AutoAttack's Square: random search on the scores, no gradients (arXiv 1912.00049).

    Args:
        queries: forward passes for each input; the sizes of the squares are scheduled for as many.
        Others as in `autoattack`.

    Returns:
        Proposed inputs, shape of `x`, inside ball and range; the clean input where nothing worked.

    Raises:
        SettingsError: the data have no range, eps does not fit into it, or no query is allowed.
    """
    room = _UnitCube(x, eps, queries, bounds)
    if not len(x):
        return x.clone()
    from pyautoattack.square import SquareAttack

    attack = SquareAttack(room.enter(model), n_queries=queries, eps=room.eps, seed=seed)
    with _silent(), quiet(seed), torch.no_grad():
        parts = [
            attack.perturb(u, label)
            for u, label in zip(room.x.split(batch), y.split(batch), strict=True)
        ]
    return room.leave(torch.cat(parts))


def _apgd(members: Sequence[Logits], eps: float, steps: int, loss: str) -> Any:
    """Build pyautoattack's APGD for the summed loss of several models.

    Its loss for logits is the method `dlr_loss`; that name is the hook, whatever the loss is. The
    members' logits travel through it side by side, shape (n, members · classes).
    """
    from pyautoattack.autopgd_base import APGDAttack

    def logits(u: Tensor) -> Tensor:
        return torch.cat([member(u) for member in members], 1)

    attack = APGDAttack(
        logits, n_iter=steps, eps=eps, loss="dlr", device="cpu", logger=logging.getLogger(_LOGGER)
    )
    ratio = attack.dlr_loss

    def summed(z: Tensor, label: Tensor) -> Tensor:
        parts = z.unflatten(1, (len(members), -1)).unbind(1)
        if loss == "dlr":
            return torch.stack([ratio(part, label) for part in parts]).sum(0)
        return torch.stack([F.cross_entropy(p, label, reduction="none") for p in parts]).sum(0)

    attack.dlr_loss = summed
    return attack


def _best(attack: Any, u: Tensor, label: Tensor, restarts: int, flip: bool) -> Tensor:
    """Run APGD's restarts; keep the highest loss, or first of all what made the model err."""
    attack.init_hyperparam(u)
    best, best_value = u.clone(), torch.full((len(u),), -torch.inf)
    for _ in range(restarts):
        point, correct, value, erring = attack.attack_single_run(u, label)
        if flip:
            point = torch.where(_like(correct, u), point, erring)
            value = torch.where(correct, value, torch.inf)
        better = value > best_value
        best = torch.where(_like(better, u), point, best)
        best_value = torch.where(better, value, best_value)
    return best.detach()


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.view(-1, *(1 for _ in x.shape[1:]))


def _room(x: Tensor, eps: float, steps: int, bounds: Bounds) -> _UnitCube | _Moves:
    return (_Moves if is_region(bounds) else _UnitCube)(x, eps, steps, bounds)


class _Moves:
    """Moves inside a budget as the library wants inputs: 0.5 leaves a feature where it is.

    0 and 1 are its largest changes. The library searches the whole cube; each point becomes a valid
    input before a network sees it, with the gradient of the identity. That asks that rows keep
    their order, which APGD's do; what attacks a part of the rows cannot be wrapped so.
    """

    def __init__(self, x: Tensor, eps: float, steps: int, bounds: Bounds) -> None:
        assert is_region(bounds)
        check_budget(eps, steps, bounds)
        self.clean, self.region, self.budget, self.eps = x.detach(), bounds, eps, 0.5
        self.radius = bounds.radius(eps, x)
        self.x = torch.full((len(x), 1, 1, x[:1].numel()), 0.5)

    def enter(self, model: Logits) -> Logits:
        """Wrap a model so that it takes moves."""

        def wrapped(u: Tensor) -> Tensor:
            return model(through(self.region, self._out(u), self.clean, self.budget)).float()

        return wrapped

    def _out(self, u: Tensor) -> Tensor:
        move = (2 * u.reshape(self.clean.shape) - 1).to(self.clean.dtype)
        return self.clean + move * self.radius

    def leave(self, found: Tensor) -> Tensor:
        """What became of the moves."""
        return self.region.project(self._out(found.detach()), self.clean, self.budget)


class _UnitCube:
    """Data as pyautoattack wants them: float32 in [0, 1] with four axes, and the way back.

    Images in [0, 1] pass through untouched, so that results are those of a direct call.
    """

    def __init__(self, x: Tensor, eps: float, steps: int, bounds: Bounds) -> None:
        if is_region(bounds):
            raise SettingsError(f"this attack is not run on a table with a budget: {NO_BUDGET}")
        if bounds is None:
            raise SettingsError(
                "AutoAttack clips to the range of the data, and these have none; give the bounds "
                "that hold, or those of g2d.attacks.box"
            )
        check_budget(eps, steps, bounds)
        self.clean, self.bounds, self.clean_eps = x, bounds, eps
        self.low, self.width = bounds[0], bounds[1] - bounds[0]
        self.plain = self.low == 0 and self.width == 1 and x.dtype == torch.float32
        self.eps = eps / self.width
        # Square wants channels, height and width: a row of features is an image of one line.
        self.shape = x.shape[1:] if x.dim() == 4 else (1, 1, x[:1].numel())
        u = x.detach() if self.plain else ((x.detach() - self.low) / self.width).float()
        self.x = u.reshape(-1, *self.shape)

    def enter(self, model: Logits) -> Logits:
        """Wrap a model so that it takes inputs of the unit cube."""
        if self.plain and self.shape == self.clean.shape[1:]:
            return model

        def wrapped(u: Tensor) -> Tensor:
            v = u.reshape(-1, *self.clean.shape[1:])
            return model(v if self.plain else self._out(v)).float()

        return wrapped

    def _out(self, v: Tensor) -> Tensor:
        return v.to(self.clean.dtype) * self.width + self.low

    def leave(self, found: Tensor) -> Tensor:
        """Bring proposals back to the units and the shape of the data."""
        v = found.detach().reshape(self.clean.shape)
        return project(v if self.plain else self._out(v), self.clean, self.clean_eps, self.bounds)


_LOGGER = "auto-attack"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep pyautoattack's logger still, and put back the trace function that its checks remove."""
    logger, trace = logging.getLogger(_LOGGER), sys.gettrace()
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
        sys.settrace(trace)
