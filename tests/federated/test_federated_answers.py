"""Answers are kept as they come and read in place: what is torn or lies elsewhere is not taken."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import safetensors.numpy

from federated_rounds import FORM, NAMES, answer, header_only, raw, server, vector
from g2d.errors import FederatedError, G2DError
from g2d.training.federated.answers import ANSWERS, AnswerFile
from g2d.training.federated.form import Form
from g2d.training.federated.messages import ANSWER, MEMBER, Message, decode, encode


def test_an_answer_that_a_power_cut_left_with_zeros_is_not_taken(tmp_path):
    """Its header is sound and its values are finite: what it lacks are the client's own."""
    asked = server(tmp_path)
    assert asked.take(answer(asked, NAMES[0]), NAMES[0])
    file = tmp_path / ANSWERS
    assert file.stat().st_mode & 0o777 == 0o600
    first = file.read_bytes()
    assert asked.take(answer(asked, NAMES[1]), NAMES[1])
    whole = file.read_bytes()
    assert whole[: len(first)] == first
    assert list(server(tmp_path).taken) == NAMES[:2]
    for torn in (whole[:-50] + bytes(50), whole[:-40] + bytes(8) + whole[-32:], whole[:-32],
                 first, first + bytes(300)):  # fmt: skip
        file.write_bytes(torn)
        again = server(tmp_path)
        assert list(again.taken) == NAMES[:1]
        assert again.take(answer(again, NAMES[1]), NAMES[1])  # who sent it is asked again
        assert list(server(tmp_path).taken) == NAMES[:2]
    for torn in (b"", b"\x01" + whole[1:], bytes(len(whole)), first[:-1] + b"?" + whole):
        file.write_bytes(torn)
        assert server(tmp_path).taken == {}


def test_answers_to_an_earlier_round_are_written_over_and_never_taken(tmp_path):
    asked = server(tmp_path)
    for name in NAMES:
        assert asked.take(answer(asked, name), name)
    before = (tmp_path / ANSWERS).read_bytes()
    asked.close()
    assert server(tmp_path).taken == {}
    assert asked.take(answer(asked, NAMES[3], seed=7), NAMES[3])
    now = (tmp_path / ANSWERS).read_bytes()
    assert len(now) < len(before)
    assert list(server(tmp_path).taken) == [NAMES[3]]  # and none of those behind it


def frame_of(folder, number, sender, data):
    """The bytes of a frame, which whoever knows this code can make."""
    made = AnswerFile(folder / "frame", 1 << 20)
    list(made.read(number))
    made.add(sender, data)
    found = made.path.read_bytes()
    made.remove()
    return found


@pytest.mark.parametrize("cut", [False, True])
def test_no_answer_hides_anothers_behind_those_of_a_later_round(tmp_path, cut):
    """A round is skipped, so that its base is known; one answer of the next ends where another,
    inside what the first one left, begins; and then the server is killed."""
    forged = frame_of(tmp_path, 1, NAMES[0], b"forged")
    file = AnswerFile(tmp_path / ANSWERS, 1 << 20)
    list(file.read(0))
    file.add(NAMES[4], bytes(100) + forged)
    if cut:  # the server is killed here, too
        file = AnswerFile(tmp_path / ANSWERS, 1 << 20)
    assert list(file.read(1)) == []
    file.add(NAMES[4], bytes(100 - 32))
    again = AnswerFile(tmp_path / ANSWERS, 1 << 20)
    assert list(again.read(1)) == [(NAMES[4], bytes(68))]


def test_answers_that_a_full_disk_cut_off_leave_the_others(tmp_path, monkeypatch):
    asked = server(tmp_path)
    assert asked.take(answer(asked, NAMES[0]), NAMES[0])

    class Full:
        """Writes a part, and then nothing more."""

        def __init__(self, file):
            self.file, self.left = file, 60

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if not self.left:
                raise OSError(28, "No space left on device")
            some, self.left = bytes(data[: self.left]), max(0, self.left - len(data))
            return self.file.write(some)

    sound = asked._answers._file
    asked._answers._file = Full(sound)
    for _ in range(2):
        with pytest.raises(G2DError, match=r"cannot be written: .*No space left"):
            asked.take(answer(asked, NAMES[1]), NAMES[1])
        assert list(asked.taken) == list(server(tmp_path).taken) == NAMES[:1]
    asked._answers._file = sound  # there is room again
    assert asked.take(answer(asked, NAMES[1]), NAMES[1])
    assert asked.take(answer(asked, NAMES[2]), NAMES[2])
    assert list(server(tmp_path).taken) == NAMES[:3]


def test_whatever_is_decoded_safetensors_reads_alike():
    """Values are read in place: nothing may pass here that its own reader would refuse."""
    source, forms = random.Random(3), (FORM, Form({"b": (3,), "a": (2, 2), "zz": (1,)}))
    passed = 0
    for k in range(3000):
        form = forms[k % 2]
        v = np.arange(1, form.size + 1, dtype=np.float32)
        data = bytearray(encode(Message(MEMBER, "member-0", v), form))
        end = 8 + int.from_bytes(data[:8], "little")
        for _ in range(source.randrange(3)):
            data[source.randrange(end)] = source.choice(b'0123456789"[]{},: .etF\xff')
        try:
            found = decode(bytes(data), form, MEMBER)
        except FederatedError:
            continue
        passed += 1
        np.testing.assert_array_equal(form.join(safetensors.numpy.load(bytes(data))), found.vector)
        assert found.vector.dtype == np.float32
    assert 900 < passed < 2900


@pytest.mark.parametrize(
    "offsets",
    [[0, 16], [4, 20], [-16, 0], [44, 28], [28, 48], [28.0, 44], [True, 44], [28], None,
     {"0": 1}, "28"],
)  # fmt: skip
def test_tensors_that_lie_elsewhere_than_side_by_side_are_refused(offsets):
    data = raw()
    n = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + n])
    assert entries["c"]["data_offsets"] == [28, 44]
    entries["c"]["data_offsets"] = offsets
    with pytest.raises(FederatedError, match="no complete safetensors file: tensor"):
        decode(header_only(json.dumps(entries).encode()) + data[8 + n :], FORM, ANSWER)


def test_values_that_begin_anywhere_are_read():
    """A header of another writer may be of any length."""
    data = raw()
    n = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + n].rstrip() + b" "
    found = decode(header_only(text) + data[8 + n :], FORM, ANSWER)
    np.testing.assert_array_equal(found.vector, vector(0))
    assert found.vector.flags.aligned
