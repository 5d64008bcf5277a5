"""An example of a model that another library builds: defended, and asked as the service has it.

python foreign_models.py VAULT    # the one of timm, in an environment of its own
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import torch

from g2d.core.engine import SerialEngine
from g2d.service.loader import VaultLoader
from g2d.settings import Settings, build

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SETTINGS = build(Settings, {
    "population": {"members": 3, "basins": 1, "base_steps": 4, "early_steps": 4, "fork_steps": 4,
                   "batch": 8, "pool": 8, "pool_steps": 1},
    "generator": {"space": "soup"},
    "guidance": {"pool": 8, "pool_steps": 1, "latent_steps": 1, "polish_steps": 2, "batch": 8},
    "gates": {"accuracy_drop": 1.0, "class_drop": 1.0, "stale_asr": 1.0, "pool": 8,
              "pool_steps": 1, "distance": 0.0},
}, "tests")  # fmt: skip


def defended_and_served(example: str, vault: Path) -> tuple[str, int]:
    """The task's name, and how many numbers of its model move, of an example that has run."""
    from g2d.defence.defence import Defence

    sys.path.insert(0, str(EXAMPLES))
    try:
        module = import_module(example)
        module.main(str(vault), settings=SETTINGS, engine=SerialEngine())
        with Defence.open(vault, write=False) as defence:
            made, task = defence.generation(), defence.task
            moving = defence.generator.codec.size
        x = task.splits.test.x[:4]
        vault.chmod(0o700)
        loader = VaultLoader(vault, "g2d")
        try:
            snapshot, _ = loader.first()
            served = torch.as_tensor(snapshot.predict(x.numpy()))
        finally:
            loader.close()
    finally:
        sys.path.remove(str(EXAMPLES))
    assert snapshot.number == made.number == 2
    torch.testing.assert_close(served, made.model()(x), atol=1e-4, rtol=1e-4)
    return task.name, moving


def declare_operators() -> None:
    """Declare what torchvision's own library would: PyPI's build of it finds no CUDA beside a CPU.

    timm takes of it what is written in Python; none of these operators is called.
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_library"] = library  # else what was declared goes with it


if __name__ == "__main__":
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        declare_operators()
    name, moving = defended_and_served("timm_digits", Path(sys.argv[1]))
    print(f"{name}: {moving} numbers move")
