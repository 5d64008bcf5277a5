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
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
DEPLOYED = (
    "report", "images", "attacks", "signing", "sealing", "pkcs11", "timestamp", "serve", "auth",
    "monitor", "privacy", "he", "federated", "ray",
)  # fmt: skip
ROOT_REF = "root-component"
_PLACE = re.compile(r"(?<![\w.:/-])/(?:home|root|tmp|opt|work|usr|var|srv|Users|mnt)/|file:|\\\\")

Bom = dict[str, Any]
Graph = dict[str, set[str]]


def normal(name: str) -> str:
    """A package's name as indexes have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def deployed() -> Graph:
    """What g2d asks for where it is deployed, and what that asks for, by normalised name.

    The tool's own graph also follows extras that nobody asked for, to pytest and further.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(line for extra in DEPLOYED for line in extras[extra])]
    graph: Graph = {"g2d": set()}
    waiting = [("g2d", Requirement(line)) for line in asked]
    seen: set[tuple[str, str]] = set()
    while waiting:
        asker, needed = waiting.pop()
        name = normal(needed.name)
        if name == "g2d" or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        graph.setdefault(asker, set()).add(name)
        graph.setdefault(name, set())
        for extra in ("", *needed.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(name, more) for more in _asks(name, extra)]
    return graph


def _asks(name: str, extra: str) -> Iterator[Requirement]:
    """What an installed package asks for, with one of its extras."""
    for line in requires(name) or ():
        needed = Requirement(line)
        marker, needed.marker = needed.marker, None
        if marker is None or marker.evaluate({"extra": extra}):
            yield needed


def pruned(bom: Bom, graph: Graph) -> Bom:
    """The list with what is deployed alone, and without where this machine has it from."""
    refs = {normal(each["name"]): each["bom-ref"] for each in bom["components"]}
    if missing := graph.keys() - refs.keys() - {"g2d"}:
        raise SystemExit(f"not installed here: {', '.join(sorted(missing))}; run `make check` once")
    refs["g2d"] = ROOT_REF
    components = [
        _without_places(each)
        for each in bom["components"]
        if normal(each["name"]) in graph and normal(each["name"]) != "g2d"
    ]
    dependencies = [
        {"ref": refs[name], **({"dependsOn": sorted(refs[each] for each in on)} if on else {})}
        for name, on in sorted(graph.items())
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


def listed(tool: Path) -> Bom:
    """The list of what is deployed, as `cyclonedx-py` finds it beside this Python."""
    made = subprocess.run(
        [tool, "environment", "--spec-version", "1.6", "--output-reproducible", "--no-validate",
         "--mc-type", "library", "--pyproject", ROOT / "pyproject.toml", sys.executable],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    bom = pruned(json.loads(made.stdout), deployed())
    bom.pop("$schema", None)  # an address, which no reader needs
    if found := betrayals(bom):
        raise SystemExit(f"the list of components names this machine: {found[:5]}")
    return bom


def main() -> None:
    """Make everything anew."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    moment = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    os.environ |= {"SOURCE_DATE_EPOCH": moment, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    subprocess.run([sys.executable, "-m", "build", "--outdir", dist, ROOT], check=True)
    bom = listed(Path(sys.executable).with_name("cyclonedx-py"))
    text = json.dumps(bom, indent=1, sort_keys=True) + "\n"
    validate(text)
    (dist / "g2d.cdx.json").write_text(text, "utf-8")
    sums = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(dist.iterdir())
    ]
    (dist / "SHA256SUMS").write_text("".join(sums), "utf-8")
    print("".join(sums), end="")


if __name__ == "__main__":
    main()
