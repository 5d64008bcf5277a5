"""The source files that a module of the user's own consists of; found, read and loaded as read.

Nothing is imported or run to find them. What counts: the module's own file, the `__init__.py` of
each package around it, and whatever an import statement anywhere in a counted file names, if it
lies in the same top-level package, or in the same folder as that package or module (unless the
folder is where packages are installed). What is imported by a computed name, data files and other
installed packages do not count.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import zipimport
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from g2d.core.search_path import installed_folders

Digests = Mapping[str, Mapping[str, str]]
"""SHA-256 of each file by its module's name, by what the module was loaded for."""

_MACHINERY = importlib.machinery
_SUFFIXES = (
    *_MACHINERY.EXTENSION_SUFFIXES,
    *_MACHINERY.SOURCE_SUFFIXES,
    *_MACHINERY.BYTECODE_SUFFIXES,
)
_OURS = "g2d"
_SHOWN = 3


@dataclass(frozen=True)
class Source:
    """One file of code, as it was read; `package`: it is the `__init__` of one."""

    name: str
    file: Path
    data: bytes = field(repr=False)
    package: bool

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        import hashlib  # here: `g2d --help` imports this file, and has no use for OpenSSL

        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class _Found:
    """Where a module is: its file, if it has one, and the folders of its submodules."""

    file: Path | None
    folders: tuple[str, ...] = ()


# --- finding -------------------------------------------------------------------------------------


def locate(module: str) -> Path | None:
    """The file that importing a module would run last, or the folder of one without a file.

    What a package finds in its own way lies where the package does.
    """
    for name in reversed(list(_with_parents(module))):
        if (found := _find(name)) is not None:
            return found.file or Path(found.folders[0])
    return None


def lies_in(name: str, folder: str) -> bool:
    """Whether a top-level module of that name is in a folder."""
    return _among(name, (folder,)) is not None


def read_sources(module: str) -> dict[str, Source]:
    """Read every file that counts for a module, by the modules' names; {}: it is none of a user.

    Raises:
        OSError: one of them cannot be read.
    """
    top = module.partition(".")[0]
    home = None if top == _OURS or top in sys.builtin_module_names else _folder_of(_find(top))
    if home is None:
        return {}
    alone = os.path.realpath(home) in installed_folders()
    found: dict[str, Source] = {}
    seen, waiting = set[str](), [module]
    while waiting:
        for name in _with_parents(waiting.pop()):
            if name in seen:
                continue
            seen.add(name)
            here = _find(name) if _counts(name, top, home, alone) else None
            if here is not None and here.file is not None:
                source = Source(name, here.file, here.file.read_bytes(), bool(here.folders))
                found[name] = source
                waiting += _imports(source)
    return found


def _counts(name: str, top: str, home: str, alone: bool) -> bool:
    first = name.partition(".")[0]
    if first == top:
        return True
    return not alone and first != _OURS and _folder_of(_find(first)) == home


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[: n + 1]) for n in range(len(parts)))


def _imports(source: Source) -> list[str]:
    """Names that a file's import statements may mean: modules, or what is in them."""
    if source.file.suffix not in _MACHINERY.SOURCE_SUFFIXES:
        return []
    try:
        tree = ast.parse(source.data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # importing it says so
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(source, node)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)] if base else []
    return names


