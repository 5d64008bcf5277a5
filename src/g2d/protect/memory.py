"""Whose memory a tensor lies in, and state dicts that take along no other's.

Where tensors are moved to, and how a layout is kept secret, is `layout`'s.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["keep_apart", "own_memory", "tensors_of"]


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers that are not empty, each once."""
    found = {id(t): t for t in (*model.parameters(), *model.buffers()) if t.numel()}
    return list(found.values())


def own_memory(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers that have their memory to themselves and fill it, each once."""
    strided = [t for t in tensors_of(model) if t.layout == torch.strided]
    owners = Counter(tensor.untyped_storage().data_ptr() for tensor in strided)
    return [
        t for t in strided
        if type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" and not t.is_quantized
        and owners[t.untyped_storage().data_ptr()] == 1 and _fills_its_memory(t) and _dense(t)
    ]  # fmt: skip


def keep_apart(model: nn.Module) -> None:
    """Have state dicts of a model hold copies, as views would be saved with the whole block."""
    for module in model.modules():
        hook = _copies if module is model else _copies_of_a_part
        module.register_state_dict_post_hook(hook)


def _copies(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    """Copy what lies in memory with others; tied tensors stay tied, the model's own stay."""
    own = {id(tensor) for tensor in tensors_of(module)}  # with keep_vars
    made: dict[tuple[object, ...], Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(prefix) or not isinstance(tensor, Tensor) or id(tensor) in own:
            continue
        if tensor.layout == torch.strided and not _fills_its_memory(tensor):
            key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if key not in made:
                made[key] = tensor.clone()
            state[name] = made[key]


def _copies_of_a_part(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    """The same for a module whose state dict is asked for alone."""
    if not prefix:
        _copies(module, state, prefix, _)


def _fills_its_memory(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _dense(tensor: Tensor) -> bool:
    """Whether values lie side by side, none twice, with axes in any order (channels last)."""
    axes = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    step = 1
    for stride, size in axes:
        if size > 1 and stride != step:
            return False
        step *= size
    return True
