"""What is defended: tasks, data splits, networks, and how they are loaded."""

from g2d.tasks.builtin import load_task
from g2d.tasks.task import Task

__all__ = ["Task", "load_task"]
