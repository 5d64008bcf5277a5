"""The commands `g2d vault seal|unseal|rekey|custodians`: files at rest, and who opens them.

Thin, like `main`, which attaches them, and as lazy: none of them imports torch.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2d.cli.console import print_line, when
from g2d.cli.progress import show_progress
from g2d.cli.shared import VaultPath
from g2d.errors import SealingError

if TYPE_CHECKING:
    from g2d.vault.sealing.custodian import Custodian
    from g2d.vault.vault import Vault

app = typer.Typer(
    name="vault",
    help="Encryption at rest: seal a vault, and say who opens it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ByCustodian = Annotated[
    str,
    typer.Option(
        "--custodian",
        metavar="CUSTODIAN",
        help="file:PATH, pkcs11:..., tpm:, or paper; else $G2D_CUSTODIAN, or the one known here.",
    ),
]


@app.command()
def seal(vault: VaultPath, custodian: ByCustodian = "") -> None:
    """Encrypt a vault's weights, attacks and canaries, file by file; goes on where it stopped.

    A custodian of a vault that is not sealed yet gets its key; file:PATH is made if it is absent.
    """
    from g2d.protect.sealing import absolute
    from g2d.vault.sealing import changing
    from g2d.vault.sealing.remembered import named_here, new_custodian
    from g2d.vault.vault import Vault

    with Vault.open(vault, write=True) as opened:
        record = opened.sealing.record
        if record is None:
            by, url = _made(custodian, opened)
        else:
            url = absolute(custodian) or named_here(opened)
            by = new_custodian(url)
        with show_progress() as progress:
            done = changing.seal(opened, by, url, progress)
    print_line(f"{vault} is sealed: {_counted(done.files, done.before)}.")
    print_line("What was plain is gone from the folder. The disk may still hold its old blocks,")
    print_line("and backups their copies: trim or wipe them (docs/sealing.md).")
    if record is None:
        print_line(f"Next, a second way in: g2d vault custodians {vault} --add paper")


@app.command()
def unseal(vault: VaultPath, custodian: ByCustodian = "") -> None:
    """Write a sealed vault's files in plaintext again; goes on where it stopped."""
    from g2d.vault.sealing import changing
    from g2d.vault.sealing.remembered import forget, leave
    from g2d.vault.vault import Vault

    with Vault.open(vault) as there:
        record = there.sealing.record
        if record is None:
            forget(there)  # an older copy of a vault that was sealed is meant
            print_line(f"{vault} is not sealed.")
            return
        _opener(there, custodian)  # who cannot open it leaves it known that it is sealed
        leave(there, record)
    with Vault.open(vault, write=True) as opened, show_progress() as progress:
        done = changing.unseal(opened, _opener(opened, custodian), progress)
    print_line(f"{vault} is not sealed any more: {_counted(done.files, done.before)}.")


@app.command()
def rekey(
    vault: VaultPath,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="CUSTODIAN", help="Who alone gets the new key; else who opens it now."
        ),
    ] = "",
    custodian: ByCustodian = "",
) -> None:
    """Draw a new key for a sealed vault and seal every file anew by it; goes on where it stopped.

    For a custodian that was stolen: the former key opens nothing that lies here after.
    """
    from g2d.protect.sealing import absolute
    from g2d.vault.sealing.changing import require
    from g2d.vault.sealing.rekeying import rekey as rekeying
    from g2d.vault.sealing.remembered import named_here, new_custodian
    from g2d.vault.vault import Vault

    with Vault.open(vault, write=True) as opened:
        require(opened)
        by = new_custodian(absolute(custodian)) if custodian else None
        made, url = _made(to or custodian or named_here(opened), opened)
        with show_progress() as progress:
            done = rekeying(opened, by, made, url, progress)
    print_line(f"{vault} has a new key, held by {url} alone: {_counted(done.files, done.before)}.")
    if len(done.custodians) > 1 or (done.custodians and done.custodians[0] != url):
        print_line(f"Out are: {', '.join(done.custodians)}. Next: g2d vault custodians {vault}"
                   " --add paper")  # fmt: skip
    if done.releases:
        print_line(f"{done.releases} releases to hosts open no more: release anew (g2d attest).")
    print_line("Copies from before, and the disk's old blocks, open by the former key as ever.")


