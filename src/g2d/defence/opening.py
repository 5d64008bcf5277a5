"""How a task and its vault come together: made, or opened again, and checked to be each other's.

What is done with them then is in `defence`; a vault by itself is in `vault`.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, replace
from pathlib import Path

from g2d.attacks.pgd import check_budget
from g2d.core.engine import Engine, LocalEngine, SerialEngine
from g2d.errors import DataError, SettingsError, VaultError
from g2d.settings import Settings, TaskSettings, build
from g2d.tasks.source import TaskSource, data_digest, resolve
from g2d.tasks.task import Task
from g2d.training.recipes import check, find_teacher, try_out
from g2d.vault.vault import Vault

Opened = tuple[Task, TaskSource, Vault, Settings]


def create(task: Task | str, path: Path | str, settings: Settings | None) -> Opened:
    """Make an empty vault for a task, or open the one that is there; see `Defence.create`."""
    there = Settings() if settings is None else settings
    known = Path(path, "task.toml")
    if settings is None and known.is_file():
        there = Settings.from_file(known, stored=True)  # the folder of the data, above all
    named, source = _named(task, there.task)
    loaded = resolve(source)
    if settings is None and not known.is_file():
        tables = {key: dict(table) for key, table in loaded.settings.items()}
        there = build(Settings, tables, f"settings of task {loaded.name!r}", stored=True)
    full = replace(there, task=named)
    if not Path(path, "ledger.sqlite").exists():
        _check_hardening(loaded, full)  # what cannot work leaves no folder behind
    vault = _open_or_create(Path(path), full.to_toml())
    try:
        kept = Settings.from_vault(vault.settings_text, str(known))
        begun = any(vault.entries(kind) for kind in ("base", "member", "teacher"))
        if begun and (other := _differences(kept, full)):
            raise VaultError(
                f"{path} was made with other task or population settings ({'; '.join(other)}); use "
                "a new folder, or leave the settings out to go on with the vault's own"
            )
        vault.write_settings(full.to_toml())
        _check_data(loaded, vault)
    except BaseException:
        vault.close()
        raise
    return loaded, source, vault, full


def reopen(path: Path | str, task: Task | None, write: bool, data: str, named: str) -> Opened:
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
        source: TaskSource = task or (s.name, data or s.data, s.split_seed, s.eps)
        loaded = resolve(source)
        _check_data(loaded, vault)
    except BaseException:
        vault.close()
        raise
    return loaded, source, vault, settings


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


def _named(task: Task | str, given: TaskSettings) -> tuple[TaskSettings, TaskSource]:
    """The task's settings, and how a worker process gets at it."""
    if isinstance(task, Task):
        return TaskSettings(name=task.name, eps=task.eps), task
    named = replace(given, name=task)
    return named, (named.name, named.data, named.split_seed, named.eps)


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


def _check_hardening(task: Task, settings: Settings) -> None:
    """Check before anything is made that hardening can work: one step of it is tried.

    Raises:
        SettingsError: a recipe or a budget of [harden] or [guidance] does not fit.
        TaskError, CheckpointError, VaultError: the teacher does not.
    """
    check(task, settings.harden)
    try_out(task, settings.harden, find_teacher(settings.harden))
    try:
        check_budget(settings.guidance.robust_eps, 1, task.reach)
    except SettingsError as error:
        raise SettingsError(f"[guidance] robust_eps: {error}") from None


def _differences(kept: Settings, given: Settings) -> list[str]:
    """Why a vault cannot go on: more members or other workers, a moved data folder are fine."""

    def fixed(s: Settings) -> dict[str, object]:
        hardening = asdict(s.harden)
        free = ("population.members", "population.workers", "task.data", "harden.teacher")
        if not s.harden.recipe:
            hardening = {"recipe": (), "stale": s.harden.stale}
        sections = {"task": asdict(s.task), "population": asdict(s.population), "harden": hardening}
        named = {f"{a}.{k}": v for a, section in sections.items() for k, v in section.items()}
        return {name: value for name, value in named.items() if name not in free}

    old, new = fixed(kept), fixed(given)
    return [
        f"[{name.replace('.', '] ')} was {old[name]!r} and is {new[name]!r}"
        for name in old
        if name in new and old[name] != new[name]
    ]


def default_engine(source: TaskSource, workers: int) -> Engine:
    """Worker processes where the task can travel to them, this process where it cannot."""
    if isinstance(source, Task):
        try:
            pickle.dumps(source.factory)
            pickle.dumps((source.loss, source.augment))
        except (pickle.PicklingError, AttributeError, TypeError):
            return SerialEngine()
        if getattr(source.factory, "__module__", "") == "__main__":
            return SerialEngine()
    return LocalEngine(workers)
