"""Activations that are polynomials: what networks for encrypted inference have in place of ReLU.

CKKS adds and multiplies; it compares nothing, so that ReLU and max pooling do not exist there. A
network that has them is approximated here, if asked: which loses something, and says how much.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2d.core.polynomial import Polynomial
from g2d.errors import TaskError

if TYPE_CHECKING:
    from g2d.tasks.splits import Split

_CURVES = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Tanh,
           nn.Sigmoid, nn.Hardtanh)  # fmt: skip
_KEPT = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool1d, nn.AvgPool2d, nn.BatchNorm1d,
         nn.BatchNorm2d, nn.Flatten, nn.Identity, nn.Dropout, Polynomial)  # fmt: skip
_RIDGE = 1e-2  # of the mean square of what enters; from 1e-4 to 1e-1 MNIST's accuracy is the same
_CHUNK = 64  # images whose patches are held at once


class Square(Polynomial):
    """x², element by element, of any shape (CryptoNets: Gilad-Bachrach et al. 2016)."""

    def fixed(self) -> tuple[float, float, float]:
        """(1, 0, 0)."""
        return 1.0, 0.0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Square each number of `x`, any shape."""
        return x * x


class Quadratic(Polynomial):
    """a·x² + b·x + c, element by element, of any shape, with one a, b and c for the whole layer.

    Fixed coefficients are floats and belong to the architecture, as a leaky ReLU's slope does.
    Learned ones are scalar parameters, in the state dict as `a`, `b` and `c`, and belong to a
    network's weights.

    Args:
        a: coefficient of x². b: coefficient of x. c: what is added.
        learned: whether training adapts them.
    """

    a: Tensor | float
    b: Tensor | float
    c: Tensor | float

    def __init__(self, a: float, b: float, c: float = 0.0, *, learned: bool = False) -> None:
        super().__init__()
        for name, value in (("a", a), ("b", b), ("c", c)):
            number = float(value)
            setattr(self, name, nn.Parameter(torch.tensor(number)) if learned else number)

    @property
    def learned(self) -> bool:
        """Whether the coefficients are parameters, in the state dict."""
        return isinstance(self.a, Tensor)

    @property
    def values(self) -> tuple[float, float, float]:
        """a, b and c as numbers."""
        return _number(self.a), _number(self.b), _number(self.c)

    def fixed(self) -> tuple[float, float, float] | None:
        """(a, b, c), unless they are learned."""
        return None if self.learned else self.values

    def forward(self, x: Tensor) -> Tensor:
        """Apply the polynomial to each number of `x`, any shape (Horner's scheme)."""
        return (self.a * x + self.b) * x + self.c

    def extra_repr(self) -> str:
        """The coefficients, for `print(network)`."""
        return ", ".join(f"{n}={v:g}" for n, v in zip("abc", self.values, strict=True))


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value


# --- approximating a network that has no polynomials ---------------------------------------------


@dataclass(frozen=True, eq=False)
class Approximation:
    """A lossy approximation of a network by polynomials, and what it loses.

    Attributes:
        network: in evaluation mode, frozen: a network of its own, the original is left alone.
        replaced: names of the layers that are polynomials or means now.
        agreement: share of the judged images on which both give the same class.
        accuracy, original: shares that are right, of the approximation and of what was
            approximated; None: no labels were given. n: images that they were judged on.
    """

    network: nn.Module
    replaced: tuple[str, ...]
    agreement: float
    n: int
    accuracy: float | None = None
    original: float | None = None

    def __str__(self) -> str:
        """What it is and loses, in one line; always to be shown beside its answers."""
        right = (
            ""
            if self.accuracy is None or self.original is None
            else f"accuracy {self.accuracy:.2%}, the original's {self.original:.2%}; "
        )
        return (
            f"lossy approximation by polynomials of degree 2 ({len(self.replaced)} layers): "
            f"{right}the same class on {self.agreement:.2%} of {self.n} images"
        )


def approximate(
    network: nn.Module, images: Tensor, degree: int = 2, judged: Split | None = None
) -> Approximation:
    """Replace what encrypted inference lacks by polynomials, calibrated on images: lossy.

    Layer by layer, each on what the layers before it give by then: an activation becomes the
    `Quadratic` that is nearest to it in least squares; max pooling becomes the mean; and the
    weights after either are fitted again, by ridge regression, to give what they gave in the
    original. No labels are used. A population that is trained with squares from its start
    (`mnist-he`) loses nothing, and is to be preferred.

    Args:
        network: a chain of layers that modules show. images: unlabelled, (n, ...), as many as can
            be had; those of the guide split will do. judged: what the loss is told on; images that
            neither network was fitted to. None: agreement alone, on `images`.

    Returns:
        The network and what it loses; its coefficients are scalar parameters, and `skeleton` builds
        what its state dict fits.

    Raises:
        TaskError: another degree is asked for, the network is no such chain, or a layer of it has
            no polynomial to stand for it.
    """
    if degree != 2:
        raise TaskError(
            f"degree is {degree}: encrypted inference computes polynomials of degree 2 alone, and "
            "each further doubling would cost a level of its depth; give degree=2"
        )
    if len(images) < 2 or not images.is_floating_point() or not bool(images.isfinite().all()):
        raise TaskError(
            f"images are {tuple(images.shape)}, {images.dtype}: give two or more to calibrate on, "
            "of floating type and finite"
        )
    plain = copy.deepcopy(network).eval().requires_grad_(False)
    found = skeleton(plain).eval().requires_grad_(False)
    replaced, theirs, ours = [], images, images
    with torch.no_grad():
        for name, layer in _chain(plain, images):
            twin = found.get_submodule(name)
            theirs = layer(theirs.clone())  # a ReLU may work in place
            if type(twin) is not type(layer):
                replaced.append(name)
                if isinstance(twin, Quadratic):
                    _calibrate(twin, ours, layer(ours.clone()))
            elif replaced:
                _fit_again(twin, ours, theirs)
            ours = twin(ours)
    before, after = (
        torch.cat([model(part) for part in (judged.x if judged else images).split(2000)]).argmax(1)
        for model in (plain, found)
    )
    right = [float((y == judged.y).double().mean()) if judged else None for y in (after, before)]
    same = float((before == after).double().mean())
    return Approximation(found, tuple(replaced), same, len(before), right[0], right[1])