def _base(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    around = source.name.split(".")
    around = around[: len(around) - node.level + (1 if source.package else 0)]
    return ".".join([*around, *([node.module] if node.module else [])])


def _find(name: str) -> _Found | None:
    """What importing a module would load, without importing the packages around it."""
    first, *rest = name.split(".")
    found = _among(first, sys.path) or _by_hooks(first)
    for tail in rest:
        found = _among(tail, found.folders) if found is not None else None
    return found


def _among(tail: str, folders: Sequence[str]) -> _Found | None:
    """What `importlib.machinery.FileFinder` finds, in its order."""
    portions: list[str] = []
    for folder in folders:
        if os.path.isfile(folder) and _zipped(tail, folder):
            return _Found(Path(os.path.abspath(folder)))  # all of the archive counts
        inner = os.path.join(folder or os.curdir, tail)
        if os.path.isdir(inner):
            for suffix in _SUFFIXES:
                if os.path.isfile(init := os.path.join(inner, f"__init__{suffix}")):
                    return _Found(Path(os.path.abspath(init)), (os.path.abspath(inner),))
        for suffix in _SUFFIXES:
            if os.path.isfile(inner + suffix):
                return _Found(Path(os.path.abspath(inner + suffix)))
        if os.path.isdir(inner):
            portions.append(os.path.abspath(inner))
    return _Found(None, tuple(portions)) if portions else None


def _zipped(tail: str, archive: str) -> bool:
    try:
        return zipimport.zipimporter(archive).find_spec(tail) is not None
    except zipimport.ZipImportError:
        return False


def _by_hooks(name: str) -> _Found | None:
    """What the hooks of packages that are installed for editing find."""
    for finder in sys.meta_path:
        if finder in (_MACHINERY.BuiltinImporter, _MACHINERY.FrozenImporter, _MACHINERY.PathFinder):
            continue
        look: Any = getattr(finder, "find_spec", None)
        spec = None if look is None or finder is _HELD else look(name, None)
        if spec is not None:
            file = Path(spec.origin) if spec.origin and os.path.isfile(spec.origin) else None
            folders = tuple(spec.submodule_search_locations or ())
            return _Found(file, folders) if file or folders else None
    return None


def _folder_of(found: _Found | None) -> str | None:
    """The folder in which a top-level module or package lies."""
    if found is None:
        return None
    inner = found.folders[0] if found.folders else str(found.file)
    return os.path.dirname(os.path.abspath(inner))


# --- comparing -----------------------------------------------------------------------------------


def read_parts(modules: Mapping[str, str]) -> dict[str, dict[str, Source]]:
    """Read the sources of several modules, each by what it is loaded for."""
    return {part: read_sources(module) for part, module in modules.items()}


def digests(parts: Mapping[str, Mapping[str, Source]]) -> dict[str, dict[str, str]]:
    """Digests of what was read, to be kept; nothing of a part that has no files."""
    return {
        part: {name: sources[name].digest for name in sorted(sources)}
        for part, sources in parts.items()
        if sources
    }


def changes(bound: Mapping[str, str], now: Mapping[str, Source]) -> str:
    """Say which files are not those whose digests are known; "": all are."""
    told = [
        f"{source.file} was changed" if name in bound else f"{source.file} was added"
        for name, source in sorted(now.items())
        if source.digest != bound.get(name)
    ]
    told += [f"module {name} is gone" for name in sorted(bound.keys() - now.keys())]
    more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    return ", ".join(told[:_SHOWN]) + more


# --- loading what was read -----------------------------------------------------------------------


class _Loader(_MACHINERY.SourceFileLoader):
    """Runs a file as it was read: it may have changed since, and its cached bytecode may lie."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.name, str(source.file))
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        """Compile what was read."""
        code: CodeType = self.source_to_code(self._source.data, self.path)
        return code


class _Held(importlib.abc.MetaPathFinder):
    """Finds held modules where they were found when they were read."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> _MACHINERY.ModuleSpec | None:
        """Find a module that is held, if that is the one that is meant here."""
        source = self.sources.get(fullname)
        if source is None or source.file.suffix not in _MACHINERY.SOURCE_SUFFIXES:
            return None
        inner = source.file.parent
        around = str(inner.parent if source.package else inner)
        if around not in {os.path.abspath(folder) for folder in (path or sys.path)}:
            hooked = _by_hooks(fullname) if path is None else None
            if hooked is None or hooked.file != source.file:
                return None  # another of that name
        return importlib.util.spec_from_file_location(
            fullname,
            source.file,
            loader=_Loader(source),
            submodule_search_locations=[str(inner)] if source.package else None,
        )


_HELD = _Held()


def hold(parts: Mapping[str, Mapping[str, Source]]) -> None:
    """From now on load these modules as they were read, whatever becomes of their files."""
    for sources in parts.values():
        _HELD.sources.update(sources)
    if _HELD not in sys.meta_path:
        sys.meta_path.insert(0, _HELD)