@app.command()
def custodians(
    vault: VaultPath,
    add: Annotated[
        str,
        typer.Option(metavar="CUSTODIAN", help="Give it the key, too; paper: print one once."),
    ] = "",
    remove: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Take the key from it.")
    ] = None,
    use: Annotated[
        str, typer.Option(metavar="CUSTODIAN", help="Open the vault by it on this machine.")
    ] = "",
    custodian: ByCustodian = "",
) -> None:
    """List who holds the key of a sealed vault, or change that."""
    from g2d.vault.sealing.changing import require
    from g2d.vault.vault import Vault

    if sum((bool(add), remove is not None, bool(use))) > 1:
        raise typer.BadParameter("give one of --add, --remove and --use at a time")
    if use:
        _use(vault, use)
    elif add:
        _add(vault, add, custodian)
    elif remove is not None:
        from g2d.vault.sealing.changing import remove_custodian

        with Vault.open(vault, write=True) as opened:
            _opener(opened, custodian)
            remove_custodian(opened, remove)
        print_line(f"Custodian {remove} is out. Whoever kept a copy of the vault from before, and")
        print_line("has that custodian, still opens the copy; `g2d vault rekey` draws a new key.")
    with Vault.open(vault) as opened:
        record = require(opened)
        print_line(f"state        {record.state}, key {record.key}")
        for one in record.held:
            print_line(f"custodian    {one.number}  {one.name}, added {when(one.added)}")


def _use(vault: Path, url: str) -> None:
    from g2d.protect.sealing import absolute, custodian
    from g2d.vault.sealing.changing import require
    from g2d.vault.sealing.remembered import remember
    from g2d.vault.sealing.sealer import unwrapped
    from g2d.vault.vault import Vault

    url = absolute(url)
    with Vault.open(vault) as opened:
        record = require(opened)
        unwrapped(record, custodian(url), opened.path)
        remember(opened, url, record.key, whole=record.all_sealed or None)
    print_line(f"{vault} is opened by {url} on this machine.")


def _add(vault: Path, url: str, by: str) -> None:
    from g2d.protect.sealing import absolute
    from g2d.protect.sealing.paper import PaperCustodian
    from g2d.vault.sealing.changing import add_custodian
    from g2d.vault.vault import Vault

    with Vault.open(vault, write=True) as opened:
        _opener(opened, by)
        if url == "paper":
            paper = PaperCustodian.make()
            add_custodian(opened, paper, url)
            print_line("Write this down; it is shown once, and opens the vault:")
            print_line("")
            print_line(f"    {paper.text}")
            print_line("")
            return
        made, named = _made(url, opened)
        add_custodian(opened, made, named)
    print_line(f"{absolute(url)} holds the key, too. On its machine:")
    print_line(f"g2d vault custodians {vault} --use {absolute(url)}")


def _opener(opened: Vault, url: str) -> Custodian | None:
    """Get the vault's key by the custodian that a flag names; None: by the one known here."""
    from g2d.protect.sealing import absolute, custodian
    from g2d.vault.sealing.changing import require

    by = custodian(absolute(url)) if url else None
    opened.sealing.key(require(opened), by)
    return by


def _made(url: str, opened: Vault) -> tuple[Custodian, str]:
    """The custodian that is to get a vault's key, whose own key is made if it is not there."""
    from g2d.protect.sealing import absolute, make_custodian

    if not url:
        raise SealingError(
            f"{opened.path} is not sealed, and no custodian is named to hold its key: give"
            " --custodian file:PATH, on another disk than the vault's"
        )
    made, new = make_custodian(absolute(url))
    if new:
        print_line(f"{absolute(url)} has a new key: whoever has it opens the vault, and without it")
        print_line("nobody does. Keep it apart from the vault and its backups.")
    return made, absolute(url)


def _counted(files: int, before: int) -> str:
    rest = f", {before} before" if before else ""
    return f"{files} files were rewritten{rest}"


def name_custodian(context: typer.Context, url: str) -> None:
    """Have every command open sealed vaults by a custodian, as $G2D_CUSTODIAN does."""
    import os

    from g2d.vault.sealing.remembered import VARIABLE

    def put_back(former: str | None = os.environ.get(VARIABLE)) -> None:
        with contextlib.suppress(KeyError):
            del os.environ[VARIABLE]
        if former is not None:
            os.environ[VARIABLE] = former

    if url:
        from g2d.protect.sealing import absolute

        os.environ[VARIABLE] = absolute(url)  # worker processes inherit it
        context.call_on_close(put_back)
