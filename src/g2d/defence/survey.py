"""What a task is, before anything is trained: what is in scope, what aligns, what it will cost.

`survey` is what `g2d check` prints. The costs are estimated in `costs`; whether the task fits
itself was checked when it was made (`g2d.tasks.probe`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from g2d.attacks.pgd import check_budget
from g2d.core.imports import words
from g2d.defence.costs import Cost, estimate
from g2d.defence.kinds import check_kind
from g2d.errors import G2DError, SettingsError, TaskError
from g2d.generator import hidden_units
from g2d.protect.watermark.mark import Mark
from g2d.settings import Settings
from g2d.tasks.probe import check_training
from g2d.tasks.task import Task
from g2d.training.layouts import check_scope, layout_of
from g2d.training.recipes import (
    check,
    check_mark,
    check_private_training,
    find_teacher,
    try_out,
)
from g2d.weights.checkpoints import pack, unpack
from g2d.weights.codec import Codec


@dataclass(frozen=True)
class Entry:
    """One tensor of a state dict.

    Attributes:
        scoped: generations differ in it. stays: every member has the base's, bit for bit.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scoped: bool
    stays: bool


@dataclass(frozen=True)
class Survey:
    """What was found of a task.

    Attributes:
        entries: its state dict. parameters: how many numbers its parameters are.
        size: values in scope; what has several names counts once, a complex number as two.
        layers: units of each hidden layer that alignment sees through; (): it sees none.
        hidden: hidden layers of a plain chain, whether or not all their tensors are in scope.
        costs: estimates, each of one stage.
    """

    entries: tuple[Entry, ...]
    parameters: int
    size: int
    layers: tuple[int, ...]
    hidden: int
    costs: tuple[Cost, ...]


def check_all(task: Task, settings: Settings) -> None:
    """Check what depends on settings, too: batch, packing, hardening, budgets.

    Raises:
        TaskError: the task cannot be trained with this batch, or its state cannot be kept.
        SettingsError: the scope holds nothing that moves, or a recipe or a budget of [harden] or
            [guidance] does not fit, or the sampler and what it is asked for.
        CheckpointError, VaultError: the teacher does not.
        KeyFileError: the watermark's key cannot be read.
    """
    if settings.population.batch != _own_batch(task):
        check_training(task, settings.population.batch)
    check_packing(task)
    check_kind(task, settings)
    check_scope(task, settings)
    check(task, settings.harden)
    mark = Mark.of(settings.watermark, task)
    check_mark(settings.harden, mark)
    if settings.privacy.enabled:
        check_private_training(
            task, settings.privacy, settings.population, settings.harden, mark is not None
        )
    else:
        try_out(task, settings.harden, find_teacher(settings.harden), mark)
    if settings.generator.space == "soup" and settings.diffusion.distance_weight > 0:
        raise SettingsError(
            "[diffusion] distance_weight trains the diffusion model, and [generator] space is "
            "'soup', which trains nothing; set space to 'diffusion', or the weight to 0"
        )
    try:
        check_budget(settings.guidance.robust_eps, 1, task.reach)
    except SettingsError as error:
        raise SettingsError(f"[guidance] robust_eps: {error}") from None


def check_packing(task: Task) -> None:
    """Check that every entry of the state is a tensor that a file keeps, bit for bit.

    Raises:
        TaskError: names the first that does not.
    """
    for name, value in task.model(0).state_dict().items():
        try:
            data = pack({name: value})
            same = pack(unpack(data)) == data
        except (G2DError, ArithmeticError, AttributeError, LookupError, OSError, RuntimeError,
                TypeError, ValueError) as error:  # fmt: skip
            kind = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else ""
            raise TaskError(
                f"task {task.name!r}: {name!r} of its state dict cannot be kept in a vault "
                f"({kind or type(value).__name__}: {words(error)}); expected a tensor: leave it "
                "out of the state dict, or make it one (register_buffer)"
            ) from error
        if not same:
            raise TaskError(
                f"task {task.name!r}: {name!r} of its state dict does not come back from a file "
                "as it was; make it a plain, dense tensor"
            )


def survey(task: Task, settings: Settings) -> Survey:
    """Look at a task and estimate what its defence will cost.

    Raises:
        SettingsError: a pattern of the scope matches nothing.
    """
    model = task.model(0)
    state = model.state_dict()
    layout, scope = layout_of(task), settings.autoencoder.scope
    codec = Codec.fit([state], scope, layout)
    scoped, stays = layout.in_scope(scope), layout.stays(scope)
    entries = tuple(
        Entry(name, tuple(t.shape), str(t.dtype)[6:], name in scoped, name in stays)
        for name, t in state.items()
    )
    return Survey(
        entries,
        sum(parameter.numel() for parameter in model.parameters()),
        codec.size,
        tuple(layer.units for layer in hidden_units(task, scoped)),
        len(hidden_units(task)),
        estimate(task, settings, codec.size),
    )


def _own_batch(task: Task) -> int:
    """The batch that the task was tried with when it was made."""
    population = task.settings.get("population", {})
    return int(population.get("batch", Settings().population.batch))
