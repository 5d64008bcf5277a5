"""The commands `g2d keys new|show|use|trust`: they print fingerprints and paths, never a key.

Thin, like `cli`, and as lazy. What keys are and what they sign is in `vault`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from g2d.cli.console import print_line
from g2d.errors import KeyFileError

app = typer.Typer(
    name="keys",
    help="Keys that sign generations and verify them before they are served.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

KeyPath = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="Private key file; else ~/.config/g2d/signing.key."),
]


@app.command()
def new(
    key: KeyPath = None,
    public: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Public key file; else beside it, as .pub.")
    ] = None,
    export: Annotated[
        bool, typer.Option("--export", help="For `g2d export --sign`: ECDSA, as others verify it.")
    ] = False,
    custodian: Annotated[
        str,
        typer.Option(
            metavar="CUSTODIAN",
            help="What opens the private key's file: file:PATH, pkcs11:...; tpm: makes the key in"
            " the TPM, which it never leaves.",
        ),
    ] = "",
) -> None:
    """Make a key pair: the private file for generating, the public one for serving."""
    from g2d.protect.sealing import HOLDERS
    from g2d.vault.keys import SigningKey, default_key

    private = key or (default_key().with_name("export.key") if export else default_key())
    public = public or private.with_suffix(".pub")
    if public == private:
        raise KeyFileError(f"both keys would be {private}: name another file with --public")
    _refuse_existing(private, public)
    if custodian:
        from g2d.protect.sealing import absolute, make_custodian

        make_custodian(custodian := absolute(custodian))
    if export:
        _new_export(private, public, custodian)
        return
    held = custodian.partition(":")[0] in HOLDERS if custodian else False
    made = SigningKey.make_held(custodian) if held else SigningKey.generate()
    made.write(private, custodian)
    made.public.write(public)
    print_line(f"private key  {private} (mode 600; keep it where generations are made)")
    print_line(f"public key   {public} (what serving needs)")
    print_line(f"fingerprint  {made.fingerprint}")
    if held:
        print_line(f"held by      {custodian}, which it never leaves (ECDSA P-256)")
    elif custodian:
        print_line(f"opened by    {custodian}")
    print_line(f"Next: g2d keys use VAULT --key {private}")


def _new_export(private: Path, public: Path, custodian: str) -> None:
    from g2d.vault.model_signing import ExportKey

    made = ExportKey.generate()
    made.write(private, custodian)
    made.write_public(public)
    print_line(f"private key  {private} (mode 600; it signs exports, nothing that is served)")
    print_line(f"public key   {public} (for `model_signing verify key --public_key`)")
    print_line(f"fingerprint  {made.fingerprint}")
    print_line(f"Next: g2d export VAULT OUT.safetensors --sign {private}")


@app.command()
def seal(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A private key's file, of any kind.")
    ],
    custodian: Annotated[
        str, typer.Option(metavar="CUSTODIAN", help="file:PATH, pkcs11:..., or tpm:")
    ],
) -> None:
    """Have a key's file open by a custodian alone: one that signs, a watermark's, an audit's.

    Of a file that it opens already, note that you have said so: on another machine, say.
    """
    from g2d.cli.shared import made_custodian
    from g2d.vault.sealing.keyfile import reseal

    url = made_custodian(custodian)
    former = reseal(file, url)
    print_line(f"{file} is opened by {url}.")
    if not former:
        print_line("The disk may still hold its old block, and backups their copies: wipe them, or")
        print_line("make a new key with a custodian from the start (docs/sealing.md).")


@app.command()
def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A private or public key file.")
    ] = None,
) -> None:
    """Print the fingerprints of the public keys in a file, and the vaults that it is bound to."""
    from g2d.vault.keys import default_key, read_public

    trusted = read_public(file or default_key())
    for fingerprint in trusted.fingerprints:
        print_line(f"fingerprint  {fingerprint}")
    for identity in sorted(trusted.vaults):
        print_line(f"vault        {identity}")


@app.command()
def use(
    vault: Annotated[Path, typer.Argument(metavar="VAULT", help="Folder of the vault.")],
    key: KeyPath = None,
) -> None:
    """Sign every generation that a vault accepts from now on."""
    from g2d.settings import Settings
    from g2d.vault.confirmed import confirm_key
    from g2d.vault.keys import SigningKey, default_key
    from g2d.vault.vault import Vault

    private = (key or default_key()).expanduser().absolute()
    fingerprint = SigningKey.read(private).fingerprint
    with Vault.open(vault, write=True) as opened:
        settings = Settings.from_vault(opened.settings_text, str(opened.path / "task.toml"))
        opened.write_settings(settings.override(signing__key=str(private)).to_toml())
        confirm_key(opened, str(private))  # also where the settings named it already
        identity, last = opened.identity, opened.last_number()
    print_line(f"vault        {identity}")
    print_line(f"fingerprint  {fingerprint}")
    kept = f"; generations up to {last} stay as they are" if last else ""
    print_line(f"Generations are signed from now on{kept}.")


@app.command()
def trust(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write, for serving.")],
    keys: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Key files to trust.")],
    vault: Annotated[
        list[Path] | None,
        typer.Option(metavar="VAULT", help="Trust them for this vault only; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Gather public keys into one file for serving; name vaults to trust them for these only."""
    from g2d.vault.keys import VerifyKey, read_public
    from g2d.vault.vault import Vault

    if not force:
        _refuse_existing(out)
    elif _is_private(out):
        raise KeyFileError(f"{out} is a private key and is not overwritten; name another file")
    found = [read_public(path) for path in keys]
    if not vault and len({frozenset(each.vaults) for each in found}) > 1:
        raise KeyFileError(
            "these files are bound to different vaults, and together each key would be trusted for"
            " all of them: name the vaults with --vault, or keep a file for each"
        )
    vaults = {identity for each in found for identity in each.vaults}
    for path in vault or ():
        with Vault.open(path) as opened:
            if not opened.identity:
                raise KeyFileError(f"{path} has no identity yet: run `g2d keys use {path}` first")
            vaults.add(opened.identity)
    together = VerifyKey(tuple(key for each in found for key in each.keys), frozenset(vaults))
    together.write(out)
    for fingerprint in together.fingerprints:
        print_line(f"fingerprint  {fingerprint}")
    for identity in sorted(vaults):
        print_line(f"vault        {identity}")
    print_line(f"{out} trusts {len(together.keys)} keys, for {len(vaults) or 'all'} vaults.")


def _is_private(path: Path) -> bool:
    from g2d.core.files import MOST_TEXT, read_plain

    return path.is_file() and b"PRIVATE KEY" in read_plain(path, MOST_TEXT, follow=True)[:4096]


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise KeyFileError(f"{path} exists already; name another file")
