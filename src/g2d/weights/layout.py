"""What the entries of a model's state are: which move, which stay, which are one under two names.

Read off a model and one forward pass in training mode. What is done with that lives elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from g2d.core.types import State
from g2d.errors import CheckpointError, SettingsError

_EXTRA = "_extra_state"  # the last part of a module's own entry, torch.nn.Module.get_extra_state
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_WILD = "*?["


@dataclass(frozen=True)
class Layout:
    """The entries of one architecture's state dict, by name, in its order.

    Attributes:
        names: all of them. parameters: those that train (`requires_grad`).
        moving: what a population differs in: those parameters, and floating buffers that a forward
            pass in training mode moves, as batch norm's running statistics.
        carried: what moves and is no number to mix: counters, extra state.
        numbers: floating or complex and finite: what a user may name as in scope.
        ties: names of tensors that are another one's too, each to the first of its names.
    """

    names: tuple[str, ...]
    parameters: frozenset[str]
    moving: frozenset[str]
    carried: frozenset[str]
    numbers: frozenset[str]
    ties: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module, probe: Tensor) -> Layout:
        """Read the layout off a model, which is spoiled: its parameters are shaken.

        Args:
            model: built for this alone. probe: a few inputs, shape (n, ...); two at least.

        Raises:
            CheckpointError: an entry of its state is no tensor.
        """
        state = whole_state(model)
        places, ties = dict(_places(model)), ties_of(model)
        free = {n for n, t in places.items() if isinstance(t, nn.Parameter) and t.requires_grad}
        numbers = {n for n, t in places.items() if n in state and _is_finite_number(t)}
        moved = _moved(model, probe, state)
        buffers = {n for n in moved if n in numbers and not isinstance(places[n], nn.Parameter)}
        moving = (free & numbers) | buffers
        parameters = frozenset(free & numbers)
        carried = frozenset(moved - moving - free)
        return cls(tuple(state), parameters, frozenset(moving), carried, frozenset(numbers), ties)

    def in_scope(self, patterns: Sequence[str] = ()) -> frozenset[str]:
        """Names of what moves under a scope; of a tied tensor all names.

        Args:
            patterns: names or patterns (`fc.*`); a pattern takes what moves anyway, the exact name
                of a frozen parameter or of a buffer takes that as well. Empty: all that moves.

        Raises:
            SettingsError: nothing is in scope; a pattern matches nothing, or only what stays.
        """
        if not patterns and not self.parameters:
            raise SettingsError(
                "nothing is in scope: every parameter of the model is frozen (requires_grad=False);"
                " let one train in the task's factory, or name tensors in [autoencoder] scope"
            )
        chosen = set(self.moving) if not patterns else set()
        for pattern in patterns:
            chosen |= self._matched(pattern)
        groups = {self.ties.get(name, name) for name in chosen}
        chosen = {name for name in self.names if self.ties.get(name, name) in groups}
        if not any(name in self.parameters or name in self._frozen for name in chosen):
            raise SettingsError(
                f"[autoencoder] scope {list(patterns)} holds buffers alone, and no parameter that "
                f"training could move; name parameters too: {_some(self.parameters, self.names)}"
            )
        return frozenset(chosen)

    def stays(self, patterns: Sequence[str] = ()) -> frozenset[str]:
        """Names of what every member takes from the base, bit for bit.

        Under a scope of its own that is all outside; else frozen parameters and constant buffers.
        """
        inside = self.in_scope(patterns)
        carried = frozenset() if patterns else self.carried
        return frozenset(self.names) - inside - carried

    @property
    def _frozen(self) -> frozenset[str]:
        return self.numbers - self.moving

    def _matched(self, pattern: str) -> set[str]:
        """What a pattern of the user's takes."""
        found = [name for name in self.names if fnmatch(name, pattern)]
        if not found:
            raise SettingsError(
                f"scope pattern {pattern!r} matches no tensor. The model has: "
                f"{_some(self.numbers, self.names)}"
            )
        if pattern in found and not any(sign in pattern for sign in _WILD):
            if pattern not in self.numbers:
                raise SettingsError(
                    f"[autoencoder] scope names {pattern!r}, which holds integers, infinity or "
                    "extra state and cannot be generated; leave it out"
                )
            return {pattern}
        moving = self.moving.intersection(found)
        if not moving:
            raise SettingsError(
                f"scope pattern {pattern!r} matches only what stays: frozen parameters "
                f"(requires_grad=False) or constant buffers, as {found[0]!r}; let them train in the"
                " task's factory, or give exact names, which take them as they are"
            )
        return set(moving)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state dict.

    Raises:
        CheckpointError: an entry is no tensor.
    """
    state = model.state_dict()
    for name, value in state.items():
        check_tensor(name, value)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor: checkpoints of G2D are tensors alone, and unpickle nothing.

    Raises:
        CheckpointError: it is of another type.
    """
    if not isinstance(value, Tensor):
        raise CheckpointError(
            f"{name!r} in the model's state is {type(value).__name__}, no tensor, and cannot be "
            "kept in a checkpoint; have get_extra_state return a tensor, or put the value into the"
            " model's constructor"
        )


