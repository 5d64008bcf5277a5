"""The layout of a task's model: which entries of its state move, which stay, which are tied."""

from __future__ import annotations

from g2d.settings import Settings
from g2d.tasks.task import Task
from g2d.weights.layout import Layout

_PROBE = 8  # examples that the model is run on, in training mode


def layout_of(task: Task) -> Layout:
    """Read the layout off a fresh model of a task and a few examples of its guide split.

    Raises:
        CheckpointError: an entry of the model's state is no tensor.
    """
    return Layout.of(task.model(0), task.splits.guide.x[:_PROBE])


def check_scope(task: Task, settings: Settings) -> None:
    """Check before anything is trained that something is in scope.

    Raises:
        SettingsError: nothing is. CheckpointError: an entry of the model's state is no tensor.
    """
    layout_of(task).in_scope(settings.autoencoder.scope)
