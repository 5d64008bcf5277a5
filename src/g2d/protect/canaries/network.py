"""A model as a function of inputs and of its weights, and how far rounding moves its answers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Network:
    """A model in evaluation mode as a function of inputs and weights; the model is not changed.

    Attributes:
        weights: its floating parameters by name, without gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.weights = {
            name: parameter.detach()
            for name, parameter in model.named_parameters()
            if parameter.is_floating_point()
        }

    def __call__(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits (n, classes), float32 or wider, of inputs (n, ...)."""
        logits = functional_call(self._model, dict(weights or self.weights), (x,))
        return logits if logits.dtype == torch.float64 else logits.float()

    def shaken(self, by: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Every weight larger or smaller by a share of itself, signs drawn evenly."""
        return {
            name: w
            + by * w * (2 * torch.randint(0, 2, w.shape, generator=generator) - 1).to(w.dtype)
            for name, w in self.weights.items()
        }

    @torch.no_grad()
    def noise(self, x: Tensor, generator: torch.Generator) -> float:
        """The largest change of a logit that nobody caused: by rounding, or by the batch.

        Weights that are off by a unit in the last place, as after rescaling or sums in another
        order; and inputs in smaller batches.
        """
        logits = self(x)
        steps = (torch.finfo(w.dtype).eps for w in self.weights.values())
        unit = max(steps, default=torch.finfo(torch.float32).eps)
        others = [self(x, self.shaken(unit, generator)) for _ in range(3)]
        found = [float((other - logits).abs().max()) for other in others]
        for batch in (1, 3):
            few = torch.cat([self(part) for part in x[:6].split(batch)])
            found.append(float((few - logits[:6]).abs().max()))
        return max(found)


def leads(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Class of the highest logit (n,), and by how much it leads (n,)."""
    best = logits.topk(2, dim=1)
    return best.indices[:, 0], best.values[:, 0] - best.values[:, 1]
