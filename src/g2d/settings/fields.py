"""How settings are declared, checked, and read from and written to tables and TOML.

Which settings there are is in the package itself. Knows no torch.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import field
from typing import Any, TypeVar

from g2d.errors import SettingsError, nearest

T = TypeVar("T")


def within(low: float, high: float, default: Any, doc: str, **about: str) -> Any:
    """Declare a numeric field with its closed range `[low, high]` and its one-line meaning.

    Args:
        about: `was`, a former name; `since`, the first release that has it; and how the command
            line shows it: `unit="s"` for a time span, or a `metavar`.
    """
    return field(default=default, metadata={"range": (low, high), "doc": doc, **about})


def one_of(choices: tuple[str, ...], default: str, doc: str, **about: str) -> Any:
    """Declare a text field that takes one of `choices`; `about` as for `within`."""
    return field(default=default, metadata={"choices": choices, "doc": doc, **about})


def free(default: Any, doc: str, **about: str) -> Any:
    """Declare a field that any value of its type suits; `about` as for `within`."""
    return field(default=default, metadata={"doc": doc, **about})


class Checked:
    """A frozen dataclass that checks its own fields against their declared type and range."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            object.__setattr__(self, item.name, _checked(item, hints[item.name], value))


def build(kind: type[T], table: dict[str, Any], where: str, *, stored: bool = False) -> T:
    """Build a dataclass from a table, recursing into sections.

    Args:
        stored: the table is what an earlier G2D kept, so former names are understood.

    Raises:
        SettingsError: a key is unknown (the nearest name is suggested) or was renamed (the new name
            is told), or a value does not fit.
    """
    hints = typing.get_type_hints(kind)
    known = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    renamed = {_former(item): item.name for item in known.values() if "was" in item.metadata}
    values: dict[str, Any] = {}
    for given, value in table.items():
        key = renamed.get(given, given)
        if key != given and not stored:
            raise SettingsError(f"{where}: {given!r} is called {key!r} now")
        if key not in known:
            raise SettingsError(f"{where}: unknown key {key!r}.{nearest(key, known)}")
        if key in values:
            raise SettingsError(f"{where}: {_former(known[key])!r} and {key!r} are one setting")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise SettingsError(f"{where}: {key!r} is a section, write [{key}]")
            values[key] = build(hints[key], value, f"{where} [{key}]", stored=stored)
        else:
            values[key] = value
    try:
        return kind(**values)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from None


def stored(section: Checked) -> dict[str, Any]:
    """Return a section's values as 0.1.0 named them: for digests, and for files that vaults keep.

    Else a better name, or a new setting that nobody has touched, would change the digest of a vault
    that is there, and its members or its generator would count as another's. `build(...,
    stored=True)` is the inverse.
    """
    return {
        _former(item): value
        for item in dataclasses.fields(section)  # type: ignore[arg-type]
        if (value := getattr(section, item.name)) != item.default or "since" not in item.metadata
    }


def _former(item: dataclasses.Field[Any]) -> str:
    return str(item.metadata.get("was", item.name))


def _checked(item: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    """Return `value` in the field's type; a TOML integer suits a float field, a list a tuple."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        value = tuple(value)
        if not all(isinstance(part, str) for part in value):
            raise SettingsError(f"{item.name} must be a list of texts, not {value!r}")
    expected = typing.get_origin(kind) or kind
    wrong_bool = isinstance(value, bool) and expected is not bool
    if isinstance(expected, types.UnionType) or not isinstance(value, expected) or wrong_bool:
        name = getattr(expected, "__name__", str(expected))
        name = {"tuple": 'a list, as ["one", "two"]', "str": 'a text in quotes, as "inf"'}.get(
            name, name
        )
        raise SettingsError(f"{item.name} must be {name}, not {value!r}")
    if "range" in item.metadata:
        low, high = item.metadata["range"]
        if not low <= value <= high:
            raise SettingsError(f"{item.name} must lie in [{low:g}, {high:g}], not {value!r}")
    choices = item.metadata.get("choices")
    if choices and value not in choices:
        raise SettingsError(
            f"{item.name} must be one of {', '.join(choices)}, not {value!r}."
            + nearest(value, choices)
        )
    return value


def as_toml(value: Any) -> str:
    """Write one value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(as_toml(part) for part in value) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return (
            '"'
            + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped)
            + '"'
        )
    return repr(value)
