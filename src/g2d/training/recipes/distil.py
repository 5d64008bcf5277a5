"""Distillation: a student learns a teacher's soft labels, on clean inputs or on attacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from g2d.core.imports import import_attribute, words
from g2d.errors import PopulationError, SettingsError, TaskError
from g2d.settings import HardenSettings, Settings
from g2d.tasks.building import build_model
from g2d.tasks.builtin import blueprint
from g2d.tasks.one_logit import as_pairs, is_one_logit
from g2d.tasks.source import is_named
from g2d.tasks.task import Task
from g2d.training.recipes.step import Step, divergence
from g2d.vault.serving import open_to_serve
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import load_checkpoint, pack, unpack
from g2d.weights.foreign import fit_state
from g2d.weights.layout import whole_state


def distil(step: Step) -> Step:
    """Learn the teacher's soft labels (Hinton et al. 2015, arXiv 1503.02531).

        soft * T^2 * KL(p_T(teacher) || p_T(student)) + (1 - soft) * loss(student, labels)

    Before `adversarial` in the recipe it is robust distillation: attacks lead away from the
    teacher's predictions, and the student learns those predictions on the attacks as well as, with
    weight `clean`, on clean inputs (RSLAD, Zi et al. 2021, arXiv 2108.07969, equation 7).

    Raises:
        PopulationError: there is no teacher.
    """
    if step.teacher is None:
        raise PopulationError(
            "recipe 'distil' needs a teacher: set [harden] teacher to a vault, or to a checkpoint "
            "with teacher_model = 'module:function' (or a built-in task's name)"
        )
    s, y = step.settings, step.y
    with torch.no_grad():
        logits = step.teacher(step.x)
    heated = (logits / s.temperature).softmax(1)

    def criterion(student: Tensor) -> Tensor:
        loss = s.soft * s.temperature**2 * divergence(student, heated, s.temperature)
        return loss + (1 - s.soft) * step.task.loss_of(student, y) if s.soft < 1 else loss

    return step.replace(targets=logits.softmax(1), criterion=criterion)


@dataclass(frozen=True)
class Teacher:
    """A teacher as it travels to workers: its weights, and the name of what builds its model."""

    weights: bytes
    model: str

    def load(self, task: Task) -> Callable[[Tensor], Tensor]:
        """Build it, frozen, for a student's task.

        Raises:
            TaskError: its model cannot be built, does not take the task's inputs, or has other
                classes.
            CheckpointError: the weights do not fit the model.
        """
        state = unpack(self.weights, "the teacher")
        model = _build(self.model)
        name = f"the checkpoint of teacher {self.model!r}"
        model.load_state_dict(fit_state(whole_state(model), state, name).state)
        model.eval().requires_grad_(False)
        x = task.splits.guide.x[:2]
        try:
            logits = model(x)
            if is_one_logit(logits, len(x)):
                as_pairs(model)
                logits = model(x)
            classes = logits.shape[-1]
        except Exception as error:
            raise TaskError(
                f"the teacher does not take inputs {tuple(x.shape[1:])} of task {task.name!r}: "
                f"{words(error)}"
            ) from error
        if classes != task.classes:
            raise TaskError(
                f"the teacher knows {classes} classes, task {task.name!r} has {task.classes}; "
                "choose a teacher with the same classes"
            )
        return task.placed(model)


def find_teacher(settings: HardenSettings) -> Teacher | None:
    """Read the teacher that the settings name: a vault's live generation, or a checkpoint.

    Raises:
        SettingsError: a teacher without `distil`, or `distil` without a teacher; a checkpoint whose
            model is not named. VaultError, CheckpointError: it cannot be read.
    """
    if "distil" not in settings.recipe:
        if settings.teacher:
            raise SettingsError(
                f"[harden] names the teacher {settings.teacher}, and recipe "
                f"{list(settings.recipe)} does not use it; add 'distil', or drop the teacher"
            )
        return None
    if not settings.teacher:
        raise SettingsError(
            "recipe 'distil' needs a teacher: set [harden] teacher to a vault, or to a checkpoint "
            "with teacher_model = 'module:function' (or a built-in task's name)"
        )
    path = Path(settings.teacher).expanduser()
    if not path.exists():
        raise SettingsError(f"the teacher {path.absolute()} does not exist; name a vault or a file")
    if path.is_dir():
        return _of_vault(path, settings.teacher_model)
    if not settings.teacher_model:
        raise SettingsError(
            f"the teacher {path} is a checkpoint: set teacher_model to the 'module:function' that "
            "builds its model, or to a built-in task's name"
        )
    return Teacher(pack(load_checkpoint(path)), settings.teacher_model)


def _of_vault(path: Path, given: str) -> Teacher:
    with open_to_serve(path) as vault:
        live = vault.live()
        if live is None:
            raise SettingsError(f"the teacher's vault {path} has no generation yet; run `g2d fit`")
        named = given or Settings.from_vault(vault.settings_text, str(path / "task.toml")).task.name
        if not is_named(named):
            raise SettingsError(
                f"the teacher's vault {path} is of task {named!r}, which was given as an object; "
                "set [harden] teacher_model to the 'module:function' that builds its model"
            )
        if ":" in named and not given:
            # Whoever may write that vault would choose what code the student's training imports.
            raise SettingsError(
                f"the teacher's vault {path} is of task {named!r}; loading it runs that module. "
                f"If you trust it, set [harden] teacher_model = {named!r}"
            )
        return Teacher(vault.read_generation(live), named)


def _build(name: str) -> nn.Module:
    """Build the untrained model of a built-in task, of the user's task, or of a factory."""
    if ":" not in name:
        return build_model(blueprint(name).factory)
    make = import_attribute(name, "teacher model", TaskError)
    try:
        built = make()
    except Exception as error:
        raise TaskError(f"teacher model {name!r}: calling it raised {words(error)}") from error
    if isinstance(built, Task):
        built = built.factory()
    if not isinstance(built, nn.Module):
        raise TaskError(
            f"teacher model {name!r} gives {type(built).__name__}; name a function without "
            "arguments that returns a torch.nn.Module, or a built-in task"
        )
    return build_model(lambda: built)


def teacher_of(vault: Vault, harden: HardenSettings) -> Teacher | None:
    """The teacher of a vault: what is kept in it, or else what its settings name.

    A served teacher rotates; every member of a population learns from the same one.
    """
    kept = vault.entry("teacher")
    if kept is None or "distil" not in harden.recipe:
        return find_teacher(harden)
    return Teacher(vault.read(kept), str(kept.info["model"]))


def keep_teacher(vault: Vault, harden: HardenSettings) -> Teacher | None:
    """Find the teacher, and keep it in the vault from its first use on."""
    found = teacher_of(vault, harden)
    if found is not None and vault.entry("teacher") is None:
        vault.put("teacher", 0, {"weights": found.weights}, {"model": found.model})
    return found