def skeleton(network: nn.Module) -> nn.Module:
    """Copy a network with a learned `Quadratic` for each activation and a mean for each max pool.

    What the state dicts of its approximations fit: the factory of a task that takes them up.

    Raises:
        TaskError: it has nothing to replace, or a layer that no polynomial stands for.
    """
    found = copy.deepcopy(network)
    leaves = [(n, m) for n, m in network.named_modules() if next(m.children(), None) is None]
    for name, layer in leaves:
        if isinstance(layer, _KEPT):
            continue
        parent, _, own = name.rpartition(".")
        if not name or (twin := _twin(layer)) is None:
            raise TaskError(
                f"layer {name!r} is {type(layer).__name__}, which no polynomial stands for here; "
                "exchange it for one of ReLU, AvgPool or Linear's kind, and train the network again"
            )
        setattr(found.get_submodule(parent), own, twin)
    if all(isinstance(layer, _KEPT) for _, layer in leaves):
        raise TaskError(
            "the network has no activation or max pooling that a module shows: there is nothing to "
            "approximate (write F.relu(x) as nn.ReLU)"
        )
    return found


def _twin(layer: nn.Module) -> nn.Module | None:
    """What stands for a layer; None: nothing."""
    if isinstance(layer, _CURVES):
        return Quadratic(0.25, 0.5, learned=True)
    if isinstance(layer, nn.MaxPool2d) and layer.dilation in (1, (1, 1)) and not layer.ceil_mode:
        return nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
    return None


def _chain(network: nn.Module, images: Tensor) -> list[tuple[str, nn.Module]]:
    """The leaves in the order that they run in, each once, one's answer the next one's input.

    Raises:
        TaskError: the network is another thing.
    """
    leaves = [(n, m) for n, m in network.named_modules() if next(m.children(), None) is None]
    given: list[int] = []
    hooks = [
        leaf.register_forward_pre_hook(lambda *_, i=index: given.append(i))
        for index, (_, leaf) in enumerate(leaves)
    ]
    some = images[:2]
    with torch.no_grad():
        wanted = network(some.clone())
        for hook in hooks:
            hook.remove()
        for index in given:
            some = leaves[index][1](some.clone())
    alike = some.shape == wanted.shape and torch.allclose(some, wanted, atol=1e-5, rtol=1e-4)
    if len(set(given)) != len(given) or not alike:
        raise TaskError(
            "the network is no chain of layers, each run once on what the one before gave: "
            "shortcuts and what forward computes by itself cannot be calibrated; write it as "
            "nn.Sequential"
        )
    return [leaves[index] for index in given]


def _calibrate(curve: Quadratic, x: Tensor, y: Tensor) -> None:
    """Least squares of a·x² + b·x + c to y, over all numbers of both, in the scale of x."""
    x, y = x.double().flatten(), y.double().flatten()
    scale = x.square().mean().sqrt().clamp_min(1e-12)
    powers = torch.stack([(x / scale) ** 2, x / scale, torch.ones_like(x)], 1)
    # Of constant inputs the least solution, which is what the pseudo-inverse gives.
    best = torch.linalg.pinv(powers.T @ powers, hermitian=True) @ (powers.T @ y)
    for name, value in zip("abc", best / torch.stack([scale**2, scale, scale**0]), strict=True):
        curve.get_parameter(name).copy_(value)


def _fit_again(layer: nn.Module, x: Tensor, wanted: Tensor) -> None:
    """Move a layer's weights to give what is wanted of x, ridge regression from where they are.

    Where they multiply no patches of x as a matrix does (groups, other padding), they stay.
    """
    if not isinstance(layer, nn.Linear | nn.Conv2d) or not _is_plain(layer, x):
        return
    size = layer.weight[0].numel() + (layer.bias is not None)
    gram = torch.zeros(size, size, dtype=torch.float64)
    missing = torch.zeros(size, len(layer.weight), dtype=torch.float64)
    for part, goal in zip(x.split(_CHUNK), wanted.split(_CHUNK), strict=True):
        rows, short = part.double(), (goal - layer(part)).double()
        if isinstance(layer, nn.Conv2d):
            around = tuple(int(size) for size in layer.padding)
            rows = F.unfold(rows, layer.kernel_size, layer.dilation, around, layer.stride)
            rows = rows.transpose(1, 2).flatten(0, 1)
            short = short.flatten(2).transpose(1, 2).flatten(0, 1)
        if layer.bias is not None:
            rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        gram += rows.T @ rows
        missing += rows.T @ short
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean().clamp_min(1e-12))
    change = torch.linalg.solve(gram, missing).T
    if layer.bias is not None:
        layer.bias.add_(change[:, -1].to(layer.bias.dtype))
        change = change[:, :-1]
    layer.weight.add_(change.reshape(layer.weight.shape).to(layer.weight.dtype))


def _is_plain(layer: nn.Linear | nn.Conv2d, x: Tensor) -> bool:
    """Whether a layer is one matrix that multiplies rows of x, or its patches."""
    if isinstance(layer, nn.Linear):
        return x.dim() == 2
    zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return layer.groups == 1 and zeros
