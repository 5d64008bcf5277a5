"""Substitution of tokens, greedy or by beam, guided by the gradient through the embedding.

It proposes; whoever scores undoes what the budget does not allow and judges with its own forward
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from g2d.core.devices import home_of
from g2d.core.types import Logits
from g2d.errors import TaskError
from g2d.tasks.embeddings import Reading, watch
from g2d.tasks.tokens import TokenBudget

Draw = Callable[[], Sequence[Logits]]
_ROOM = 16_000_000  # scores at a time: 64 MB


@dataclass(frozen=True)
class Search:
    """How hard to search: `edits` rounds, `tries` substitutions tried a round, `beam` kept.

    With one try and a beam of one nothing is tried out: each round takes the best substitution to
    first order, which costs one gradient (HotFlip, Ebrahimi et al. 2018, arXiv 1712.06751).
    """

    edits: int
    tries: int
    beam: int

    @classmethod
    def of(cls, budget: TokenBudget, how: str) -> Search:
        """The search of a budget: 'light' (first order alone), 'greedy' or 'beam'."""
        tries = 1 if how == "light" else budget.tries
        return cls(budget.edits, tries, budget.beam if how == "beam" else 1)


def substitute(
    draw: Draw,
    x: Tensor,
    y: Tensor,
    budget: TokenBudget,
    search: Search,
) -> Tensor:
    """Maximise the summed cross-entropy of models over substitutions of tokens.

    A round scores every substitution of token t by c at each place by the first-order gain

        (E_c - E_t) . d loss / d E_t,

    summed over models, tries the best ones out and keeps those with the largest loss; each round
    replaces one more token. What comes back is, of all that was tried, what had the largest loss.

    Args:
        draw: the models of one round, each a module whose `nn.Embedding` reads the ids; several
            are attacked jointly.
        x: token ids (n, ...). y: labels (n,), or probabilities (n, classes).

    Returns:
        Proposed ids, shape and dtype of `x`, within the budget.

    Raises:
        TaskError: no embedding of a model reads the ids.
    """
    places, options = max(1, x[:1].numel()), budget.table.shape[1]
    batch = max(1, min(500, _ROOM // (places * options * search.beam)))
    parts = [
        _Beams(part, label, budget, search).run(draw)
        for part, label in zip(x.split(batch), y.split(batch), strict=True)
    ]
    return torch.cat(parts).to(x.device) if parts else x.clone()


class _Beams:
    """Partly edited inputs (n, B, P) of a batch, and the best that was seen of each example."""

    def __init__(self, x: Tensor, y: Tensor, budget: TokenBudget, search: Search) -> None:
        self.shape, self.clean, self.y = x.shape, x.flatten(1), y
        self.budget, self.search = budget, search
        self.free = budget.replaceable(x).flatten(1)
        self.now = self.clean[:, None]
        self.best = self.clean.clone()
        self.highest = torch.full((len(x),), -torch.inf, device=x.device)

    def run(self, draw: Draw) -> Tensor:
        for _ in range(self.search.edits):
            models = draw()
            self._move(home_of(models, self.now))
            proposals = self._proposals(models)
            if self.search.tries == 1 and self.search.beam == 1:
                self.now, self.best = proposals, proposals[:, 0]
            else:
                self._keep(models, proposals)
        return self.best.view(self.shape)

    def _move(self, device: torch.device) -> None:
        """Go on where the models are."""
        for name in ("clean", "y", "free", "now", "best", "highest"):
            setattr(self, name, getattr(self, name).to(device))

    def _proposals(self, models: Sequence[Logits]) -> Tensor:
        """Each beam's most promising substitutions, one token more: (n, B * tries, P)."""
        n, beams, places = self.now.shape
        gains = self._gains(models)  # (n * B, P, m)
        options = self._options()
        count = min(self.search.tries, gains[0].numel())
        top, at = gains.flatten(1).topk(count, 1)
        place = at // gains.shape[2]
        new = options.expand_as(gains).flatten(1).gather(1, at)
        made = self.now.reshape(n * beams, 1, places).repeat(1, count, 1)
        old = made.gather(2, place[..., None])
        new = torch.where(top.isfinite(), new.to(made.dtype), old[..., 0])
        made.scatter_(2, place[..., None], new[..., None])
        return made.view(n, beams * count, places)

    def _options(self) -> Tensor:
        """Ids that may be put in: (1, 1, m), or (n * B, P, m) where that hangs on the token."""
        table = self.budget.table.to(self.now.device)
        if len(table) == 1:
            return table[None]
        clean = self.clean[:, None].expand_as(self.now).flatten(0, 1)
        return table[clean.long().clamp(0, len(table) - 1)]

    def _gains(self, models: Sequence[Logits]) -> Tensor:
        """First-order gain of each substitution, -inf where it may not be: (n * B, P, m)."""
        n, beams, places = self.now.shape
        x, y = self.now.reshape(n * beams, places), self.y.repeat_interleave(beams, 0)
        options = self._options()
        total = torch.zeros((), device=x.device)
        for model in models:
            for reading, gradient in _gradients(model, x.view(-1, *self.shape[1:]), y):
                weight, slope = reading.weight, gradient.reshape(len(x), places, -1)
                if len(options) == 1:
                    gain = slope @ weight[options[0, 0]].T
                else:
                    gain = torch.einsum("npd,npmd->npm", slope, weight[options.clamp_min(0)])
                total = total + gain - (slope * weight[x]).sum(2, keepdim=True)
        clean = self.clean[:, None].expand_as(self.now).reshape(n * beams, places)
        free = self.free[:, None].expand_as(self.now).reshape(n * beams, places) & (x == clean)
        barred = ~free[..., None] | (options == x[..., None]) | (options < 0)
        return total.masked_fill(barred, -torch.inf)

    @torch.no_grad()
    def _keep(self, models: Sequence[Logits], proposals: Tensor) -> None:
        """Keep the best beams of all proposals, and remember the best of all rounds."""
        n, count, places = proposals.shape
        losses = torch.zeros(n, count, device=proposals.device)
        inputs = proposals.reshape(-1, *self.shape[1:])
        y = self.y.repeat_interleave(count, 0)
        for model in models:
            losses += F.cross_entropy(model(inputs), y, reduction="none").float().view(n, count)
        if self.search.beam > 1:  # the same two edits in another order are one proposal
            losses[_repeated(proposals)] = -torch.inf
        top, at = losses.topk(min(self.search.beam, count), 1)
        self.now = proposals.gather(1, at[..., None].expand(-1, -1, places))
        better = top[:, 0] > self.highest
        self.best[better], self.highest[better] = self.now[better, 0], top[better, 0]


def _repeated(proposals: Tensor) -> Tensor:
    """Which proposals (n, k, P) stand before themselves in the same row; (n, k) bool."""
    same = (proposals[:, :, None] == proposals[:, None]).all(3)
    return same.tril(-1).any(2)


def _gradients(model: Logits, x: Tensor, y: Tensor) -> list[tuple[Reading, Tensor]]:
    """What of the model reads the ids, each with the gradient of the summed loss by its output."""
    if not isinstance(model, nn.Module):
        raise TaskError("token attacks look for the embedding of a module, and this is a function")
    with torch.enable_grad(), watch(model, x) as found:
        loss = F.cross_entropy(model(x), y, reduction="sum")
        if not found:
            raise TaskError(
                "no nn.Embedding of the model reads the token ids as they are; give the task an "
                "attack of your own (attack=…), or attack='none'"
            )
        made = torch.autograd.grad(loss, [one.output for one in found], allow_unused=True)
    return [
        (one, torch.zeros_like(one.output) if gradient is None else gradient)
        for one, gradient in zip(found, made, strict=True)
    ]
