"""A summary as one self-contained HTML page, and as the README's picture.

Takes plain values (what `summary.json` holds) and measures nothing itself; knows no torch.
Needs matplotlib and jinja2: `pip install 'g2d[report]'`.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g2d import plots
from g2d.errors import G2DError

TEMPLATES = Path(__file__).parent / "templates"


def require() -> None:
    """Check that what draws pages is installed, before any work is done.

    Raises:
        G2DError: matplotlib or jinja2 is missing.
    """
    missing = [name for name in ("matplotlib", "jinja2") if not importlib.util.find_spec(name)]
    if missing:
        raise G2DError(
            f"a report needs {' and '.join(missing)}, which is not installed; run "
            "pip install 'g2d[report]'"
        )


def render(summary: Mapping[str, Any], path: Path) -> None:
    """Write the page of a summary (`g2d.demo.summarise`); nothing in it is loaded from outside.

    Raises:
        G2DError: matplotlib or jinja2 is missing, or the file cannot be written.
    """
    require()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    drawn = {
        "age": plots.age_curve(summary),
        "heat": plots.heat_map(summary["matrix"]),
        "accuracy": plots.accuracy_curve(summary["generations"]),
        "distance": plots.distance_curve(summary["distances"]),
        "latents": plots.latent_map(summary["latents"]),
    }
    page = environment.get_template("report.html").render(
        s=summary, n=summary["numbers"], plots=drawn, pictures=_pictures(summary["images"])
    )
    write(path, page)


def _pictures(images: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        item | {key: plots.picture(item[key]) for key in ("clean", "attacked")}
        for item in images["items"]
    ]


def save_hero(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the README's picture (PNG, 1600 x 700) of a summary.

    Raises:
        G2DError: matplotlib is missing, or the file cannot be written.
    """
    require()
    try:
        plots.hero(Path(path), summary)
    except OSError as error:
        raise G2DError(f"cannot write {path}: {error}") from error


def write(path: Path, text: str) -> None:
    """Write a text file atomically: readers see the old one or the new one, never a part.

    Raises:
        G2DError: the folder cannot be written, or the disk is full; the old file is left alone.
    """
    path = Path(path)
    staged = ""
    try:
        handle, staged = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(staged, 0o644)
        os.replace(staged, path)
    except OSError as error:
        if staged:
            Path(staged).unlink(missing_ok=True)
        raise G2DError(
            f"cannot write {path}: {error}; the old file, if any, is as it was"
        ) from error
