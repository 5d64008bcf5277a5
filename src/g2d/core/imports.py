"""The user's own code, named 'module:attribute' in settings; and names that modules once had."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from g2d.core.search_path import adopt_task_paths, task_paths, vault_of
from g2d.core.sources import lies_in, locate
from g2d.errors import G2DError, SettingsError, nearest


def import_module(name: str, module_name: str, what: str, error: type[G2DError]) -> Any:
    """Import a module that is installed, on PYTHONPATH, or in a folder of `--task-path`.

    Args:
        name: as the user wrote it, for messages. what: the kind of thing, as "task" or "recipe".
        error: what to raise if there is no such module, it lies in a vault, or it fails.
    """
    adopt_task_paths()
    importlib.invalidate_caches()
    _check_place(name, module_name, what, error)
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as failure:
        missing = failure.name if isinstance(failure, ModuleNotFoundError) else None
        if missing and (module_name == missing or module_name.startswith(missing + ".")):
            raise error(
                f"{what} {name!r}: {not_found(module_name)}; write 'package.module:callable', "
                "without '.py'"
            ) from failure
        hint = "; for Keras on torch set KERAS_BACKEND=torch" if missing == "tensorflow" else ""
        raise error(
            f"{what} {name!r}: importing {module_name!r} raised {words(failure)}{hint}"
        ) from failure


def _check_place(name: str, module_name: str, what: str, error: type[G2DError]) -> None:
    """Refuse what lies in a vault, and what is not the module of a `--task-path` that is meant."""
    file = locate(module_name)
    if file is None:
        return
    if (vault := vault_of(file)) is not None:
        raise error(
            f"{what} {name!r}: {file} lies in the vault {vault}, and code from a vault is never"
            " run: keep the module elsewhere, and name its folder with --task-path"
        )
    top = module_name.partition(".")[0]
    for folder in task_paths():
        if lies_in(top, folder) and not file.is_relative_to(folder):
            raise error(
                f"{what} {name!r}: {folder} has a module {top!r}, but {file} goes before it:"
                " give yours another name"
            )


def not_found(module_name: str) -> str:
    """Say that there is no such module, and where it would be found."""
    said = f"there is no module {module_name!r} among the installed packages or on PYTHONPATH"
    top = module_name.partition(".")[0]
    if locate(top) is None and lies_in(top, os.curdir):
        return f"{said}; it lies in the current directory: add --task-path ."
    return f"{said}, nor in a folder of --task-path" if task_paths() else said


def import_attribute(name: str, what: str, error: type[G2DError]) -> Any:
    """Import 'module:attribute'; raises `error` where either is missing, or not named."""
    module_name, _, attribute = name.partition(":")
    if not (module_name and attribute):  # before anything is imported
        raise error(f"{what} {name!r} is not the name of one; write 'package.module:name'")
    module = import_module(name, module_name, what, error)
    found = getattr(module, attribute, None)
    if found is None:
        public = [known for known in vars(module) if not known.startswith("_")]
        raise error(
            f"{what} {name!r}: module {module_name!r} ({getattr(module, '__file__', 'built in')}) "
            f"has no {attribute!r}.{nearest(attribute, public)}"
        )
    return found


def import_callables(names: Sequence[str], what: str, kind: str) -> list[Any]:
    """Import what settings name, each 'module:attribute', to be called.

    Args:
        what: the kind of thing, as "gate". kind: what it has to be, for messages.

    Raises:
        SettingsError: there is no such module or attribute, or it cannot be called.
    """
    found = [import_attribute(name, what, SettingsError) for name in names]
    for name, one in zip(names, found, strict=True):
        if not callable(one):
            raise SettingsError(f"{what} {name!r} is {type(one).__name__}, not {kind}")
    return found


def words(error: BaseException) -> str:
    """An error's type and, if it has one, its message, on one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


class FormerNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets a public module be imported by the name that it had before: settings still say it.

    Args:
        names: new name by old one.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module by its former name."""
        known = fullname in self._names
        return importlib.machinery.ModuleSpec(fullname, self) if known else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name in the place of the old one, and those inside it."""
        package = importlib.import_module(self._names[module.__name__])
        sys.modules[module.__name__] = package
        for old, new in self._names.items():
            # Now, not when they are asked for: the import system would look into the new package's
            # folder and load a second copy, and name it in the package, over a function of its own.
            parent, _, own = old.rpartition(".")
            if parent == module.__name__:
                inside = sys.modules[old] = importlib.import_module(new)
                vars(package).setdefault(own, inside)
