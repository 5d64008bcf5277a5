"""What lies on a serving host after all: keys of the generating side, plaintext of weights.

    python -m benchmarks.sealing.host            # swtpm; a minute or two

A signed, sealed vault of digits and a host with a software TPM: the host is enrolled, its copy of
the vault is opened, `g2d serve` runs as a process, answers, and changes over to a second release.
Then each file that the host has (the whole vault's copy, state folder, TPM's state, temporary
files, HOME, compiled Python), and its process' environment and command line, are searched for each
private key of the generating side in eight forms, and for each block of 64 bytes of every network.
At last each of them is planted once, and all have to be found. Memory is not searched: there the
weights are, and have to be.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common.command import carry_out, parser
from benchmarks.common.places import ROOT
from benchmarks.common.results import record
from benchmarks.sealing.scan import BLOCK, blocks_of, found_in, tensors_of
from benchmarks.sealing.software_tpm import running

PATIENCE = 600.0  # seconds until the service answers, or changes over, on a machine with other work
SETTINGS: dict[str, dict[str, Any]] = {
    "task": {"name": "digits"},
    "population": {"members": 3, "basins": 1, "base_steps": 200, "early_steps": 60,
                   "fork_steps": 60, "batch": 64, "pool": 128, "pool_steps": 3},
    "autoencoder": {"steps": 40, "width": 32},
    "diffusion": {"steps": 200, "width": 32, "depth": 1, "sampler_steps": 10},
    "guidance": {"pool": 128, "pool_steps": 3, "latent_steps": 5, "polish_steps": 40},
    "gates": {"accuracy_drop": 0.5, "class_drop": 1.0, "stale_asr": 1.0, "pool": 64},
}  # fmt: skip


class Sides:
    """Where generations are made, and a host; what each does is a process of its own there."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        self.made, self.edge = folder / "made", folder / "edge"
        self.vault, self.copy = self.made / "vault", self.edge / "vault"
        for side in (self.made, self.edge):
            (side / "tmp").mkdir(mode=0o700, parents=True)

    def env(self, side: Path) -> dict[str, str]:
        """The environment of a side: nothing in it is the other's."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return kept | {
            "HOME": str(side), "XDG_CONFIG_HOME": str(side / "config"), "TMPDIR": str(side / "tmp"),
            "G2D_STATE": str(side / "state"), "PYTHONPATH": str(ROOT / "src"),
            "PYTHONPYCACHEPREFIX": str(side / "compiled"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def run(self, side: Path, *arguments: object) -> None:
        """Run a command on a side; the umask is a careful user's."""
        command = [sys.executable, "-m", "g2d", *map(str, arguments)]
        done = subprocess.run(
            command, env=self.env(side), cwd=side, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"g2d {' '.join(map(str, arguments))}: {done.stderr[-500:]}")

    def make(self) -> None:
        """A vault of digits whose generations are signed from the second on; then sealed."""
        settings = self.made / "settings.toml"
        lines = [f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n"
                                         for key, value in table.items())
                 for name, table in SETTINGS.items()]  # fmt: skip
        settings.write_text("\n".join(lines))
        self.run(self.made, "population", self.vault, "--settings", settings)
        self.run(self.made, "fit", self.vault)
        self.run(self.made, "keys", "new")
        self.run(self.made, "keys", "use", self.vault)
        self.run(self.made, "generate", self.vault)
        self.run(self.made, "vault", "seal", self.vault, "--custodian",
                 f"file:{self.made / 'custodian.key'}")  # fmt: skip

    def enroll(self) -> None:
        """Enrol the host, whose counter counts each generation."""
        tpm, host = ("--tpm", self.address), self.made / "edge.host"
        request, challenge, answer = (self.folder / name for name in ("1", "2", "3"))
        self.run(self.edge, "attest", "enroll", "--out", request, *tpm)
        self.run(self.made, "attest", "enroll", request, "--host", host, "--out", challenge,
                 "--insecure-software-tpm", "--every", 1)  # fmt: skip
        self.run(self.edge, "attest", "enroll", challenge, "--out", answer, *tpm)
        self.run(self.made, "attest", "enroll", answer, "--host", host)

    def release(self) -> None:
        """Release what is live, and copy the folder, all of it, ledger last."""
        host, nonce, quote = self.made / "edge.host", self.folder / "4", self.folder / "5"
        self.run(self.made, "attest", "ask", host, nonce)
        self.run(self.edge, "attest", "quote", nonce, quote, "--tpm", self.address)
        self.run(self.made, "attest", "release", self.vault, host, quote)
        files = [path for path in self.vault.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == "ledger.sqlite"):
            there = self.copy / path.relative_to(self.vault)
            if not path.name.startswith(("ledger.sqlite-", "vault.lock")):
                _folder(there.parent)
                shutil.copy2(path, there.with_name(f".{there.name}.part"))
                there.with_name(f".{there.name}.part").replace(there)

    @contextmanager
    def serving(self) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
        """`g2d serve` on the host: its process and its address."""
        log = self.edge / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "g2d", "serve", str(self.copy), "--port", "0",
                 "--key", str(self.edge / "signing.pub")],
                env=self.env(self.edge), cwd=self.edge, stderr=out, stdout=out,
            )  # fmt: skip
            try:
                _wait(lambda: " is live at " in log.read_text() or process.poll() is not None)
                if process.poll() is not None:
                    raise RuntimeError(log.read_text()[-500:])
                yield process, log.read_text().split(" is live at ")[1].split("/v2")[0]
            finally:
                process.terminate()
                process.wait()


