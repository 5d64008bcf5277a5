"""Raw results: with what they were measured, and how they are written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.places import ROOT
from g2d.core.files import write_bytes
from g2d.redteam import overview_json


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """The machine and the versions that a number was measured with."""
    return {
        "date": date.today().isoformat(),
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads per process": torch.get_num_threads(),
        **overview_json.versions(),
    }


def record(arguments: Any) -> dict[str, Any]:
    """When, where and with what arguments a run was made; its versions are the product's own."""
    torch.set_num_threads(1)
    facts = {key: str(v) if isinstance(v, Path) else v for key, v in vars(arguments).items()}
    machine = overview_json.hardware() | {"cpu": cpu(), "load": os.getloadavg()}
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": overview_json.versions(),
        "hardware": machine,
        "arguments": facts,
    }


def commit() -> str:
    """The commit that is measured, "-dirty" if files but results differ from it; "": no git."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return f"{head}-dirty" if head and changed else head


def _git(*arguments: str) -> str:
    told = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return told.stdout.strip()


def hold_to(result: dict[str, Any], sizes: Mapping[str, Any], path: Path) -> None:
    """Note in a result what decides its rows; rows of anything else are not mixed with them.

    Args:
        sizes: plain values, as JSON gives them back. path: where the result is kept.
    """
    if result.setdefault("sizes", dict(sizes)) != sizes:
        raise SystemExit(
            f"{path} holds rows of {result['sizes']}, and {dict(sizes)} were asked for: give the"
            " same flags, or another --out (and --runs, where it has one)"
        )


def save(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON so that a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(data, indent=1) + "\n").encode())
