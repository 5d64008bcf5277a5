"""What a release says of itself: components of what is deployed, hashes that fit the pins."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from places import ROOT
from tools import tool


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release, hashes = script("release"), script("hashes")


def component(name: str, **more) -> dict:
    return {"bom-ref": f"{name}==1", "name": name, "type": "library", "version": "1"} | more


BOM = {
    "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
    "metadata": {"component": {"bom-ref": "root-component", "name": "g2d", "type": "library"}},
    "components": [
        component("Torch", externalReferences=[
            {"type": "distribution", "url": "file:///srv", "comment": "PackageSource: Local"},
            {"type": "website", "url": "https://torch.example"},
        ]),
        component("sympy"), component("pytest"), component("g2d"),
    ],
    "dependencies": [{"ref": "root-component", "dependsOn": ["Torch==1", "pytest==1"]}],
}  # fmt: skip
GRAPH = {"g2d": {"torch"}, "torch": {"sympy"}, "sympy": set()}


def test_the_list_has_what_is_deployed_and_not_where_it_came_from():
    assert release.betrayals(BOM)
    bom = release.pruned(BOM, GRAPH)
    assert [part["name"] for part in bom["components"]] == ["Torch", "sympy"]
    assert bom["components"][0]["externalReferences"] == [
        {"type": "website", "url": "https://torch.example"}
    ]
    assert bom["dependencies"] == [
        {"ref": "root-component", "dependsOn": ["Torch==1"]},
        {"ref": "sympy==1"},
        {"ref": "Torch==1", "dependsOn": ["sympy==1"]},
    ]
    assert release.betrayals(bom) == []
    with pytest.raises(SystemExit, match="not installed here: numpy"):
        release.pruned(BOM, GRAPH | {"numpy": set()})


def test_a_list_is_validated_by_the_schema():
    pytest.importorskip("cyclonedx")
    release.validate(json.dumps(release.pruned(BOM, GRAPH)))
    with pytest.raises(SystemExit, match="not valid"):
        release.validate(json.dumps(BOM | {"components": [{"name": "torch"}]}))


def test_the_real_list_names_packages_and_nothing_of_this_machine():
    bom = release.listed(Path(tool("cyclonedx-py")))
    names = {release.normal(part["name"]) for part in bom["components"]}
    assert {"torch", "numpy", "cryptography", "fastapi", "sympy"} <= names
    assert not {"pytest", "ruff", "mypy", "g2d"} & names
    assert release.betrayals(bom) == []
    assert str(ROOT) not in json.dumps(bom)


# --- hashes --------------------------------------------------------------------------------------


def reported(name: str, version: str, digest: str) -> dict:
    archive = {"hashes": {"sha256": digest}}
    return {
        "metadata": {"name": name, "version": version},
        "download_info": {"archive_info": archive},
    }


def test_hashes_of_another_platform_stay_and_those_of_another_version_go():
    report = {"install": [reported("Torch", "2.1+cpu", "a" * 64), reported("g2d", "0", "b" * 64)]}
    here, platform = hashes.pinned(report)
    assert here == {"torch": ("2.1", {"a" * 64})}
    assert platform.startswith(sys.platform)
    assert platform.endswith("torch 2.1+cpu")
    other = {"torch": ("2.1", {"c" * 64}), "colorama": ("1", {"d" * 64})}
    both = hashes.merged(other, here)
    assert both["torch"] == ("2.1", {"a" * 64, "c" * 64})
    text = hashes.written(both, [platform, "win32"])
    assert hashes.read(text) == (both, sorted([platform, "win32"]))
    newer = hashes.merged(both, {"torch": ("2.2", {"e" * 64})})
    assert newer["torch"] == ("2.2", {"e" * 64})


def test_the_locks_pins_are_those_of_the_constraints():
    if not hashes.LOCK.exists():
        pytest.skip("requirements.lock is not made yet: make hashes")
    pins, covered = hashes.read(hashes.LOCK.read_text("utf-8"))
    found = re.findall(r"^([\w.-]+)==(\S+)", hashes.CONSTRAINTS.read_text("utf-8"), re.M)
    known = {hashes.normal(name): version for name, version in found}
    assert {name: version for name, (version, _) in pins.items()}.items() <= known.items()
    assert all(digests for _, digests in pins.values())
    assert covered
    assert {"torch", "numpy", "fastapi", "cryptography"} <= pins.keys()
