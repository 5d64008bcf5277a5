"""Files and functions that have grown too long, and what does not belong in src/g2d's root.

    python .ci/check_sizes.py

A file is read in one sitting: at most 400 lines. A function fits a screen: at most 60 lines, with
decorators and docstring. One line for each offender; exit status 1 if there is any.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "tests", "benchmarks", "examples")
FILE_LINES, FUNCTION_LINES = 400, 60
IN_THE_ROOT = {"__init__.py", "__main__.py", "errors.py", "py.typed"}


def functions(tree: ast.Module) -> Iterator[tuple[str, int, int]]:
    """Name, first line and length of every function, methods and inner ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno is not None
            yield node.name, first, node.end_lineno - first + 1


def too_long(path: Path, name: str) -> Iterator[str]:
    """What is wrong with one file, which `name` names."""
    text = path.read_text("utf-8")
    lines = len(text.splitlines())
    if lines > FILE_LINES:
        yield f"{name}: {lines} lines, at most {FILE_LINES}"
    for function, first, length in functions(ast.parse(text)):
        if length > FUNCTION_LINES:
            yield f"{name}:{first}: {function} has {length} lines, at most {FUNCTION_LINES}"


def strangers(package: Path) -> Iterator[str]:
    """Files in the package's root that belong into one of its folders."""
    for path in sorted(package.iterdir()):
        if path.is_file() and path.name not in IN_THE_ROOT:
            yield f"{path.name} lies in the root of {package.name}; a layer's folder is its place"


def offenders(root: Path) -> list[str]:
    """One line for everything in a checkout that is too long or in the wrong place."""
    files = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    found = [line for path in files for line in too_long(path, str(path.relative_to(root)))]
    return found + list(strangers(root / "src" / "g2d"))


if __name__ == "__main__":
    found = offenders(ROOT)
    print("\n".join(found) or "Sizes: no file, function or root is too large.")
    sys.exit(bool(found))
