"""Where a run's finished pieces lie, so that the next run goes on and reuses what has not changed.

A piece's key is the digest of everything that decides it: settings, seeds, digests of networks and
data, and the source code that computes it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from g2d.core.files import make_folder, read_text, write_bytes
from g2d.core.folders import PRIVATE
from g2d.core.imports import import_attribute
from g2d.errors import SettingsError
from g2d.settings import Settings
from g2d.weights.checkpoints import digest

# Where work runs, how files are written and what errors say decides no number.
_NEUTRAL = {
    "g2d.core.engine",
    "g2d.errors",
    "g2d.core.files",
    "g2d.core.folders",
    "g2d.redteam.cache",
    "g2d.rotation.snapshot",
}
_LIBRARIES = ("torch", "numpy", "adversarial-robustness-toolbox", "pyautoattack")


@functools.lru_cache(maxsize=64)
def code_version(module: str) -> str:
    """Digest of a module's source, of every module of ours that it imports, and of the libraries.

    Only what decides a result counts: a change of a page or of another attack invalidates nothing.
    A module of someone else's counts with what it imports from its own package. One without a file,
    as in a notebook, is of a new version in every process: nothing of it is reused.
    """
    found = hashlib.sha256()
    if _source(module) is None:
        found.update(uuid.uuid4().bytes)
    for name in sorted(_closure(module) - _NEUTRAL):
        if path := _source(name):
            found.update(name.encode() + path.read_bytes())
    for library in _LIBRARIES:
        found.update(f"{library} {importlib.metadata.version(library)}".encode())
    return found.hexdigest()


_MOST = 1 << 27  # bytes of a row's results


def own_code(settings: Settings) -> dict[str, str]:
    """The code version of each module of the user's own that making a network runs, by name.

    Gates, guidance terms, the latent space and recipes of hardening; built-in ones are part of the
    code version anyway. One that cannot be imported has none: what needs it fails.
    """
    named = (
        *settings.gates.extra, *settings.guidance.extra, settings.generator.space,
        *settings.harden.recipe,
    )  # fmt: skip
    found: dict[str, str] = {}
    for name in named:
        module, colon, _ = name.partition(":")
        if colon:
            try:
                import_attribute(name, "code", SettingsError)
                found[name] = code_version(sys.modules[module].__name__)  # not by a former name
            except SettingsError:
                found[name] = ""
    return found


def _closure(module: str) -> set[str]:
    """The module and everything of g2d that it imports, directly or not."""
    seen, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [other for other in _imports(name) if _source(other)]
    return seen


def _imports(module: str) -> set[str]:
    """Names under g2d, or its own package, that a module's import statements may mean."""
    path = _source(module)
    names = _imported(path.read_bytes()) if path else ()
    return {name for name in names if name.startswith(("g2d.", f"{module.partition('.')[0]}."))}


@functools.lru_cache(maxsize=1024)
def _imported(source: bytes) -> frozenset[str]:
    """Every name that import statements of a source may mean; two threats share most modules."""
    names = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def _source(module: str) -> Path | None:
    """The file of a module of a package that is loaded; None where there is none."""
    top, *rest = module.split(".")
    file = getattr(sys.modules.get(top), "__file__", None)
    if file is None:
        return None
    path = Path(file).parent.joinpath(*rest) if rest else Path(file)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path if path.is_file() else None


def key_of(**parts: Any) -> str:
    """Digest of named plain values."""
    return digest(json.dumps(parts, sort_keys=True, default=str).encode())


class RowCache:
    """A folder of JSON files by key; each is written whole or not at all.

    Raises:
        G2DError: the folder cannot be made or written, or the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(folder, PRIVATE)

    def get(self, key: str) -> Any | None:
        """Return what was put under a key, or None; a damaged file counts as absent."""
        try:
            return json.loads(read_text(self._path(key), _MOST))
        except (OSError, ValueError, RecursionError):
            return None

    def put(self, key: str, value: Mapping[str, Any] | Sequence[Any]) -> None:
        """Keep plain values under a key."""
        text = json.dumps(value, allow_nan=False, indent=1) + "\n"
        write_bytes(self._path(key), text.encode(), 0o600)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key[:32]}.json"
