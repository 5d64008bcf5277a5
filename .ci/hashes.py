"""Write requirements.lock: SHA-256 of every package that pip chooses here for what is deployed.

    python .ci/hashes.py    # on each platform that is to be covered; hashes add up

`constraints.txt` pins versions; a file with hashes in its place would have pip ask for a hash of
this checkout, too. So hashes have a file of their own, with the same pins, for an install that is
verified. pip resolves, and says of each file it would install what its index says its SHA-256 is;
nothing is installed. pip-compile --generate-hashes would download each build of each platform.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK, CONSTRAINTS = ROOT / "requirements.lock", ROOT / "constraints.txt"
DEPLOYED = (
    "report,images,attacks,signing,sealing,pkcs11,timestamp,serve,auth,monitor,privacy,he,"
    "federated,ray"
)
HEAD = """\
# Made by `make hashes`: what is deployed, with the SHA-256 of each file that pip may install.
#     pip install --require-hashes -r requirements.lock && pip install --no-deps DIST/g2d-*.whl
# Pins are those of constraints.txt. Only these builds are covered; on another platform, or with
# another build of PyTorch (CUDA, ROCm, macOS), a maintainer runs `make hashes` there, which adds
# that platform's hashes and leaves these.
"""
_COVERED = "# covers: "
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")

Pins = dict[str, tuple[str, set[str]]]
"""Version and hashes by a package's normalised name."""


def normal(name: str) -> str:
    """A package's name as indexes have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(text: str) -> tuple[Pins, list[str]]:
    """Pins with their hashes, and the builds that they cover."""
    pins: Pins = {}
    last = ""
    for line in text.splitlines():
        if found := _PIN.match(line):
            last = normal(found[1])
            pins[last] = (found[2], set())
        for digest in _HASH.findall(line):
            pins[last][1].add(digest)
    covered = [line[len(_COVERED) :] for line in text.splitlines() if line.startswith(_COVERED)]
    return pins, covered


def chosen() -> tuple[Pins, str]:
    """What pip would install here, and what to call this platform."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
             "--report", str(report), "--constraint", str(CONSTRAINTS), f"{ROOT}[{DEPLOYED}]"],
            check=True,
        )  # fmt: skip
        return pinned(json.loads(report.read_text("utf-8")))


def pinned(report: dict[str, object]) -> tuple[Pins, str]:
    """Pins and hashes of pip's report, without this checkout; a local version is left off."""
    pins: Pins = {}
    torch = ""
    for item in report["install"]:  # type: ignore[attr-defined]
        name, version = normal(item["metadata"]["name"]), item["metadata"]["version"]
        if name == "g2d":
            continue
        torch = version if name == "torch" else torch
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        pins[name] = (version.partition("+")[0], {digest})
    python = ".".join(platform.python_version_tuple()[:2])
    return pins, f"{sys.platform} {platform.machine()}, Python {python}, torch {torch}"


def merged(old: Pins, new: Pins) -> Pins:
    """New pins with the hashes that the old ones have for the same version."""
    same = {n: old[n][1] for n, (version, _) in new.items() if n in old and old[n][0] == version}
    both = {name: (version, h | same.get(name, set())) for name, (version, h) in new.items()}
    return {**{n: p for n, p in old.items() if n not in new}, **both}


def written(pins: Pins, covered: list[str]) -> str:
    """The file."""
    lines = [HEAD.rstrip(), *(f"{_COVERED}{each}" for each in sorted(set(covered)))]
    for name, (version, hashes) in sorted(pins.items()):
        lines.append(" \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{h}" for h in
                                                           sorted(hashes))]))  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Add this platform to the file."""
    old, covered = read(LOCK.read_text("utf-8")) if LOCK.exists() else ({}, [])
    new, here = chosen()
    LOCK.write_text(written(merged(old, new), [*covered, here]), "utf-8")
    print(f"{LOCK.name}: {len(new)} packages; {here}")


if __name__ == "__main__":
    main()
