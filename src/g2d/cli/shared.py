"""What the commands share: common arguments, and how a command gets at a vault or an engine.

Imports lazily, like `cli`. No command lives here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from g2d.cli.flags import leaves
from g2d.core.search_path import add_task_path, drop_task_path
from g2d.errors import SealingError, SettingsError
from g2d.settings import PopulationSettings

if TYPE_CHECKING:
    from g2d.core.engine import LocalEngine
    from g2d.core.ray_engine import RayEngine
    from g2d.core.sources import Digests
    from g2d.defence.defence import Defence
    from g2d.settings import Settings
    from g2d.vault.vault import Vault

VaultPath = Annotated[Path, typer.Argument(metavar="VAULT", help="Folder of the vault.")]
DataFolder = Annotated[
    Path | None, typer.Option("--data", metavar="FOLDER", help="Folder of the task's data.")
]


def _find_modules(context: typer.Context, given: list[Path] | None) -> list[Path] | None:
    for folder in given or ():
        added = add_task_path(folder)
        context.call_on_close(partial(drop_task_path, added))
    return given


TaskPath = Annotated[
    list[Path] | None,
    typer.Option(
        "--task-path",
        metavar="FOLDER",
        help="Find modules of your own in this folder, too, after all that is installed;"
        " repeatable.",
        callback=_find_modules,
    ),
]
_WORKERS = leaves(PopulationSettings)["workers"]
Workers = Annotated[
    int | None,
    typer.Option(
        min=_WORKERS.item.metadata["range"][0],
        max=_WORKERS.item.metadata["range"][1],
        help=_WORKERS.item.metadata["doc"],
    ),
]
AcceptCode = Annotated[
    bool,
    typer.Option(
        "--accept-code",
        help="Your own code was changed since it was signed, and you have looked at it.",
    ),
]
EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Run jobs in worker processes here, or on a Ray cluster."),
]
RayAddress = Annotated[
    str,
    typer.Option(metavar="ADDRESS", help="HOST:PORT or auto; else $RAY_ADDRESS, or a local one."),
]
Seal = Annotated[
    str,
    typer.Option(
        "--seal",
        metavar="CUSTODIAN",
        help="Encrypt the vault from its first file on: file:PATH, pkcs11:..., or tpm:",
    ),
]
KeyCustodian = Annotated[
    str,
    typer.Option(
        "--custodian",
        metavar="CUSTODIAN",
        help="What opens the key's file: file:PATH, pkcs11:..., or tpm:",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="Bearer token, mode 600; else $G2D_TOKEN."),
]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="Certificates to trust; else the system's."),
]
ClientCert = Annotated[
    Path | None,
    typer.Option(
        "--client-cert",
        metavar="FILE",
        help="A certificate of your own with its key, in PEM.",
    ),
]


def configure_torch() -> None:
    """Give torch one thread: on a busy machine more of them were up to 60 times slower."""
    threads = os.environ.get("G2D_THREADS", "1")
    if not threads.isdecimal() or int(threads) < 1:
        raise SettingsError(f"G2D_THREADS is {threads!r}, expected a number of threads, 1 or more")
    from g2d.core.engine import configure_threads

    configure_threads(int(threads))


def task_path_again(given: Sequence[Path] | None) -> str:
    """What the next command needs of `--task-path`, where this one was given it."""
    return "".join(f" --task-path {folder}" for folder in given or ())


def open_defence(path: Path, data: Path | None, accept_code: bool = False) -> Defence:
    """Open a vault for writing; what is wrong with it is said before torch is imported.

    Args:
        accept_code: the user's own code may be other than what the last generation was signed with.
    """
    bound = code_to_load(path, vault_settings(path), accept_code)
    configure_torch()
    from g2d.defence.defence import Defence

    return Defence.open(path, data="" if data is None else str(data.absolute()), code=bound)


def code_to_load(path: Path, settings: Settings, accept_code: bool) -> Digests:
    """The digests that the user's own code is held to, of what settings name; {}: to none.

    Raises:
        VaultError: what was signed cannot be known, for its signature was removed.
    """
    from g2d.vault.code import signed_code
    from g2d.vault.vault import Vault

    if accept_code:
        return {}
    with Vault.open(path) as vault:
        return signed_code(vault, settings)


def vault_settings(path: Path) -> Settings:
    """Read a vault's settings; what is wrong with either is said here."""
    from g2d.settings import Settings
    from g2d.vault.vault import Vault

    with Vault.open(path) as vault:
        return Settings.from_vault(vault.settings_text, str(vault.path / "task.toml"))


