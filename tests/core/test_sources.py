"""What a module of a user's own consists of, and that it is loaded as it was read."""

from __future__ import annotations

import hashlib
import importlib
import py_compile
import sys
import zipfile

import pytest

from g2d.core import sources

FILES = {
    "lone_top.py": "import lone_beside\nfrom lone_pack.inner import deep\nimport os, torch\n",
    "lone_beside.py": "def f():\n    from lone_late import x\n",
    "lone_late.py": "x = 1\n",
    "lone_other.py": "raise SystemError('not imported by anybody')\n",
    "lone_pack/__init__.py": "from . import near\n",
    "lone_pack/near.py": "import os\n",
    "lone_pack/far.py": "",
    "lone_pack/inner/__init__.py": "from ..near import os\n",
    "lone_pack/inner/deep.py": "from .. import near as n\nfrom lone_pack.inner import nothing\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Modules of which none may be run."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "raise AssertionError('it was run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources._HELD, "sources", {})
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("lone_")]:
        del sys.modules[name]


def test_what_a_module_imports_of_its_own_counts(folder):
    found = sources.read_sources("lone_top")
    assert sorted(found) == [
        "lone_beside", "lone_late", "lone_pack", "lone_pack.inner", "lone_pack.inner.deep",
        "lone_pack.near", "lone_top",
    ]  # fmt: skip
    assert found["lone_pack"].file == folder / "lone_pack" / "__init__.py"
    deep = sources.read_sources("lone_pack.inner.deep")
    assert sorted(deep) == ["lone_pack", "lone_pack.inner", "lone_pack.inner.deep",
                            "lone_pack.near"]  # fmt: skip
    (made,) = sources.digests({"task": {"x": found["lone_late"]}, "none": {}}).values()
    data = (folder / "lone_late.py").read_bytes()
    assert made == {"x": hashlib.sha256(data).hexdigest()}


def test_among_installed_packages_only_the_own_one_counts(folder, monkeypatch):
    monkeypatch.setattr(sources, "installed_folders", lambda: {str(folder.resolve())})
    assert sorted(sources.read_sources("lone_top")) == ["lone_top"]
    assert len(sources.read_sources("lone_pack.inner.deep")) == 4


def test_of_an_archive_all_counts(folder, monkeypatch):
    with zipfile.ZipFile(folder / "lone.zip", "w") as archive:
        archive.writestr("lone_zipped/__init__.py", "")
        archive.writestr("lone_zipped/inner.py", "")
    monkeypatch.syspath_prepend(folder / "lone.zip")
    found = sources.read_sources("lone_zipped.inner")
    assert {name: one.file for name, one in found.items()} == {"lone_zipped": folder / "lone.zip"}
    assert sources.locate("lone_zipped.inner") == folder / "lone.zip"


def test_what_is_not_a_users_has_no_sources(folder):
    for name in ("g2d.tasks", "sys", "no_such_module_at_all"):
        assert sources.read_sources(name) == {}


def test_what_was_changed_added_or_is_gone_is_said(folder):
    bound = {name: one.digest for name, one in sources.read_sources("lone_top").items()}
    assert sources.changes(bound, sources.read_sources("lone_top")) == ""
    (folder / "lone_late.py").write_text("import lone_other\n")
    (folder / "lone_beside.py").unlink()
    said = sources.changes(bound, sources.read_sources("lone_top"))
    assert said == "module lone_beside is gone, module lone_late is gone"
    (folder / "lone_beside.py").write_text(FILES["lone_beside.py"])
    said = sources.changes(bound, sources.read_sources("lone_top"))
    assert said == (f"{folder / 'lone_beside.py'} was changed, {folder / 'lone_late.py'} was "
                    f"changed, {folder / 'lone_other.py'} was added")  # fmt: skip


def test_what_is_held_is_loaded_as_it_was_read(folder):
    """Neither another file, put there meanwhile, nor bytecode that claims to be of this one."""
    (folder / "lone_top.py").write_text("from lone_pack import near\nvalue = 1\n")
    (folder / "lone_pack" / "__init__.py").write_text("")
    (folder / "lone_pack" / "near.py").write_text("value = 1\n")
    read = sources.read_parts({"task": "lone_top"})
    (folder / "lone_top.py").write_text("value = 2\n")
    lie = folder / "lie.py"
    lie.write_text("value = 3\n")
    py_compile.compile(
        str(lie),
        importlib.util.cache_from_source(str(folder / "lone_pack" / "near.py")),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    sources.hold(read)
    top = importlib.import_module("lone_top")
    assert (top.value, top.near.value) == (1, 1)
    assert top.__file__ == str(folder / "lone_top.py")