def _folder(path: Path) -> None:
    for folder in reversed((path, *path.parents)):
        folder.mkdir(mode=0o700, exist_ok=True)


def _wait(true: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.1)


# --- what is searched for ------------------------------------------------------------------------


def keys_of(sides: Sides) -> dict[str, bytes]:
    """Each private key of the generating side, 32 bytes each."""
    from cryptography.hazmat.primitives import serialization as s

    from g2d.protect.watermark import WatermarkKey
    from g2d.vault.keys import load_private

    config = sides.made / "config" / "g2d"
    mark = sides.made / "mark.key"
    if not mark.exists():
        WatermarkKey.generate().write(mark)
    signing, approvals = (load_private(config / name) for name in ("signing.key", "approvals.key"))
    words = (sides.made / "custodian.key").read_text().split()
    return {
        "signing key": signing.private_bytes(s.Encoding.Raw, s.PrivateFormat.Raw, s.NoEncryption()),
        "approvals key": approvals.private_numbers().private_value.to_bytes(32, "big"),
        "file custodian": base64.b64decode(words[3]),
        "watermark key": WatermarkKey.read(mark).secret,
    }


def secrets_of(sides: Sides) -> tuple[dict[str, bytes], list[bytes]]:
    """Keys with those of the vault, of which each file has one; and the contents of all files."""
    from g2d.protect.sealing import custodian
    from g2d.vault.vault import Vault

    found, contents = keys_of(sides), []
    with Vault.open(sides.vault) as opened:
        sealing = opened.sealing
        rules = sealing.record
        assert rules is not None
        found["vault key"] = sealing.key(rules, custodian(f"file:{sides.made / 'custodian.key'}"))
        for path in sorted(sides.vault.rglob("*.safetensors")):
            found[f"data key of {path.relative_to(sides.vault)}"] = _data_key(sealing, rules, path)
            contents.append(sealing.content(path))
    return found, [data for data in contents if data is not None]


def _data_key(sealing: Any, rules: Any, path: Path) -> bytes:
    from g2d.vault.sealing.envelope import head_of

    with path.open("rb") as file:
        key: bytes = sealing.data_key(rules, head_of(file.read))
    return key


