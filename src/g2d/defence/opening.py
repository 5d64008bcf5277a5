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
from g2d.tasks.attack import BALL, NONE
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
    was = base.info.get("attack", BALL) if base else task.attack_kind
    if was != task.attack_kind:
        raise DataError(
            f"{vault.path} was made for a task that is attacked by {_ATTACKS[was]}, and task "
            f"{task.name!r} says {_ATTACKS[task.attack_kind]} now: the attacks that the vault "
            "keeps are of the former kind. Put the task's attack back, or use a new vault"
        )


_ATTACKS = {
    BALL: "PGD in the ball of eps",
    "tokens": "substitution of tokens",
    "own": "an attack of its own",
    NONE: "nothing (attack = 'none')",
}


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
    _check_kind(task, settings)
    check(task, settings.harden)
    try_out(task, settings.harden, find_teacher(settings.harden))
    try:
        check_budget(settings.guidance.robust_eps, 1, task.bounds)
    except SettingsError as error:
        raise SettingsError(f"[guidance] robust_eps: {error}") from None


def _check_kind(task: Task, settings: Settings) -> None:
    """Refuse settings of attacks that this task does not have."""
    kind, s = task.attack_kind, settings
    wanted = {
        "[harden] recipe 'adversarial'": "adversarial" in s.harden.recipe,
        "[guidance] robust_weight": s.guidance.robust_weight > 0,
        "[guidance] joint_weight": s.guidance.joint_weight > 0,
        "[guidance] bank_weight": s.guidance.bank_weight > 0,
        "[gates] robust": s.gates.robust > 0,
        "[gates] stale_share": s.gates.stale_share > 0,
    }
    if kind == NONE and (asked := [name for name, on in wanted.items() if on]):
        raise SettingsError(
            f"{', '.join(asked)} asks for attacks, and task {task.name!r} says attack = 'none'; "
            "leave it at 0, or give the task an attack"
        )
    given = {
        "[task] eps": s.task.eps not in (0, task.eps),
        "[harden] eps": s.harden.eps > 0,
        "[harden] norm": s.harden.norm != "inf",
        "[guidance] robust_eps": s.guidance.robust_eps > 0,
    }
    if kind != BALL and (asked := [name for name, on in given.items() if on]):
        raise SettingsError(
            f"{', '.join(asked)} is of the ball of eps, and task {task.name!r} is attacked by "
            f"{_ATTACKS[kind]}: its budget stands in the task; leave the setting out"
        )


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
            pickle.dumps((source.loss, source.augment, source.attack, source.tokens))
        except (pickle.PicklingError, AttributeError, TypeError):
            return SerialEngine()
        own = (source.factory, source.attack)
        if any(getattr(one, "__module__", "") == "__main__" for one in own):
            return SerialEngine()
    return LocalEngine(workers)
