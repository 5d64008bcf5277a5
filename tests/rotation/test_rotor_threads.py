"""`Rotor.check` in a thread of one's own, while `rotate` makes the next generation."""

from __future__ import annotations

import threading

import torch

from g2d.rotation.snapshot import Rotor


def test_healing_waits_until_the_next_generation_is_made(defence, monkeypatch):
    """Both read the same vault's states and seed torch's one generator: never at once."""
    rotor = Rotor(defence)
    made, read = defence.generate, defence._generations.read_anew
    reading, seen = threading.Event(), []

    def reads():
        reading.set()
        return read()

    def generate(count):
        next(rotor.snapshot.predict._model.parameters()).data.view(-1)[3] += 1  # what is healed
        check.start()
        seen.append(reading.wait(0.5))
        found = made(count)
        seen.append(reading.is_set())
        return found

    monkeypatch.setattr(defence._generations, "read_anew", reads)
    monkeypatch.setattr(defence, "generate", generate)
    check = threading.Thread(target=rotor.check)
    assert rotor.rotate() == 2
    check.join(60)
    assert not check.is_alive()
    assert seen == [False, False]
    assert reading.is_set()
    assert rotor.number == 2
    assert rotor.check() == []
    x = defence.task.splits.test.x[:8]
    expected = defence.generation(2).model()(x)
    torch.testing.assert_close(rotor(x), expected, atol=1e-5, rtol=1e-5)


def test_what_is_live_is_asked_once_while_it_is_read_anew(defence, monkeypatch):
    """Else one generation is forgotten and another, from memory, taken for read anew."""
    live, asked = defence.vault.live, []

    def counted():
        asked.append(live())
        return asked[-1]

    monkeypatch.setattr(defence.vault, "live", counted)
    assert defence.snapshot().number == 1
    assert asked == [1]
