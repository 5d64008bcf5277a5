"""A vault that goes back is refused, whichever way it went; nothing of what was newer is lost."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from g2d.core import platforms
from g2d.errors import RefusedError, VaultError
from g2d.protect.audit.places import Anchor, anchor_file, audit_key, write_anchor
from g2d.vault.mark import FileMark, Mark, SteadyClock
from g2d.vault.rollback import judge
from g2d.vault.vault import Vault
from g2d.vault.verify import verify
from signed import run
from vaults import content

SETTINGS = '[task]\nname = "digits"\n'


@dataclass
class Scene:
    """A vault with generation 4 live, and what it was when 2 was."""

    vault: Path
    old: Path
    state: Path

    @property
    def mark(self) -> FileMark:
        with Vault.open(self.vault) as opened:
            return FileMark(self.vault, opened.identity)

    def say(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.vault / "ledger.sqlite")) as ledger, ledger:
            for statement in statements:
                ledger.execute(statement)

    def put_back(self) -> None:
        shutil.rmtree(self.vault)
        shutil.copytree(self.old, self.vault)


def grow(vault: Vault, upto: int, salt: bytes = b"") -> None:
    for number in range(vault.last_number() + 1, upto + 1):
        files = {"weights": content(number) + salt}
        assert vault.accept(files, {"turn": number}, activate=True).number == number


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    path, old = tmp_path / "vault", tmp_path / "old"
    with Vault.create(path, SETTINGS) as vault:
        grow(vault, 2)
    shutil.copytree(path, old)
    with Vault.open(path, write=True) as vault:
        grow(vault, 4)
    return Scene(path, old, tmp_path / "state")


def exposures_deleted(scene: Scene) -> None:
    scene.say("DELETE FROM exposures WHERE number > 2")


def rows_deleted(scene: Scene) -> None:
    scene.say("DELETE FROM exposures WHERE number > 2", "DELETE FROM generations WHERE number > 2")


def kept_row_deleted(scene: Scene) -> None:
    with Vault.open(scene.vault, write=True) as vault:
        vault.accept({"weights": b"5"}, {})
    scene.say("DELETE FROM generations WHERE number = 5")


def older_ledger(scene: Scene) -> None:
    shutil.copy(scene.old / "ledger.sqlite", scene.vault)
    for end in ("-wal", "-shm"):
        (scene.vault / f"ledger.sqlite{end}").unlink(missing_ok=True)


def whole_folder(scene: Scene) -> None:
    scene.put_back()


def identity_wiped(scene: Scene) -> None:
    scene.put_back()
    scene.say("DROP TABLE identity", "DROP TABLE marked")


def identity_emptied(scene: Scene) -> None:
    scene.say("DELETE FROM identity")


def another_identity(scene: Scene) -> None:
    scene.put_back()
    scene.say("UPDATE identity SET id = '0123456789abcdef0123456789abcdef'")


def another_history(scene: Scene) -> None:
    """As many generations, others from 3 on: made by somebody in a copy of the old vault."""
    with Vault.open(scene.old, write=True) as vault:
        grow(vault, 5, b"another")
    scene.put_back()


def mark_deleted(scene: Scene) -> None:
    scene.mark.file.unlink()
    scene.put_back()


def state_deleted(scene: Scene) -> None:
    shutil.rmtree(scene.state)
    scene.put_back()


def mark_damaged(scene: Scene) -> None:
    scene.mark.file.write_text('{"live": ')


def mark_nested(scene: Scene) -> None:
    scene.mark.file.write_text("[" * 60_000)


def mark_open(scene: Scene) -> None:
    scene.mark.file.chmod(0o666)
    scene.put_back()


def link_in_its_place(scene: Scene) -> None:
    """The path that is served leads elsewhere now."""
    scene.vault.rename(scene.vault.with_name("aside"))
    scene.vault.symlink_to(scene.old)


WAYS: dict[Callable[[Scene], None], str] = {
    exposures_deleted: "generation 2 is the last that is live, and 4 has been before",
    rows_deleted: "generation 2 is the last that is live, and 4 has been before",
    kept_row_deleted: "generation 4 is the last that is kept, and 5 has been before",
    older_ledger: "generation 2 is the last that is live, and 4 has been before",
    whole_folder: "the vault was put back",
    identity_wiped: "now it is one without an identity",
    identity_emptied: "now it is one without an identity",
    another_identity: "now it is 0123456789abcdef0123456789abcdef",
    another_history: "its history was replaced",
    mark_deleted: "was deleted",
    state_deleted: "there is none here",
    mark_damaged: "is not the mark that g2d wrote",
    mark_nested: "is not the mark that g2d wrote",
    mark_open: "run `chmod -R go-rwx ",
    link_in_its_place: "the vault was put back",
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_whichever_way_a_vault_goes_back_it_is_refused_and_nothing_is_deleted(scene, way):
    way(scene)
    real = scene.vault.resolve()
    before = sorted(path.name for path in (real / "generations").iterdir())
    with pytest.raises(VaultError) as writing:
        Vault.open(scene.vault, write=True)
    with Vault.open(scene.vault) as opened, pytest.raises(VaultError) as reading:
        judge(opened, FileMark(scene.vault, opened.identity))
    if way not in (state_deleted, mark_deleted, mark_damaged, mark_nested, mark_open):
        assert [p for p in verify(scene.vault, patience=0) if WAYS[way] in p.what]
    for error in (writing, reading):
        assert WAYS[way] in str(error.value)
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in (real / "generations").iterdir()) == before
    if way is mark_open:
        return  # what nobody may write is set right by chmod
    assert "accepted: generation" in run("accept", scene.vault)
    with Vault.open(scene.vault, write=True) as opened:
        assert FileMark(scene.vault, opened.identity).read().accepted.startswith("accepted: gen")
        (opened.live(), opened.last_number())


def test_what_was_accepted_goes_on_above_all_numbers_that_were_ever_issued(scene):
    rows_deleted(scene)
    run("accept", scene.vault)
    assert sum("has no row for it" in p.what for p in verify(scene.vault, patience=0)) == 2
    with Vault.open(scene.vault, write=True) as vault:
        assert (vault.live(), vault.last_number(), vault.next_number()) == (2, 2, 5)
        assert vault.accept({"weights": b"next"}, {}, activate=True).number == 5
    folders = sorted(path.name for path in (scene.vault / "generations").iterdir())
    assert folders == ["000001", "000002", "000003", "000004", "000005"]  # 3 and 4 are evidence
    for name in ("000003", "000004"):
        shutil.rmtree(scene.vault / "generations" / name)
    assert {p.kind for p in verify(scene.vault, patience=0)} == {"tensors"}  # no gap, no stranger
    with Vault.open(scene.vault, write=True) as vault:
        assert vault.next_number() == 6


def test_a_ledger_without_its_log_is_not_older(scene):
    with Vault.open(scene.vault) as reader, Vault.open(scene.vault, write=True) as vault:
        assert reader.live() == 4  # as a service beside it, so that the log is not removed
        grow(vault, 5)
        shutil.copy(scene.vault / "ledger.sqlite", scene.vault.with_name("alone.sqlite"))
    with closing(sqlite3.connect(scene.vault.with_name("alone.sqlite"))) as alone:
        assert alone.execute("SELECT max(number) FROM exposures").fetchone() == (5,)


def test_copies_moves_and_new_vaults_need_no_word_on_the_same_machine(scene):
    copy = Path(shutil.copytree(scene.vault, scene.vault.with_name("copy")))
    with Vault.open(copy, write=True) as vault:
        grow(vault, 6)
    with Vault.open(scene.vault, write=True) as vault:
        grow(vault, 5)  # the copy went another way, and has a mark of its own
    with Vault.open(scene.old) as opened:
        marks = FileMark(scene.old, opened.identity)
        assert judge(opened, marks) is None
        assert marks.elsewhere() == 6  # an older copy, which a service tells
    shutil.rmtree(copy)
    with Vault.create(copy, SETTINGS) as made:
        accepted = FileMark(copy, made.identity).read().accepted
    assert "generation 6 live" in accepted
    Vault.open(copy, write=True).close()


def test_a_writer_whose_ledger_goes_back_under_it_writes_no_more_and_deletes_nothing(scene):
    with Vault.open(scene.vault, write=True) as vault:
        grow(vault, 7)
        rows_deleted(scene)
        for write in (lambda: grow(vault, 3), lambda: vault.activate(2)):
            with pytest.raises(RefusedError, match="put back while it was open for writing"):
                write()
        assert vault.next_number() == 8  # no number is issued twice
    for number in range(1, 8):
        assert (scene.vault / "generations" / f"{number:06d}" / "weights.safetensors").exists()


def test_a_mark_that_was_deleted_with_what_says_where_it_is_is_missed(scene):
    scene.put_back()
    marks = scene.mark
    marks.file.unlink()
    marks._known.unlink()
    with pytest.raises(RefusedError, match="or the mark was deleted"):
        Vault.open(scene.vault, write=True)


def test_state_inside_the_vault_would_go_back_with_it(scene, monkeypatch):
    link = scene.vault.with_name("link")
    link.symlink_to(scene.vault)
    for inside in (scene.vault / "state", link / "state"):
        monkeypatch.setenv("G2D_STATE", str(inside))
        with pytest.raises(
            VaultError, match=r"lies in the vault.*set G2D_STATE to a folder outside"
        ):
            Vault.open(scene.vault, write=True)


def test_the_state_folder_is_closed_whatever_the_umask_and_whoever_makes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "a" / "state"))
    before = os.umask(0o002)
    try:
        audit_key()
        write_anchor(anchor_file(tmp_path / "log"), Anchor("log", 1, "head", True))
        Vault.create(tmp_path / "vault", SETTINGS).close()
    finally:
        os.umask(before)
    for path in (tmp_path / "a" / "state", *(tmp_path / "a" / "state").rglob("*")):
        assert path.suffix == ".pub" or not path.stat().st_mode & 0o077


def test_a_mark_that_another_process_holds_is_not_the_disks_fault(scene, monkeypatch):
    monkeypatch.setattr("g2d.vault.mark._PATIENCE", 0.0)
    marks = scene.mark
    with marks._writing(), pytest.raises(VaultError, match="another process keeps its hold"):
        scene.mark.told()


def test_a_new_machine_is_told_what_to_run(scene, tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "another"))
    with pytest.raises(RefusedError, match="new to this machine") as refused:
        Vault.open(scene.vault, write=True)
    assert refused.value.reason == "unmarked"
    assert str(refused.value).endswith(f"run `g2d accept {scene.vault}`")
    run("accept", scene.vault)
    with Vault.open(scene.vault, write=True) as vault:
        grow(vault, 5)


def test_a_vault_from_before_there_were_marks_gets_one(scene):
    shutil.rmtree(scene.state)
    scene.say("DROP TABLE marked")
    with Vault.open(scene.vault, write=True) as vault:
        assert vault.marked
    assert scene.mark.read().live == 4


def test_marks_only_rise_and_are_their_owners_alone(scene):
    marks, mark = scene.mark, scene.mark.read()
    assert (mark.live, mark.last, mark.issued) == (4, 4, 4)
    marks.advance(Mark(mark.vault, 3, "lower", 3, 3, mark.time - 50))
    assert marks.read() == mark
    marks.advance(Mark(mark.vault, 7, "ab", 9, 0, mark.time + 50))
    assert marks.read() == Mark(mark.vault, 7, "ab", 9, 9, mark.time + 50)
    for path in (scene.state, *scene.state.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
    assert json.loads(marks.file.read_text())["path"] == str(scene.vault)


def test_a_state_folder_that_cannot_be_written_names_the_variable(scene, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "file" / "state"))
    with pytest.raises(VaultError, match="set G2D_STATE to a folder of this user that outlives"):
        Vault.create(tmp_path / "new", SETTINGS)
    monkeypatch.delenv("G2D_STATE")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)

    def homeless(*_: object) -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(VaultError, match="set G2D_STATE"):
        Vault.create(tmp_path / "new2", SETTINGS)


def test_where_state_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("G2D_STATE", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert platforms.state_folder() == tmp_path / "g2d"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # to be ignored, by its specification
    monkeypatch.setenv("HOME", str(tmp_path))
    assert platforms.state_folder() == tmp_path / ".local" / "state" / "g2d"
    monkeypatch.setenv("G2D_STATE", "here")
    assert platforms.state_folder() == Path(os.getcwd()) / "here"


def test_a_clock_that_is_set_back_does_not_take_the_time_back(monkeypatch):
    clock = SteadyClock(seen=5e9)
    assert clock.now() >= 5e9
    assert clock.behind() > 1e9
    running = SteadyClock()
    assert running.behind() == pytest.approx(0.0, abs=1.0)
    now = running.now()
    monkeypatch.setattr("time.time", lambda: now - 1000)
    assert running.now() >= now
    assert running.behind() == pytest.approx(1000, abs=60)


@pytest.mark.parametrize("step", ["read", "reset"])
def test_a_kill_while_a_vault_is_made_leaves_one_that_opens(tmp_path, monkeypatch, step):
    """Its mark and its own note of that are two files: the note comes last."""
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as kill:
        kill.setattr(FileMark, step, killed)
        with pytest.raises(KeyboardInterrupt):
            Vault.create(tmp_path / "vault", SETTINGS)
    with Vault.open(tmp_path / "vault", write=True) as vault:
        grow(vault, 1)
        assert vault.marked
