"""The room of the adversarial-robustness-toolbox: models as its estimators, and its common needs.

ART (arXiv 1807.01069) keeps arrays in NumPy and draws from NumPy's global generator; both are dealt
with here. Needs `pip install 'g2d[attacks]'`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from g2d.core.files import write_bytes
from g2d.core.types import Bounds
from g2d.errors import G2DError

_PARTS = {"art": "adversarial-robustness-toolbox", "pyautoattack": "pyautoattack"}


def require() -> None:
    """Check that the attack libraries are installed, before any work is done.

    ART's settings file is written here, too, for the workers that import it together.

    Raises:
        G2DError: one of them is missing.
    """
    missing = [name for part, name in _PARTS.items() if not importlib.util.find_spec(part)]
    if missing:
        raise G2DError(
            f"the red team needs {' and '.join(missing)}, which is not installed; run "
            "pip install 'g2d[attacks]'"
        )
    _settle()


def _settle() -> None:
    """Write ART's settings file where there is none, as ART itself would (art.config).

    ART looks for it twice as it is imported; a process that sees another one write it in between
    fails with a NameError.
    """
    folder = Path.home() / ".art"
    file = folder / "config.json"
    with contextlib.suppress(OSError, G2DError):  # ART does without, and says so
        if not file.exists():
            folder.mkdir(exist_ok=True)
            said = json.dumps({"ART_DATA_PATH": str(folder / "data")}, indent=4)
            write_bytes(file, said.encode())


@contextlib.contextmanager
def quiet(seed: int) -> Iterator[None]:
    """Seed NumPy's and torch's global generators, and swallow warnings, while a library runs.

    Both generators are restored afterwards (house rule: randomness is passed in).
    """
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)


class Typed(nn.Module):
    """A model for ART: it takes whatever float type ART hands on, and answers in float32.

    Args:
        dtype: of the inputs that the model itself takes.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = model, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, ...) to logits (n, classes)."""
        return self.inner(x.to(self.dtype)).float()


def array(x: Tensor) -> Any:
    """A tensor for NumPy, which has no bfloat16."""
    return (x.float() if x.dtype == torch.bfloat16 else x).detach().numpy()


def tensor(x: Any) -> Tensor:
    """What ART gives, as float32."""
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def white_box(
    model: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    classes: int,
    bounds: Bounds,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Wrap a model of logits as ART's `PyTorchClassifier`, on the CPU.

    Args:
        model: maps (n, *shape) to logits (n, classes). optimizer: for attacks that train.
        dtype: of the inputs that the model takes.
    """
    from art.estimators.classification import PyTorchClassifier

    module = Typed(model, dtype)
    return PyTorchClassifier(
        model=module,
        loss=nn.CrossEntropyLoss(),
        optimizer=None if optimizer is None else optimizer(module.parameters()),
        input_shape=shape,
        nb_classes=classes,
        clip_values=bounds,
        device_type="cpu",
    )


def black_box(
    predict: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    classes: int,
    bounds: Bounds,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Wrap an API that answers with scores as ART's black-box classifier: no gradients, no weights.

    Args:
        predict: maps (n, *shape) of `dtype` to scores (n, classes).
    """
    from art.estimators.classification import BlackBoxClassifier

    def answer(x: Any) -> Any:
        return array(predict(tensor(x).to(dtype)))

    return BlackBoxClassifier(answer, shape, classes, clip_values=bounds)
