"""Make dist/: the packages, what they are made of (CycloneDX), and the SHA-256 of each file.

    python .ci/release.py    # `make release`

The list is of what is deployed: the packages that g2d's own extras ask for, with what those ask
for, as they are installed beside this Python; tools of development are left out. Nothing of this
machine is in it, and that is checked before it is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEPLOYED = ("report", "images", "attacks", "signing", "serve", "ray")
ROOT_REF = "root-component"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PLACE = re.compile(r"(?<![\w.:/-])/(?:home|root|tmp|opt|work|usr|var|srv|Users|mnt)/|file:|\\\\")

Bom = dict[str, Any]


def normal(name: str) -> str:
    """A package's name as indexes have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def deployed(pyproject: dict[str, Any]) -> set[str]:
    """Names of the packages that g2d itself asks for where it is deployed."""
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(line for extra in DEPLOYED for line in extras[extra])]
    names = {normal(found[0]) for line in asked if (found := _NAME.match(line))}
    return names - {"g2d"}


def pruned(bom: Bom, names: set[str]) -> Bom:
    """The list with what is deployed alone, and without where this machine has it from."""
    edges = {each["ref"]: each.get("dependsOn", []) for each in bom["dependencies"]}
    refs = {each["bom-ref"]: each for each in bom["components"]}
    roots = [ref for ref in edges[ROOT_REF] if normal(refs[ref]["name"]) in names]
    if missing := names - {normal(refs[ref]["name"]) for ref in roots}:
        raise SystemExit(f"not installed here: {', '.join(sorted(missing))}; run `make check` once")
    kept, waiting = {ROOT_REF}, list(roots)
    while waiting:
        ref = waiting.pop()
        if ref not in kept and ref in refs:
            kept.add(ref)
            waiting += edges.get(ref, [])
    edges[ROOT_REF] = roots
    components = [_without_places(refs[ref]) for ref in refs if ref in kept]
    dependencies = [
        {"ref": ref, **({"dependsOn": on} if (on := [o for o in edges[ref] if o in kept]) else {})}
        for ref in edges
        if ref in kept
    ]
    return bom | {"components": components, "dependencies": dependencies}


def _without_places(component: dict[str, Any]) -> dict[str, Any]:
    """A component without what says from which folder or index it was installed."""
    public = [
        reference
        for reference in component.get("externalReferences", [])
        if reference["url"].startswith(("https://", "http://"))
        and "PackageSource" not in reference.get("comment", "")
    ]
    rest = {k: v for k, v in component.items() if k not in ("externalReferences", "properties")}
    return rest | ({"externalReferences": public} if public else {})


def betrayals(bom: Bom) -> list[str]:
    """Texts that name this machine: its host, its user's home, a folder."""
    private = [str(ROOT), str(Path.home()), platform.node()]
    private = [text for text in private if len(text) > 3]
    return [
        text
        for text in _texts(bom)
        if _PLACE.search(text) or any(secret in text for secret in private)
    ]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def validate(text: str) -> None:
    """Raise unless a list is valid CycloneDX 1.6."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise SystemExit(f"the list of components is not valid CycloneDX 1.6: {error}")


def components() -> str:
    """The list, as JSON."""
    tool = Path(sys.executable).with_name("cyclonedx-py")
    made = subprocess.run(
        [tool, "environment", "--spec-version", "1.6", "--output-reproducible", "--mc-type",
         "library", "--pyproject", ROOT / "pyproject.toml", sys.executable],
        check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    asked = deployed(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8")))
    bom = pruned(json.loads(made.stdout), asked)
    if found := betrayals(bom):
        raise SystemExit(f"the list of components names this machine: {found[:5]}")
    text = json.dumps(bom, indent=1, sort_keys=True) + "\n"
    validate(text)
    return text


def main() -> None:
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    moment = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    os.environ |= {"SOURCE_DATE_EPOCH": moment, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    subprocess.run([sys.executable, "-m", "build", "--outdir", dist, ROOT], check=True)
    (dist / "g2d.cdx.json").write_text(components(), "utf-8")
    sums = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(dist.iterdir())
    ]
    (dist / "SHA256SUMS").write_text("".join(sums), "utf-8")
    print("".join(sums), end="")


if __name__ == "__main__":
    main()