def forms_of(key: bytes) -> dict[str, bytes]:
    """A key as it might lie in a file; base64 at each of the three places that it may begin at."""
    found = {"raw": key, "hex": key.hex().encode(), "HEX": key.hex().upper().encode()}
    for shift in range(3):  # what PEM holds is DER, with the key somewhere in it
        whole = base64.b64encode(bytes(shift) + key)
        found[f"base64 at {shift}"] = whole[-(-8 * shift // 6) : 8 * (shift + len(key)) // 6]
    found["base64 for URLs"] = base64.urlsafe_b64encode(key).rstrip(b"=")
    found["backwards"] = key[::-1]  # a number as a small-endian machine has it
    return found


def pieces(folder: Path, process: subprocess.Popen[bytes] | None = None) -> Iterator[
    tuple[str, bytes]
]:  # fmt: skip
    """Everything below a folder, by name; with a process, what `ps` may show of it, too."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield str(path.relative_to(folder)), path.read_bytes()
    if process is not None:
        for name in ("environ", "cmdline"):
            yield f"/proc/{name}", Path(f"/proc/{process.pid}/{name}").read_bytes()


def keys_in(
    parts: Iterator[tuple[str, bytes]], keys: Mapping[str, bytes]
) -> list[tuple[str, str, str]]:
    """Key, form and file, wherever one lies; lines are put together, as PEM's are cut."""
    wanted = [(name, form, text) for name, key in keys.items() for form, text in
              forms_of(key).items()]  # fmt: skip
    found = []
    for file, data in parts:
        joined = b"".join(data.split())
        found += [(name, form, file) for name, form, text in wanted if text in data or
                  text in joined]  # fmt: skip
    return found


def control(folder: Path, keys: Mapping[str, bytes], blocks: set[bytes]) -> dict[str, int]:
    """Plant each key in each form, its PEM where there is one, and a block; how many are found."""
    wanted = found = 0
    for name, key in keys.items():
        for form, text in forms_of(key).items():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / "planted").write_bytes(b"before " + text + b" after")
            wanted += 1
            found += any(one[:2] == (name, form) for one in keys_in(pieces(folder), keys))
    (folder / "planted").write_bytes(b"odd" + max(blocks))
    return {"planted": wanted, "found": found, "blocks": sum(found_in(folder, blocks).values())}


def files_of_keys(sides: Sides, keys: Mapping[str, bytes]) -> int:
    """How many keys are found in the very files that hold them: four, on the generating side."""
    kept = dict.fromkeys(("signing key", "approvals key", "file custodian", "watermark key"))
    wanted = {name: keys[name] for name in kept}
    return len({name for name, _, _ in keys_in(pieces(sides.made), wanted)})


# --- the run -------------------------------------------------------------------------------------


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A host's whole life, and what lies on it then."""
    edge = folder / "edge"
    with running(edge / "tpm") as address:
        sides = Sides(folder, address)
        sides.make()
        sides.enroll()
        sides.release()
        shutil.copy2(sides.made / "config" / "g2d" / "signing.pub", edge / "signing.pub")
        sides.run(edge, "attest", "open", sides.copy, "--tpm", address)
        with sides.serving() as (process, at):
            first = _live(at)
            answered = _ask(at)
            sides.run(sides.made, "generate", sides.vault)
            sides.release()
            _wait(lambda: _live(at) > first)
            answered += _ask(at)
            keys, contents = secrets_of(sides)
            blocks = blocks_of(tensors_of(contents))
            while_ = keys_in(pieces(edge, process), keys), found_in(edge, blocks)
            served = [first, _live(at)]
        after = keys_in(pieces(edge), keys), found_in(edge, blocks)
    files = [path for path in edge.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return record(given) | {
        "served": served, "answers": answered, "files": len(files), "bytes": size,
        "keys": len(keys), "forms": len(forms_of(bytes(32))), "blocks searched": len(blocks),
        "keys found": [*while_[0], *after[0]], "blocks found": while_[1] | after[1],
        "control": control(folder / "control", keys, blocks),
        "own files": files_of_keys(sides, keys),
    }  # fmt: skip


def _live(at: str) -> int:
    with urllib.request.urlopen(f"{at}/status", timeout=PATIENCE) as said:
        return int(json.load(said)["rotation"]["generation"])


def _ask(at: str) -> int:
    """Ask for one answer; how many came."""
    tensor = {"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
    body = json.dumps({"inputs": [tensor]}).encode()
    request = urllib.request.Request(f"{at}/v2/models/g2d/infer", body)
    with urllib.request.urlopen(request, timeout=PATIENCE) as said:
        return len(json.load(said)["outputs"])


def rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """The table."""
    told = result["control"]
    where = f"in {result['files']} files of a serving host"
    return [
        (f"{result['keys']} keys of the generating side, {where}: found", "0",
         len(result["keys found"])),
        (f"blocks of {BLOCK} bytes of plaintext {where}", "0",
         sum(result["blocks found"].values())),
        ("control: planted keys that are found", "all", f"{told['found']} of {told['planted']}"),
        ("control: planted block found; keys found in their own files", "yes; 4 of 4",
         f"{'yes' if told['blocks'] else 'NO'}; {result['own files']} of 4"),
    ]  # fmt: skip


def main() -> None:
    """Run the command line."""
    carry_out("sealing-host", parser(__doc__), measure, rows)


if __name__ == "__main__":
    main()
