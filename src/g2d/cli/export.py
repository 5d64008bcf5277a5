"""`g2d export`: a generation as a plain file, or as a version of a registered model; thin and lazy.

What each format is, and how it is checked, is in `g2d.interop`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer

from g2d.cli.console import print_line
from g2d.cli.shared import (
    AcceptCode,
    DataFolder,
    TaskPath,
    VaultPath,
    code_to_load,
    configure_torch,
    vault_settings,
)
from g2d.errors import G2DError, SettingsError

if TYPE_CHECKING:
    from g2d.vault.model_signing import ExportKey
    from g2d.vault.vault import Vault

_KERAS = (".keras", ".weights.h5")


def export(
    vault: VaultPath,
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT.safetensors]", help="File to write, or --to.")
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="FILE.safetensors, .onnx, .keras or .weights.h5; mlflow, or mlflow:FOLDER.",
        ),
    ] = "",
    number: Annotated[
        int | None, typer.Option(help="Number of the generation; the live one by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Public key: it must have signed it.")
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Export key: sign for model_signing, as OUT.sig."),
    ] = None,
    name: Annotated[
        str, typer.Option(help="MLflow: name of the registered model; the task's by default.")
    ] = "",
    data: DataFolder = None,
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Verify a generation and write it: safetensors, ONNX, Keras' files, or an MLflow version."""
    if (out is None) == (not to):
        raise typer.BadParameter("name one file, as OUT or by --to")
    target = str(out) if out is not None else to
    mlflow = target == "mlflow" or target.startswith("mlflow:")
    if mlflow and sign is not None:
        raise SettingsError("--sign signs a file, and an MLflow version is several; drop --sign")
    file = Path(target)
    signature = file.with_name(f"{file.name}.sig")
    signing = _export_key(sign)
    if not force and not mlflow:
        _refuse_existing((file, signature) if sign else (file,))
    weights, about = _read(vault, _folder(target) if mlflow else file, number, key)
    if mlflow or file.suffix == ".onnx" or file.name.endswith(_KERAS):
        bound = code_to_load(vault, vault_settings(vault), accept_code)
        where = "" if data is None else str(data.absolute())
        configure_torch()
        said = _elsewhere(vault, target, weights, about, name, bound, where)
    else:
        from g2d.core.files import write_bytes

        write_bytes(file, weights)
        said = f"{file}: model.load_state_dict(safetensors.torch.load_file(..))"
    if signing is not None:
        from g2d.core.files import write_bytes

        of = {"vault": about["vault"], "generation": about["generation"]}
        write_bytes(signature, signing.sign(file.name, file.read_bytes(), of))
        print_line(f"{signature} is its signature: model_signing verify key {file} --signature ..")
    print_line(f"generation {about['generation']} is in {said}")


def _refuse_existing(files: Sequence[Path]) -> None:
    for path in files:
        if path.exists():
            raise G2DError(f"{path} exists; name another file, or overwrite it with --force")


def _read(
    vault: Path, where: Path, number: int | None, key: Path | None
) -> tuple[bytes, dict[str, Any]]:
    """The weights of a generation, verified, and what is to be said of them."""
    from g2d.vault.serving import open_to_serve

    with open_to_serve(vault) as opened:
        _refuse_inside(where, opened)
        number = opened.live() if number is None else number
        if number is None:
            raise G2DError(f"{opened.path} has no generation yet; run `g2d fit` first")
        weights = _verified(opened, number, key) if key else opened.read_generation(number)
        manifest = json.loads(opened.read_generation(number, "manifest"))
        return weights, {"vault": opened.identity, "generation": number, "manifest": manifest}


def _elsewhere(
    vault: Path,
    target: str,
    weights: bytes,
    about: dict[str, Any],
    name: str,
    bound: Any,
    data: str,
) -> str:
    """Write what needs the task's network; where it is now, in words."""
    from g2d.defence.defence import Defence
    from g2d.weights.checkpoints import unpack

    file = Path(target)
    with Defence.open(vault, write=False, data=data, code=bound) as defence:
        task, state = defence.task, unpack(weights)
    if target.partition(":")[0] == "mlflow":
        from g2d.interop.mlflow import log

        version = log(task, weights, about, target.partition(":")[2], name)
        return f"{version}, with its manifest"
    if file.suffix == ".onnx":
        from g2d.interop.onnx import save as save_onnx

        of = {f"g2d.{key}": str(about[key]) for key in ("vault", "generation")}
        save_onnx(task, state, file, of)
        return f"{file}: input x, output logits; onnxruntime answered as torch does"
    from g2d.interop.keras import save as save_keras

    save_keras(task, state, file)
    return f"{file}: Keras read it, and answered as the generation does"


def _folder(target: str) -> Path:
    """The folder of `mlflow:FOLDER`, or of `mlflow:file:///FOLDER`."""
    where = target.partition(":")[2]
    parts = urlsplit(where)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else Path(where)


def _refuse_inside(out: Path, vault: Vault) -> None:
    """Write no plaintext into the folder of a sealed vault."""
    inside = out.absolute().resolve().is_relative_to(vault.path.resolve())
    if inside and vault.sealing.record is not None:
        raise G2DError(f"{out} lies in a sealed vault, and an export is plain: name a file outside")


def _export_key(file: Path | None) -> ExportKey | None:
    if file is None:
        return None
    from g2d.vault.model_signing import ExportKey

    return ExportKey.read(file)


def _verified(vault: Vault, number: int, key: Path) -> bytes:
    from g2d.vault.signing import VerifyKey, verify_generation

    trusted = VerifyKey.read(key)
    found = verify_generation(
        vault, number, trusted, after=number - 1, now=time.time(), files=("weights",),
        settings=False,
    )  # fmt: skip
    return found.weights