def prepare(
    path: Path,
    file: Path | None,
    flags: Mapping[str, Any],
    accept_code: bool = False,
    marked: bool = False,
) -> tuple[Defence, int]:
    """Make or open a vault; return it with the number of workers to use.

    Settings come from flags, then the file, then the vault's own or else the task's defaults.

    Args:
        accept_code: see `open_defence`. marked: a new vault's networks will learn a watermark.
    """
    from g2d.settings import Settings

    if flags.get("task__data"):
        flags = {**flags, "task__data": str(Path(flags["task__data"]).absolute())}
    asked = (Settings.from_file(file) if file else Settings()).override(**flags)
    there = _to_go_on(path, asked, flags) if (path / "ledger.sqlite").exists() else None
    configure_torch()
    from g2d.defence.defence import Defence

    base = dataclasses.asdict(there) if there else _task_defaults(asked, marked)
    full = _layered(base, file).override(**flags)
    if full.task.data:
        full = full.override(task__data=str(Path(full.task.data).absolute()))
    if full.privacy.public:
        full = full.override(privacy__public=str(Path(full.privacy.public).absolute()))
    workers = full.population.workers
    if there is None:
        return Defence.create(full.task.name, path, full), workers
    full = full.override(population__workers=there.population.workers)
    bound = code_to_load(path, full, accept_code)
    if full.override(task__data=there.task.data) == there:
        return Defence.open(path, data=full.task.data, code=bound), workers
    return Defence.create(full.task.name, path, full, bound), workers


def asked_settings(file: Path | None, flags: Mapping[str, Any]) -> Settings:
    """The settings that a new vault would have: flags, then the file, then the task's defaults."""
    from g2d.settings import Settings

    if flags.get("task__data"):
        flags = {**flags, "task__data": str(Path(flags["task__data"]).absolute())}
    asked = (Settings.from_file(file) if file else Settings()).override(**flags)
    configure_torch()
    return _layered(_task_defaults(asked), file).override(**flags)


def _to_go_on(path: Path, asked: Settings, flags: Mapping[str, Any]) -> Settings | None:
    """The settings of the vault that is there; None where a start of another task had failed."""
    from g2d.settings import Settings
    from g2d.vault.vault import Vault

    there = vault_settings(path)
    if asked.task == Settings().task and "task__name" not in flags:
        return there  # no task is named
    with Vault.open(path) as vault:
        return there if asked.task.name == there.task.name or vault.begun() else None


def made_custodian(url: str) -> str:
    """The name in full of what is to open a key's file; its own key is made if it is not there."""
    from g2d.protect.sealing import absolute, make_custodian

    if url:
        make_custodian(url := absolute(url))
    return url


def seal_from_now(vault: Vault, url: str) -> None:
    """Seal a vault that is open for writing, and what lies in it, if a custodian is named."""
    from g2d.protect.sealing import absolute, make_custodian
    from g2d.vault.sealing.changing import seal

    if url:
        seal(vault, make_custodian(absolute(url))[0], absolute(url))


def refuse_ray(vault: Path) -> None:
    """Refuse a Ray cluster for a sealed vault: networks would lie in its stores in plaintext.

    Raises:
        SealingError: the vault is sealed.
    """
    from g2d.vault.sealing.remembered import remembered
    from g2d.vault.vault import Vault

    if not (vault / "ledger.sqlite").exists():
        return
    with Vault.open(vault) as opened:
        if opened.sealing.record is not None or remembered(opened).sealed:
            raise SealingError(
                f"{vault} is sealed, and a Ray cluster keeps networks in plaintext, in its object"
                " store and in replicas' folders: use --engine local"
            )


def make_engine(name: str, address: str, workers: int, vault: Path) -> LocalEngine | RayEngine:
    """Make the engine that `--engine` names, for work on a vault; 0 workers: one per core."""
    if name == "ray":
        refuse_ray(vault)
        from g2d.core.ray_engine import RayEngine

        return RayEngine(address, workers)
    from g2d.core.engine import LocalEngine

    return LocalEngine(workers)


def _task_defaults(asked: Settings, marked: bool = False) -> dict[str, Any]:
    from g2d.defence.privacy import apart
    from g2d.settings import Settings, build
    from g2d.tasks.sizes import defaults_of, marked_defaults_of
    from g2d.tasks.source import by_name, resolve

    task = asked.task
    # Of a private task by its public data: how many people there are is in no setting.
    resolved = apart(resolve(by_name(task)), asked)
    own = marked_defaults_of(resolved) if marked else defaults_of(resolved)
    # Under today's names: what a file or a flag says is laid over them.
    return dataclasses.asdict(build(Settings, own, f"task {task.name!r}", stored=True))


def _layered(base: Mapping[str, Any], file: Path | None) -> Settings:
    """Put what the file says over `base`; the file has been read and checked before."""
    import tomllib

    from g2d.core.files import read_text
    from g2d.settings import Settings, build

    tables = {section: dict(table) for section, table in base.items()}
    text = read_text(file, follow=True) if file else ""
    for section, table in tomllib.loads(text).items():
        tables.setdefault(section, {}).update(table)
    return build(Settings, tables, str(file or "settings"))
