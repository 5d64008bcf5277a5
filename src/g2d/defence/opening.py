"""How a task and its vault come together: made, or opened again, and checked to be each other's.

What is done with them then is in `defence`; a vault by itself is in `vault`.
"""

from __future__ import annotations

import dataclasses
import warnings
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from g2d.core.devices import CPU, count
from g2d.core.engine import Engine, LocalEngine, SerialEngine
from g2d.core.files import read_text
from g2d.core.imports import words
from g2d.core.sources import Digests, digests
from g2d.core.workers import pack_job
from g2d.defence.kinds import WORDS
from g2d.defence.privacy.mode import apart, check_mode, shield_of
from g2d.defence.renewal import current, planted
from g2d.defence.survey import check_all
from g2d.errors import DataError, PopulationError, SettingsError, VaultError
from g2d.settings import Settings, TaskSettings, build
from g2d.tasks.attack import BALL, note_of
from g2d.tasks.origin import settled
from g2d.tasks.sizes import defaults_of
from g2d.tasks.source import (
    TaskSource,
    by_name,
    data_digest,
    device_of,
    find,
    is_named,
    on_device,
    resolve,
    shielded,
)
from g2d.tasks.task import Task
from g2d.vault.code import code_of, load_only
from g2d.vault.federated import is_federated
from g2d.vault.vault import Vault

Opened = tuple[Task, TaskSource, Vault, Settings]


def create(
    task: Task | str, path: Path | str, settings: Settings | None, code: Digests | None
) -> Opened:
    """Make an empty vault for a task, or open the one that is there; see `Defence.create`."""
    there = Settings() if settings is None else settings
    known = Path(path, "task.toml")
    goes_on = settings is None and known.is_file() and _is_of(path, task, known)
    if goes_on:
        there = _kept(known)  # the folder of the data, above all
    named, source = _named(task, there.task)
    if code is not None:
        load_only(code, Path(path), replace(there, task=named))
    if isinstance(task, Task):
        named = replace(named, device=there.task.device)
    lost = isinstance(source, tuple) and (named.origin or named.made_in)
    loaded = find(named) if lost else resolve(source)
    if settings is None and not goes_on:
        there = _defaults(loaded)
        if there.privacy.enabled:
            there = _defaults(apart(loaded, there))
        if there.task.device != named.device:  # the task's own settings say where it runs
            named = replace(named, device=there.task.device)
    loaded, source = on_device(loaded, source, named.device)
    full = replace(there, task=named)
    if not Path(path, "ledger.sqlite").exists():
        check_all(apart(loaded, full), full)  # what cannot work leaves no folder behind
    vault = _open_or_create(Path(path), full.to_toml())
    try:
        kept = Settings.from_vault(vault.settings_text, str(known))
        other = _differences(kept, full, is_federated(vault))
        if not is_named(kept.task.name) and loaded.name == kept.task.name:
            other.pop("task.name", None)  # the same task, by a name that can be found again
        if other and not vault.begun():
            vault.delete("teacher")  # a copy of a file that the former settings named
        elif other:
            said = "; ".join(other.values())
            raise VaultError(
                f"{path} was made with other task or population settings ({said}); use "
                "a new folder, or leave the settings out to go on with the vault's own"
            )
        loaded, source = _kept_apart(*planted(loaded, source, vault), full, vault)
        _check_data(loaded, vault)
        vault.write_settings(full.to_toml())
    except BaseException:
        vault.close()
        raise
    return *current(loaded, source, vault), vault, full


def reopen(
    path: Path | str,
    task: Task | None,
    write: bool,
    data: str,
    named: str,
    code: Digests | None,
) -> tuple[Task, TaskSource, Vault, Settings, Digests]:
    """Open a vault and load the task that its settings name; see `Defence.open`."""
    vault = Vault.open(path, write=write)
    try:
        settings = Settings.from_vault(vault.settings_text, str(Path(path) / "task.toml"))
        s = settings.task
        if named and settings.source != named:
            raise VaultError(
                f"{path} was of task {named!r} and names {settings.source!r} now: nothing of it is"
                " loaded. Look who changed task.toml, and put it back."
            )
        read = code_of(settings) if code is None else load_only(code, vault.path, settings)
        source: TaskSource = task or by_name(s, data)
        loaded, source = on_device(task or find(s, data), source, s.device)
        loaded, source = planted(loaded, source, vault)
        loaded, source = _kept_apart(loaded, source, settings, vault)
        _check_data(loaded, vault)
    except BaseException:
        vault.close()
        raise
    return *current(loaded, source, vault), vault, settings, digests(read)


def _defaults(task: Task) -> Settings:
    return build(Settings, defaults_of(task), f"settings of task {task.name!r}", stored=True)


def _kept_apart(
    task: Task, source: TaskSource, settings: Settings, vault: Vault
) -> tuple[Task, TaskSource]:
    """The task as a private vault has it, people's records apart; as it is where none is."""
    check_mode(settings, vault)
    shield = shield_of(settings, vault)
    return (task, source) if shield is None else shielded(task, source, shield)


