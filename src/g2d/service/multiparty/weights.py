"""A vault's live generation, verified as `g2d serve` does, as a program and its parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from g2d.errors import DAMAGE, CheckpointError, VaultError
from g2d.protect.layout import PLAIN
from g2d.protect.multiparty.config import Config
from g2d.protect.multiparty.dealing import Shared, share
from g2d.protect.multiparty.program import LARGEST
from g2d.protect.multiparty.translate import Translated, translate
from g2d.service.loader import VaultLoader
from g2d.settings import TaskSettings
from g2d.tasks.building import build_model
from g2d.tasks.builtin import BUILTIN
from g2d.tasks.source import by_name, resolve
from g2d.vault.signing import VerifyKey
from g2d.weights.checkpoints import unpack

__all__ = ["SharedVault", "follow"]

_IMAGES = frozenset(BUILTIN) - {"nsl-kdd"}
"""Built-in tasks whose inputs go from 0 to 1; to say so their data need not be read."""
Range = tuple[tuple[float, ...], tuple[float, ...]]


class SharedVault(VaultLoader):
    """What of a vault is shared among parties. It remembers what was shared as `serve` does."""

    def __init__(self, vault: Path, data: str = "", key: VerifyKey | None = None) -> None:
        super().__init__(vault, "g2d", data, key, layout=PLAIN)

    def _load_task(self, task: TaskSettings, name: str, data: str) -> None:
        super()._load_task(task, name, data)
        self._range = input_range(task, data)

    def newest(self) -> tuple[int, Translated]:
        """The live generation, translated.

        Raises:
            VaultError: it is not what was signed, or may not be served. UnsupportedError: parties
                cannot compute it.
        """
        self._judged()
        number = self._not_put_back(self.live())
        return number, translate(self._network(number), self.model.shape, *self._range)

    def _network(self, number: int) -> nn.Module:
        verified, warning = self._verify_live(number)
        if warning is not None:
            raise warning  # what has expired is not begun to be served
        self._check_code(number, verified.manifest)
        try:
            with self._building:
                model = build_model(self._blueprint.factory)
            model.load_state_dict(
                self._own_form(number, verified.manifest, unpack(verified.weights))
            )
        except (CheckpointError, RuntimeError, *DAMAGE) as error:
            raise VaultError(f"generation {number} cannot be read: {error}") from error
        return model.eval().requires_grad_(False)


def input_range(task: TaskSettings, data: str = "") -> Range:
    """Least and largest value of a task's inputs, as `Program` has them; (), (): none is known."""
    if task.name in _IMAGES:
        return (0.0,), (1.0,)
    found = resolve(by_name(task, data))
    if found.bounds is not None:
        return (float(found.bounds[0]),), (float(found.bounds[1]),)
    budget = found.budget
    if budget is None or not budget.least or not budget.most:
        return (), ()
    sides = tuple(map(float, budget.least)), tuple(map(float, budget.most))
    fits = all(-LARGEST <= low < high <= LARGEST for low, high in zip(*sides, strict=True))
    return sides if fits else ((), ())


def follow(
    loader: SharedVault, config: Config, own: tuple[Path, Path], after: int,
    heard: Callable[[Shared], None],
) -> int:  # fmt: skip
    """Share what is live, if it is newer than `after`; the number that is shared now.

    Raises:
        VaultError, UnsupportedError: see `SharedVault.newest`. MultipartyError: a party is not
            there, or refuses; what was live at the parties stays live.
    """
    if loader.live() <= after:
        return after
    number, found = loader.newest()
    heard(share(config, own, number, found.program, found.parameters))
    loader.served(number)
    return number
