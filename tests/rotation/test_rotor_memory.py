"""A `Rotor` finds weights that changed in memory, and heals them from the vault."""

from __future__ import annotations

import threading

import pytest
import torch

from g2d.errors import GenerationError, VaultError
from g2d.rotation.snapshot import Rotor, Snapshot


def flip(rotor: Rotor, bit: int = 30) -> str:
    """Flip one bit of a live weight; its name."""
    name, weight = next(iter(rotor.snapshot.predict._model.named_parameters()))
    weight.data.view(torch.int32).view(-1)[3] ^= 1 << bit
    return name


@pytest.mark.parametrize("bit", [0, 30])
def test_a_flipped_bit_is_found_and_healed_from_the_vault(defence, bit):
    rotor = Rotor(defence)
    x = defence.task.splits.test.x[:64]
    sound = rotor(x)
    assert rotor.check() == []
    defence.generation(1).state["0.weight"].view(torch.int32).view(-1)[7] ^= 1 << 30
    held = rotor.snapshot
    assert rotor.check() == []  # what is kept in memory elsewhere is not what answers
    name = flip(rotor, bit)
    assert rotor.check() == [name]
    assert rotor.snapshot is not held
    assert rotor.number == 1
    torch.testing.assert_close(rotor(x), sound, atol=1e-5, rtol=1e-5)  # another secret layout
    assert rotor.check() == []


def test_what_is_served_is_watched_after_a_rotation_too(defence):
    rotor = Rotor(defence)
    assert rotor.rotate() == 2
    assert rotor.snapshot.interval >= 0.5
    assert rotor.check() == []
    name = flip(rotor)
    assert rotor.check() == [name]
    assert rotor.check() == []


def test_where_the_vault_has_no_sound_copy_it_says_so_and_goes_on(defence):
    rotor = Rotor(defence)
    file = defence.vault.path / "generations" / "000001" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    flip(rotor)
    held = rotor.snapshot
    with pytest.raises(VaultError, match="corrupt"):
        rotor.check()
    assert rotor.snapshot is held


class Scripted:
    """A source whose live generation may be damaged, and whose next one may fail."""

    def __init__(self) -> None:
        self.number, self.damaged, self.fails, self.unsound = 1, [], False, False
        self.read = 0

    def snapshot(self) -> Snapshot:
        if self.unsound:
            raise VaultError("no sound copy")
        self.read += 1
        changed = self.damaged
        return Snapshot(self.number, lambda x: x, lambda: changed if self.read == 1 else [])

    def advance(self) -> Snapshot:
        if self.fails:
            raise GenerationError("nothing passes")
        self.number += 1
        return Snapshot(self.number, lambda x: x)


def test_a_rotation_that_fails_leaves_a_healed_generation_live():
    source = Scripted()
    rotor, source.fails = Rotor(source), True
    source.damaged.append("w")
    damaged = rotor.snapshot
    with pytest.raises(GenerationError):
        rotor.rotate()
    assert (rotor.snapshot is damaged, rotor.number, source.read) == (False, 1, 2)


def test_what_cannot_be_healed_is_rotated_away_all_the_same():
    source = Scripted()
    rotor = Rotor(source)
    source.damaged.append("w")
    source.unsound = True
    assert rotor.rotate() == rotor.number == 2


def test_healing_never_takes_a_generation_back():
    """A check that read the source before a rotation, and ends after it."""
    source = Scripted()
    rotor = Rotor(source)
    source.damaged.append("w")
    read, go = threading.Event(), threading.Event()

    def slowly() -> Snapshot:
        read.set()
        assert go.wait(120)
        return Snapshot(1, lambda x: x)

    source.snapshot = slowly  # type: ignore[method-assign]
    check = threading.Thread(target=rotor.check)
    check.start()
    assert read.wait(120)
    rotor._take(source.advance())
    go.set()
    check.join()
    assert rotor.number == 2