def _kept(known: Path) -> Settings:
    """The settings that a folder holds, read as what anybody may have put there."""
    try:
        return Settings.from_vault(read_text(known), str(known))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the settings file {known}: {error}") from error


def _check_data(task: Task, vault: Vault) -> None:
    """Refuse other data than the vault's: its attacks point into splits by index."""
    base = vault.entry("base")
    known = base.info.get("data") if base else None
    if known is not None and known != data_digest(task):
        raise DataError(
            f"the data of task {task.name!r} is not what {vault.path} was made with "
            "(other files, order or split seed): examples would leak between splits. Point "
            "--data at the original, or use a new vault"
        )
    was = base.info.get("attack", BALL) if base else task.attack_kind
    if was != task.attack_kind:
        raise DataError(
            f"{vault.path} was made for a task that is attacked by {WORDS[was]}, and task "
            f"{task.name!r} says {WORDS[task.attack_kind]} now: the attacks that the vault "
            "keeps are of the former kind. Put the task's attack back, or use a new vault"
        )
    limits = base.info.get("limits") if base else None
    if limits and limits != note_of(task).get("limits"):
        raise DataError(
            f"{vault.path} was made for another budget than task {task.name!r} has now: the "
            "attacks that it keeps may go beyond it. Put the former budget back, or use a new vault"
        )


def _named(task: Task | str, given: TaskSettings) -> tuple[TaskSettings, TaskSource]:
    """The task's settings, and how a worker process gets at it."""
    if isinstance(task, Task):
        own = TaskSettings(name=task.name, eps=task.eps)
        if ":" in task.name:
            return own, task  # which says where it is found
        origin = settled(task.origin)
        if not origin.name and given.name == task.name and given.origin:
            return replace(own, origin=given.origin, made_in=given.made_in), task
        made_in = origin.file if origin.name else origin.why
        return replace(own, origin=origin.name, made_in=made_in), task
    if task == given.name:  # with the function that made it, where it was given as an object
        return given, by_name(given)
    named = replace(given, name=task, origin="", made_in="")
    return named, by_name(named)


def _open_or_create(path: Path, settings_toml: str) -> Vault:
    """Open the vault that is there, or make one; a folder that a kill left half made counts so."""
    if not (path / "ledger.sqlite").exists():
        return Vault.create(path, settings_toml)
    try:
        return Vault.open(path, write=True)
    except VaultError as refused:
        try:
            return Vault.create(path, settings_toml)
        except VaultError:
            raise refused from None


def _is_of(path: Path | str, task: Task | str, known: Path) -> bool:
    """Whether what is in a folder is to go on: a start of another task that failed is not."""
    with Vault.open(path) if Path(path, "ledger.sqlite").exists() else nullcontext() as vault:
        if vault is None or vault.begun():
            return True
        name = task.name if isinstance(task, Task) else task
        return Settings.from_vault(vault.settings_text, str(known)).task.name == name


def _differences(kept: Settings, given: Settings, federated: bool) -> dict[str, str]:
    """Why a vault cannot go on: more members or other workers, a moved data folder are fine.

    Args:
        federated: whether clients have trained it, by `[federated]`.
    """

    def fixed(s: Settings) -> dict[str, object]:
        hardening = asdict(s.harden)
        free = ("population.members", "population.workers", "task.data", "harden.teacher",
                "task.device", "task.origin", "task.made_in")  # fmt: skip
        if not s.harden.recipe:
            hardening = {"recipe": (), "stale": s.harden.stale}
        sections = {"task": asdict(s.task), "population": asdict(s.population), "harden": hardening}
        if federated:
            sections["federated"] = s.federated.of_training
        named = {f"{a}.{k}": v for a, section in sections.items() for k, v in section.items()}
        return {name: value for name, value in named.items() if name not in free}

    old, new = fixed(kept), fixed(given)
    return {
        name: f"[{name.replace('.', '] ')} was {old[name]!r} and is {new[name]!r}"
        for name in old
        if name in new and old[name] != new[name]
    }


def default_engine(source: TaskSource, workers: int) -> Engine:
    """Worker processes where the task can travel to them, this process (with a warning) where not.

    What `__main__` defines stays here even where it could travel: whether the script that is run
    has a guard is not known before it is imported once more.
    """
    if isinstance(source, Task) and (why := why_it_stays(source)):
        if workers != 1:
            warnings.warn(
                f"task {source.name!r} cannot travel to worker processes, so everything is trained "
                f"in this one, job after job: {why}. Put what it names into a module of its own, "
                "as plain functions and classes, or name the task 'module:function'",
                stacklevel=3,
            )
        return SerialEngine()
    device = device_of(source)
    return LocalEngine(workers or (count(device.partition(":")[0]) if device != CPU else 0))


def why_it_stays(task: Task) -> str:
    """Why a task object cannot travel to a worker process; "": it can. Data always can."""
    own = {f.name: getattr(task, f.name) for f in dataclasses.fields(task) if f.name != "splits"}
    for name, value in own.items():
        try:
            _, of_main = pack_job(value)
        except PopulationError as error:
            return f"its {name} cannot be pickled ({words(error.__cause__ or error)})"
        if of_main:
            return f"its {name} is, or uses, {of_main[0]!r} of __main__"
    return ""
