"""Inference about training data: membership by likelihood ratio, and reconstruction of classes.

The likelihood ratio attack is ours (LiRA, Carlini et al. 2022, arXiv 2112.03570); the second
opinion and the inversion are ART's. How well any of them works is judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from g2d.attacks.art import array, black_box, quiet, white_box
from g2d.errors import SettingsError
from g2d.tasks.task import Task


def logit_confidence(logits: Tensor, y: Tensor) -> Tensor:
    """phi = log(p_y / (1 - p_y)) of the true class, shape (n,): near normal (LiRA, section IV-C).

    From logits, so that it stays finite where p_y rounds to 1: z_y - logsumexp of the others.
    """
    z = logits.double()
    true = z.gather(1, y.view(-1, 1)).squeeze(1)
    return true - z.scatter(1, y.view(-1, 1), -torch.inf).logsumexp(1)


def halves(shadows: int, points: int, generator: torch.Generator) -> Tensor:
    """Choose who is in which shadow's training set, (shadows, points) bool.

    Every shadow holds half of the points, and every point is in half of the shadows: orders are
    drawn in complementary pairs, a half and its other half.

    Raises:
        SettingsError: fewer than two shadows: nothing could be compared.
    """
    if shadows < 2:
        raise SettingsError(f"{shadows} shadow model(s) cannot be compared; train at least two")
    inside = torch.zeros(shadows, points, dtype=torch.bool)
    for pair in range(0, shadows, 2):
        order = torch.randperm(points, generator=generator)
        inside[pair, order[: points // 2]] = True
        if pair + 1 < shadows:
            inside[pair + 1] = ~inside[pair]
    return inside


def likelihood_ratio(phi: Tensor, shadow_phi: Tensor, inside: Tensor) -> Tensor:
    """Score membership by online LiRA (algorithm 1): log N(phi; in) - log N(phi; out).

    Each point has two normal distributions of its own means; the variances are pooled over all
    points, as the paper advises for few shadows. A point that is never in, or never out, scores 0.

    Args:
        phi: the target's logit-scaled confidence of each point, (n,).
        shadow_phi: that of every shadow, (shadows, n). inside: who was trained on what, likewise.

    Returns:
        scores (n,); larger: more likely a member.
    """
    mean_in, var_in = _normal(shadow_phi, inside)
    mean_out, var_out = _normal(shadow_phi, ~inside)
    ratio = (phi - mean_out).square() / (2 * var_out) - (phi - mean_in).square() / (2 * var_in)
    ratio = ratio + 0.5 * (var_out.log() - var_in.log())
    return torch.where(mean_in.isnan() | mean_out.isnan(), torch.zeros_like(ratio), ratio)


def matched(phi: Tensor, shadow_phi: Tensor) -> Tensor:
    """Shift and stretch a target's confidences (n,) to the mean and spread of the shadows'.

    A target that was trained for longer, or generated, is surer of everything; the attacker sees
    that in its answers and takes it out. It raised the rate of true positives a little on MNIST.
    """
    spread = phi.std().clamp_min(1e-12)
    return (phi - phi.mean()) / spread * shadow_phi.std() + shadow_phi.mean()


def _normal(phi: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the chosen values of each point (n,), NaN where there is none; pooled variance."""
    count = chosen.sum(0)
    mean = torch.where(chosen, phi, 0.0).sum(0) / count
    squares = torch.where(chosen, (phi - mean).square(), 0.0).sum()
    free = (count - 1).clamp_min(0).sum()
    # One value for each point leaves no spread to measure; that over all is the nearest.
    pooled = squares / free if int(free) else phi.var()
    return mean, pooled.clamp_min(1e-12)


def art_membership(
    task: Task,
    shadow_logits: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    targets: Sequence[Tensor],
    y: Tensor,
    seed: int,
) -> list[Tensor]:
    """ART's black-box membership attack: a random forest, trained on one shadow's answers.

    Args:
        shadow_logits: logits of a shadow on what it was trained on, and on what it was not.
        labels: true classes of both. targets: logits (n, classes) of every network attacked.
        y: true classes of the points asked about, (n,).

    Returns:
        the probability of membership of every point, (n,) for each target.
    """
    from art.attacks.inference.membership_inference import MembershipInferenceBlackBox

    shape = tuple(task.splits.train.x.shape[1:])
    known = black_box(lambda x: x.new_zeros(len(x), task.classes), shape, task.classes, task.bounds)
    with quiet(seed):
        attack = MembershipInferenceBlackBox(known, attack_model_type="rf")
        attack.fit(
            y=labels[0].numpy(), test_y=labels[1].numpy(),
            pred=array(shadow_logits[0].softmax(1)), test_pred=array(shadow_logits[1].softmax(1)),
        )  # fmt: skip
        scores = [
            attack.infer(None, y.numpy(), pred=array(z.softmax(1)), probabilities=True)
            for z in targets
        ]
    return [torch.from_numpy(np.asarray(score)).reshape(-1).double() for score in scores]


class _Ensemble(nn.Module):
    """Probabilities from the mean logits of several networks."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([model(x) for model in self.models]).mean(0).softmax(1)


def invert(
    models: Sequence[nn.Module], start: Tensor, label: int, task: Task, *, steps: int, rate: float,
    seed: int,
) -> Tensor:  # fmt: skip
    """Reconstruct a class by ART's MIFace (Fredrikson et al. 2015): climb its probability.

    Args:
        models: networks whose logits are averaged. start: images (n, ...) to climb from.
        steps: gradient steps. rate: length of a step as a multiple of the gradient.

    Returns:
        images (n, ...) inside the data range.
    """
    from art.attacks.inference.model_inversion import MIFace

    shape = tuple(start.shape[1:])
    target = white_box(_Ensemble(models), shape, task.classes, task.bounds, dtype=start.dtype)
    with quiet(seed):
        # threshold=1: no early stop, so that steps are what was spent.
        attack = MIFace(
            target, max_iter=steps, threshold=1.0, learning_rate=rate, batch_size=len(start),
            verbose=False,
        )  # fmt: skip
        found = attack.infer(array(start), np.full(len(start), label))
    return torch.from_numpy(np.asarray(found)).to(start.dtype)
