"""A client's loss without what the frequencies of its own labels explain."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from g2d.tasks.splits import Split
from g2d.tasks.task import Task


def balanced(task: Task, records: Split) -> Task:
    """The task with the loss of calibrated logits, loss(z + log p, y), for training alone.

    p (classes,) are the frequencies of the records' labels, each counted once more: Zhang et al.
    2022 (FedLC, arXiv 2209.00189), with the margin of Menon et al. 2021 (arXiv 2007.07314, equation
    10). A client that has mostly ones then does not teach that everything is a one, so that honest
    answers lie nearer each other where clients' labels differ, which is what robust rules need.
    What is learned is the network of equally frequent labels. p leaves no client.
    """
    counts = torch.bincount(records.y, minlength=task.classes).double() + 1
    prior = (counts / counts.sum()).log()

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return task.loss(logits + prior.to(logits), y)

    made = replace(task, loss=loss)
    object.__setattr__(made, "_origin", task.origin)
    return made
