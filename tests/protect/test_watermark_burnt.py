"""What a key was used for: one suspect sees one set, and what was shown is noted before."""

from __future__ import annotations

import dataclasses
from io import FileIO

import pytest
import torch

from g2d.errors import ClaimError, G2DError, SettingsError, SuspectError
from g2d.protect.watermark import WatermarkKey, p_value
from g2d.protect.watermark.burnt import Record, Use, same_as
from g2d.protect.watermark.proof import Proof
from marked import learned, owning, suspect


@pytest.fixture
def owned(tmp_path):
    return owning(tmp_path)


def left(path) -> list[int]:
    known = Proof.read(path)
    return known.record.left(known.commitment)


def test_what_is_shown_burns_its_set_and_what_stays_here_does_not(owned, tmp_path):
    path, vault = owned
    marked = suspect(learned(WatermarkKey.read(path), sets=3))
    known, claim = Proof.read(path, vault), tmp_path / "claim.json"
    outcome = known.ask(marked, None, shown=False)
    assert (outcome.place, outcome.suspects, left(path)) == (0, 1, [0, 1, 2])
    known.show(outcome, marked, claim)
    assert left(path) == [1, 2]
    assert Proof.read(path).ask(marked, None, shown=False).place == 0, "which it may know by now"
    other = suspect(marked.model, name="other")
    other = dataclasses.replace(other, digest="sha256:" + "cd" * 32)
    with pytest.raises(SettingsError, match="--suspects is 1, and 2 suspects have been tried"):
        Proof.read(path).ask(other, 1, shown=True)
    again = Proof.read(path).ask(other, None, shown=True)
    assert (again.place, again.suspects) == (1, 2)
    assert again.p == pytest.approx(2 * 3 * p_value(again.hits, 100, 10))
    uses = Record(path).uses
    assert [(use.place, use.burnt) for use in uses] == [
        (0, False),
        (0, True),
        (0, False),
        (1, True),
    ]
    assert uses[0].suspect == marked.digest


def test_a_claim_that_cannot_be_noted_is_not_written(owned, tmp_path, monkeypatch):
    path, vault = owned
    marked, claim = suspect(learned(WatermarkKey.read(path), sets=3)), tmp_path / "claim.json"
    known = Proof.read(path, vault)
    outcome = known.ask(marked, None, shown=False)
    known.record.path = tmp_path / "absent" / "used"
    with pytest.raises(G2DError, match="which says what sets are burnt"):
        known.show(outcome, marked, claim)
    assert not claim.exists()


@dataclasses.dataclass
class Failing:
    """A service that reads what it is asked, and answers 500."""

    name: str
    seen: list
    digest: str = ""
    shape: tuple[int, ...] = (1, 6, 6)
    classes: int = 10

    def labels(self, x):
        self.seen.append(x)
        raise SuspectError("answered 500")


def test_a_service_that_fails_each_time_sees_one_set_unless_one_insists(owned):
    path, _ = owned
    seen = []

    def ask(url, place=None, **more):
        with pytest.raises(SuspectError, match="answered 500"):
            Proof.read(path, place=place).ask(Failing(url, seen), None, shown=True, **more)

    for url in ("https://a.example", "https://A.example/", "https://me@a.example/v2/models/m"):
        ask(url)
    assert all(torch.equal(x, seen[0]) for x in seen)
    assert left(path) == [1, 2]
    with pytest.raises(SettingsError, match=r"knows set 0 already, and set 1 .* --fresh-set"):
        Proof.read(path, place=1).ask(Failing("https://a.example", seen), None, shown=True)
    ask("https://a.example", 1, fresh=True)
    assert left(path) == [2]
    ask("https://a.example", fresh=True)
    assert left(path) == []
    assert len({x.numpy().tobytes() for x in seen}) == 3
    with pytest.raises(SettingsError, match="every set that may be queried is burnt"):
        Proof.read(path).ask(Failing("https://b.example", seen), None, shown=True)
    ask("https://b.example", 0)
    ask("https://a.example")


def test_a_damaged_record_of_uses_is_refused(owned):
    path, _ = owned
    record = Record(path)
    record.add(Use.now(0, "a service", burnt=True))
    record.path.write_text(record.path.read_text() + "{\n")
    with pytest.raises(ClaimError, match="put it back"):
        Record(path)


def test_half_a_line_is_no_use_and_stands_in_nobodys_way(tmp_path, monkeypatch):
    key = tmp_path / "mark.key"
    first, second = Use.now(0, "a", True), Use.now(1, "b", True)
    Record(key).add(first)

    with monkeypatch.context() as patch:  # as a disk that is nearly full does
        patch.setattr("g2d.protect.watermark.burnt.FileIO", HalfWritten)
        with pytest.raises(G2DError, match=r"No space left .* nothing was asked"):
            Record(key).add(second)
    assert Record(key).uses == [first]
    record = Record(key)
    with record.path.open("a") as file:
        file.write('{"place": 1, "da')  # a run that was killed
    assert Record(key).uses == [first]
    Record(key).add(second)
    assert Record(key).uses == [first, second]


class HalfWritten(FileIO):
    def write(self, data):
        return super().write(data[:9])


@pytest.mark.parametrize(
    "address",
    ["https://thief.example/", "http://THIEF.example:8001/v2", "https://u@thief.example."],
)
def test_a_host_is_one_suspect_whatever_the_port(address):
    assert same_as(address) == "thief.example"
