"""The group `g2d privacy`: `g2d privacy VAULT` is its command `show`, and others have names."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from g2d.cli import privacy, privacy_audit


class ShowByDefault(TyperGroup):
    """A group whose command `show` need not be named: what names no command is a vault."""

    default = "show"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `show` before whatever names no command: a vault, or an option of `show`."""
        if args and args[0] not in {"-h", "--help", *self.commands}:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ShowByDefault,
    name="privacy",
    help="What a vault gives away of anybody: its guarantee, and an audit of it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
privacy.add_to(app)
privacy_audit.add_to(app)
