"""What cannot be trained privately, each refused in one line before anything is spent.

How it is trained is in `private`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from g2d.errors import SettingsError
from g2d.protect.privacy.accounting import require
from g2d.settings import HardenSettings, PopulationSettings, PrivacySettings
from g2d.settings.privacy import PUBLIC
from g2d.tasks.task import Task
from g2d.training.recipes.hardened import find, try_out
from g2d.training.recipes.private import Private, PrivatePlan, require_opacus
from g2d.training.recipes.private_forks import check_public_forks
from g2d.training.recipes.private_gradients import pick
from g2d.training.recipes.private_public import check_public
from g2d.weights.layout import same_bits

_BUILT_IN = {"l2", "clamp", "adversarial"}  # of parameters alone, or of each record by itself


def check_private_training(
    task: Task,
    privacy: PrivacySettings,
    population: PopulationSettings,
    harden: HardenSettings,
    marked: bool = False,
) -> None:
    """Refuse what would give no guarantee, or one that is not worth its name.

    Args:
        marked: whether networks are to carry a watermark.

    Raises:
        SettingsError: a setting, a recipe or the model does not allow private training.
        G2DError: opacus or dp-accounting is not installed.
    """
    require()
    require_opacus()
    check_numbers(privacy)
    _check_population(privacy, population)
    _check_recipes(harden, marked)
    check_public(task, privacy.public_steps)
    check_public_forks(task, privacy, population)
    check_model(task)
    few = PrivatePlan(replace(privacy, batch=min(4, privacy.batch)), privacy.noise)
    try_out(task, harden, private=Private(few))


def check_numbers(p: PrivacySettings) -> None:
    """Refuse numbers that prove nothing.

    Raises:
        SettingsError: they do not.
    """
    if p.records == 0:
        raise SettingsError(
            "[privacy] records is missing: say about how many records there are to train on, as a "
            "round number that may be known to all; counting them would tell of each one"
        )
    if p.batch >= p.records:
        raise SettingsError(
            f"[privacy] batch = {p.batch} of records = {p.records} is a sampling rate of "
            f"{p.batch / p.records:g}, and it has to be below 1: lower batch (a hundredth of "
            "records is usual)"
        )
    if p.delta >= 1 / p.records:
        raise SettingsError(
            f"[privacy] delta = {p.delta:g} is not below 1 in {p.records} records: to publish one "
            f"record as it is would pass as private. Set delta below {1 / p.records:.1g}"
        )
    for name, noise in (("noise", p.noise), ("fork_noise", p.fork_noise)):
        if noise == 0:
            raise SettingsError(
                f"[privacy] {name} = 0 hides nothing, so that no epsilon can be given; set it "
                "above 0 (1 to 4 is usual), or enabled = false"
            )


def _check_population(privacy: PrivacySettings, s: PopulationSettings) -> None:
    if privacy.forks == PUBLIC:
        return  # early checkpoints read nobody either, and are free
    if s.recipe != "seeds" and (s.basins != 1 or s.early_steps != 0):
        raise SettingsError(
            f"[population] basins = {s.basins} and early_steps = {s.early_steps} would train early "
            "checkpoints, which are paid for as a base is; private members begin at the base: set "
            "basins = 1 and early_steps = 0, or [privacy] forks = 'public'"
        )


def _check_recipes(s: HardenSettings, marked: bool) -> None:
    for name in s.recipe:
        if name not in _BUILT_IN and not find(name).per_record:
            why = {
                "distil": "its teacher may have learned from the same records",
                "watermark": "it learns triggers beside records",
            }.get(name, "it may mix examples, and nothing says otherwise (Recipe.per_record)")
            raise SettingsError(
                f"[harden] recipe {name!r} cannot be part of private training: {why}. Take it out, "
                "or set [privacy] enabled = false"
            )
    if marked:
        raise SettingsError(
            "[watermark] key is set, and private training learns no triggers beside records; set "
            "it to '', or [privacy] enabled = false"
        )
    if "l2" in s.recipe and s.penalty:
        raise SettingsError(
            f"[harden] penalty = {s.penalty:g} belongs to no record, and would be clipped with "
            "each; set penalty = 0 and decay, which acts after the step"
        )
    if "adversarial" in s.recipe and s.method == "trades":
        raise SettingsError(
            "[harden] method = 'trades' is not learned record by record; set 'pgd' or 'fgsm' for "
            "private training"
        )


def check_model(task: Task) -> None:
    """Refuse a model that brings records together, or counts them, as batch norm does.

    Raises:
        SettingsError: it does, or its gradients cannot be found record by record.
    """
    model = task.model(0).train()
    for name, module in model.named_modules():
        counts = isinstance(module, _InstanceNorm) and module.track_running_stats
        if isinstance(module, _BatchNorm) or counts:
            raise SettingsError(
                f"the model has {type(module).__name__} ({name or 'itself'}), which mixes the "
                "records of a batch: private training needs nn.GroupNorm (or LayerNorm) in its "
                "place"
            )
    _watch(task, model)
    pick(model, task)


def _watch(task: Task, model: nn.Module) -> None:
    """Run made-up inputs: is an answer that of its own input alone, and does nothing add up?"""
    known = task.splits.train.x
    one, other = torch.zeros_like(known[:1]), torch.ones_like(known[:1])
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    first = _answer(model, one, one)
    if not torch.allclose(first, _answer(model, one, other), rtol=1e-3, atol=1e-5):
        raise SettingsError(
            "the model's answer to an input changes with the others of its batch, so that a "
            "record's gradient is not its own: use layers that take each example by itself "
            "(nn.GroupNorm in the place of batch statistics)"
        )
    moved = [n for n, tensor in model.named_buffers() if not same_bits(before[n], tensor)]
    if moved:
        raise SettingsError(
            f"the model changes its buffer {moved[0]!r} as it runs, without clip or noise: private "
            "training needs layers that count nothing (nn.GroupNorm in the place of batch norm)"
        )


def _answer(model: nn.Module, one: Tensor, other: Tensor) -> Tensor:
    """The logits of the first of four inputs; dropout falls the same way each time."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(torch.cat([one, other, other, other]))[0]
