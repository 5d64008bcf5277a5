"""Flags of the command line, made from the fields of settings: name, type, default and meaning.

A field declared with `within`, `one_of` or `free` is the one place that says what it is, so that
help, TOML and flags cannot disagree. What a flag's value does is decided elsewhere: fields check
themselves. Knows no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from g2d.errors import SettingsError, nearest
from g2d.service.http.options import seconds, span
from g2d.settings import Settings
from g2d.settings.fields import Checked

Given = Mapping[str, Any]
"""What was given on the command line, by a field's key (`population__members`, or `port`)."""


def meaning(item: dataclasses.Field[Any]) -> str:
    """What a field means, its range and its choices, in one line: for TOML and for flags."""
    text = str(item.metadata.get("doc", ""))
    if "range" in item.metadata:
        low, high = (f"{n:g}" if isinstance(n, float) else n for n in item.metadata["range"])
        text += f" [{low}, {high}]"
    if "choices" in item.metadata:
        text += f" ({', '.join(item.metadata['choices'])})"
    return text


@dataclass(frozen=True)
class Leaf:
    """One field of a dataclass `owner`; `key` is `section__name`, or its name alone."""

    key: str
    item: dataclasses.Field[Any]
    kind: Any
    owner: type[Checked]

    @property
    def many(self) -> bool:
        """Whether it holds several texts."""
        return typing.get_origin(self.kind) is tuple

    @property
    def timed(self) -> bool:
        """Whether it is a time span."""
        return self.item.metadata.get("unit") == "s"

    @property
    def help(self) -> str:
        """Its meaning, range and choices, as a TOML file's comment says them."""
        return meaning(self.item)

    @property
    def shown(self) -> str:
        """Its default as the help shows it; empty if it has none worth a word."""
        default: Any = self.item.default
        if self.timed:
            return span(default)
        if default is False:
            return ""
        return "" if default in ("", ()) else str(default)

    def read(self, given: Any) -> Any:
        """What the flag's text, or list of texts, means; the field itself checks what comes of it.

        Raises:
            SettingsError: a time span is none.
        """
        if self.many:
            parts = [given] if isinstance(given, str) else given
            return tuple(name for part in parts for name in part.split(",") if name)
        return seconds(given) if self.timed else given

    def read_toml(self, text: str) -> Any:
        """Read a value as a TOML file has it; a text needs no quotes, a list no brackets."""
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            return self.read(text)
        if self.kind is str and not isinstance(value, str):
            return text
        return tuple(value) if isinstance(value, list) else value

    def checked(self, given: Any) -> Any:
        """Return what a flag was given; a number out of range is a usage error.

        Raises:
            typer.BadParameter: in the field's own words. A text is checked with all the others.
        """
        if isinstance(given, int | float):
            try:
                self.owner(**{self.item.name: given})
            except SettingsError as error:
                raise typer.BadParameter(str(error)) from None
        return given

    def option(self, *names: str, default: bool = True) -> Any:
        """The annotation of a parameter that typer makes a flag of; None means: not given.

        Args:
            default: whether help tells the field's own default.
        """
        kind: Any = list[str] if self.many else str if self.timed else self.kind
        metavar = "TIME" if self.timed else self.item.metadata.get("metavar")
        metavar = "NAME,.." if self.many and metavar is None else metavar
        text = self.help + (f"; default: {self.shown}" if default and self.shown else "")
        text += "; repeatable" if self.many else ""
        if self.kind is bool:  # not given is not "no": a vault's settings may say yes
            names = names or (f"--{self.item.name.replace('_', '-')}",)
        option = typer.Option(
            *names, metavar=metavar, help=text, show_default=False, callback=self.checked
        )
        return Annotated[kind | None, option]


def leaves(kind: type[Checked]) -> dict[str, Leaf]:
    """Every field of a dataclass by its key, sections followed."""
    found: dict[str, Leaf] = {}
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(hints[item.name]):
            for leaf in leaves(hints[item.name]).values():
                key = f"{item.name}__{leaf.key}"
                found[key] = dataclasses.replace(leaf, key=key)
        else:
            found[item.name] = Leaf(item.name, item, hints[item.name], kind)
    return found


def with_flags(
    kind: type[Checked],
    into: str,
    names: Mapping[str, str] | None = None,
    *,
    defaults: bool = True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each field; what is given of them arrives as one mapping.

    Args:
        kind: the dataclass. into: the command's parameter that takes the mapping by key, where a
            flag that was not given is absent. names: the key by flag; all fields, by their name.
        defaults: whether help tells the fields' defaults: not where others may apply.
    """
    known = leaves(kind)
    keys = names or {key: key for key in known}
    chosen = {name: known[key] for name, key in keys.items()}

    def add(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {name: given.pop(name) for name in chosen}
            found = {
                leaf.key: leaf.read(values[name])
                for name, leaf in chosen.items()
                if values[name] is not None and values[name] != []
            }
            command(**given, **{into: found})

        signature = inspect.signature(command, eval_str=True)
        own = {n: p for n, p in signature.parameters.items() if n != into}
        made = [
            inspect.Parameter(
                n,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=leaf.option(default=defaults),
            )
            for n, leaf in chosen.items()
        ]
        required = [p for p in own.values() if p.default is p.empty]
        optional = [p for p in own.values() if p.default is not p.empty]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*required, *made, *optional)]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return add


Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Any other setting of `g2d settings --defaults`; repeatable.",
    ),
]


def read_changes(changes: Sequence[str]) -> dict[str, Any]:
    """Read what `--set` was given, by the settings' keys.

    Raises:
        SettingsError: there is no such setting (the nearest is suggested), or it is given twice.
    """
    known, found = leaves(Settings), {}
    dotted = {key.replace("__", ".", 1): leaf for key, leaf in known.items()}
    former = {
        f"{name.partition('.')[0]}.{leaf.item.metadata['was']}": name
        for name, leaf in dotted.items()
        if "was" in leaf.item.metadata
    }
    for change in changes:
        name, equals, text = (part.strip() for part in change.partition("="))
        if not equals:
            raise SettingsError(f"--set {change!r}: write it as --set section.key=value")
        if name in former:
            raise SettingsError(f"--set {change!r}: {name!r} is called {former[name]!r} now")
        if name not in dotted:
            hint = nearest(name, dotted) or " See `g2d settings --defaults`."
            raise SettingsError(f"--set {change!r}: there is no setting {name!r}.{hint}")
        leaf = dotted[name]
        if leaf.key in found:
            raise SettingsError(f"--set gives {name} twice: give it once")
        found[leaf.key] = leaf.read_toml(text)
    return found


def merged(given: Given, changes: Given) -> dict[str, Any]:
    """Flags and `--set` together.

    Raises:
        SettingsError: both give the same setting.
    """
    if twice := given.keys() & changes.keys():
        name = min(twice).replace("__", ".", 1)
        raise SettingsError(f"{name} is given by its own flag and by --set: give it once")
    return {**given, **changes}