def is_number(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that can be mixed: floating or complex."""
    return tensor.is_floating_point() or tensor.is_complex()


def is_extra(name: str) -> bool:
    """Whether an entry is a module's extra state, which is neither parameter nor buffer."""
    return name.rsplit(".", 1)[-1] == _EXTRA


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit by bit: NaN equals itself, zero does not equal -zero."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    a, b = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(a, b)


def mean_of(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of states; what is no number, or the same in all, is the first one's, bit by bit."""
    first, *others = states
    return {
        name: torch.stack([state[name] for state in states]).mean(0)
        if is_number(tensor) and not all(same_bits(tensor, state[name]) for state in others)
        else tensor
        for name, tensor in first.items()
    }


def differing(states: Sequence[State]) -> frozenset[str]:
    """Names of the numbers that are not the same in all states; of a single state, of all."""
    first, *others = states or ({},)
    return frozenset(
        name
        for name, tensor in first.items()
        if _is_finite_number(tensor)
        and (not others or not all(same_bits(tensor, state[name]) for state in others))
    )


def add_noise(state: State, names: frozenset[str], generator: torch.Generator) -> dict[str, Tensor]:
    """A state plus Gaussian noise of a tenth of the root mean square of each tensor of `names`."""

    def noisy(tensor: Tensor) -> Tensor:
        scale = 0.1 * tensor.abs().square().mean().sqrt()
        return tensor + scale * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    return {name: noisy(tensor) if name in names else tensor for name, tensor in state.items()}


def _places(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by each of their names, in the order of the state dict."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def ties_of(model: nn.Module) -> dict[str, str]:
    """Names of tensors that share their memory with another, each to the first such name."""
    first: dict[tuple[object, ...], str] = {}
    ties = {}
    for name, tensor in _places(model):
        if tensor.numel() == 0:
            continue
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if (known := first.setdefault(key, name)) != name:
            ties[name] = known
    return ties


def _is_finite_number(tensor: Tensor) -> bool:
    return is_number(tensor) and bool(torch.isfinite(tensor).all())


@torch.no_grad()
def _moved(model: nn.Module, probe: Tensor, state: State) -> set[str]:
    """Entries that a forward pass in training mode moves.

    Parameters are shaken first: spectral norm's vectors rest once they fit their weights. Where the
    model cannot run so, batch norm's statistics are known by their names.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    named = {name for name in state if name.rsplit(".", 1)[-1] in _STATISTICS}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for parameter in {id(p): p for p in parameters.values()}.values():
            if is_number(parameter):
                parameter.add_(0.1 * torch.randn_like(parameter))
        try:
            model.train()(probe.clone())
        except Exception:  # the user's model may raise anything; who trains it will say so
            return named
    after = model.state_dict()
    moved = {n for n, t in state.items() if n not in parameters and not same_bits(t, after[n])}
    return moved | named


def _some(names: frozenset[str], order: Sequence[str]) -> str:
    kept = [name for name in order if name in names]
    return ", ".join(kept[:8]) + (", …" if len(kept) > 8 else "")
