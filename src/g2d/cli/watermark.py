"""The commands `g2d watermark`: `add` marks a vault that is there already.

Thin, like `main`, and as lazy.
"""

from __future__ import annotations

import typer

from g2d.cli.watermark_add import add

app = typer.Typer(
    name="watermark",
    help="Whose weights are these? A mark that only your key explains, and how it is proven.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.command()(add)
