"""The parties' environment: where its interpreter is, and how a party is started with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import g2d
from g2d.protect.multiparty.errors import MultipartyError

PYTHON = "G2D_SMPC_PYTHON"
"""The variable that names the interpreter."""
_PLACES = (Path(".venv-smpc/bin/python"), Path(__file__).parents[4] / ".venv-smpc/bin/python")
_MODULE = "g2d.protect.multiparty.party"


def interpreter() -> Path:
    """The interpreter that has SPU: $G2D_SMPC_PYTHON, or .venv-smpc here or in the checkout.

    Raises:
        MultipartyError: there is none.
    """
    named = os.environ.get(PYTHON, "")
    for path in [Path(named)] if named else _PLACES:
        if path.is_file():
            return path.absolute()
    raise MultipartyError(
        f"{named or '.venv-smpc'} has no interpreter: SPU needs an environment of its own. Run"
        f" `make smpc` in a checkout, or name the interpreter in ${PYTHON}"
    )


def command(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """What starts a party, and its environment: this very package, whose party needs no torch.

    Where the package lies among others that are installed, those are of no use to SPU: then its
    environment needs a copy of its own (`pip install --no-deps g2d`).

    Raises:
        MultipartyError: there is no interpreter for it.
    """
    root = Path(g2d.__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if not (root / "numpy").exists():
        environment["PYTHONPATH"] = str(root)
    return [str(interpreter()), "-m", _MODULE, *arguments], environment
