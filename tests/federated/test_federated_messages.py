"""What comes from a client, and what is never taken: bytes in, one clear line out; no torch."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import safetensors.numpy

from federated_rounds import FORM, NAMES, START, answer, header_only, raw, server, vector
from g2d.errors import FederatedError, G2DError, SettingsError
from g2d.settings.federated import FederatedSettings
from g2d.training.federated.answers import ANSWERS
from g2d.training.federated.checks import REASONS
from g2d.training.federated.form import Form
from g2d.training.federated.messages import (
    ANSWER,
    MEMBER,
    ROUND,
    Message,
    decode,
    digest_of,
    encode,
    most_bytes,
)
from g2d.training.federated.records import shares, timetable
from g2d.training.federated.server import STATE, Server
from g2d.training.federated.stages import Asked


def huge_shape():
    """A header that promises terabytes."""
    data = raw()
    n = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + n])
    entries["c"] |= {"shape": [1 << 40], "data_offsets": [0, 1 << 42]}
    text = json.dumps(entries).encode()
    return header_only(text) + data[8 + n :]


def twice_named():
    data = raw()
    n = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + n].rstrip()
    return header_only(text[:-1] + b', "b": {"dtype":"F32","shape":[],"data_offsets":[0,4]}}')


BAD = {
    "nothing": (b"", "empty", "it is empty"),
    "a pickle": (pickle.dumps({"a": 1}), "format", "never loaded"),
    "a zip": (b"PK\x03\x04" + bytes(30), "format", "never loaded"),
    "noise": (b"hello, this is no message", "format", "does not fit"),
    "seven bytes": (b"1234567", "format", "does not fit"),
    "too long": (bytes(most_bytes(FORM) + 1), "size", "at most"),
    "a header that is longer than the message": (header_only(b"{}", 1 << 60), "format", "fit"),
    "deep nesting": (header_only(b"[" * 5000), "format", "cannot be read"),
    "a list": (header_only(b"[1, 2]"), "format", "no JSON object"),
    "a name twice": (twice_named(), "format", "a name is there twice"),
    "terabytes": (huge_shape(), "shape", "has shape [1099511627776]"),
    "cut off": (raw()[:-3], "format", "no complete safetensors file"),
    "a missing tensor": (raw({"b": None}), "names", "tensor 'b' is missing"),
    "a foreign tensor": (raw({"d": np.ones(2, np.float32)}), "names", "tensor 'd' that the model"),
    "another shape": (raw({"c": np.ones((2, 2), np.float32)}), "shape", "[2, 2], expected [4]"),
    "another type": (raw({"c": np.ones(4)}), "type", "'F64', expected F32"),
    "NaN": (raw({"b": np.float32("nan").reshape(())}), "values", "1 of its 11 values"),
    "infinity": (raw({"c": np.full(4, np.inf, np.float32)}), "values", "4 of its 11 values"),
    "zeros": (
        encode(Message(ANSWER, "base-0", 0 * START, 0, NAMES[0], digest_of(START)), FORM),
        "zero", "changes nothing",
    ),
    "a billion examples": (raw(num_examples=10**9), "weight", "every client counts alike"),
    "a weight": (raw(weight=2.0), "weight", "every client counts alike"),
    "a foreign key": (raw(colour="red"), "header", "foreign key 'colour'"),
    "no header": (safetensors.numpy.save(FORM.split(vector(0))), "header", "no header"),
    "two headers": (
        safetensors.numpy.save(FORM.split(vector(0)), {"g2d": "{}", "more": "x"}), "header", "more",
    ),
    "another kind": (raw(kind=ROUND), "header", "expected 'answer' of format 1"),
    "another format": (raw(format=2), "header", "same release"),
    "no round": (raw(round=None), "header", "its round is None"),
    "a round that is true": (raw(round=True), "header", "its round is True"),
    "a name with a path": (raw(identity="../x"), "header", "its identity is '../x'"),
    "another's name": (raw(identity=NAMES[1]), "identity", "'client-00' has sent it"),
    "another stage": (raw(stage="member-3"), "stage", "'base-0' is trained"),
    "a later round": (raw(round=2), "future", "round 0 is the last"),
    "another base": (raw(base="0" * 64), "base", "not at what round 0 sent"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_sound_is_refused_in_one_line_and_counted(case):
    data, reason, words = BAD[case]
    said: list[str] = []
    asked = server(said=said)
    assert not asked.take(data, NAMES[0])
    (line,) = said
    assert line.startswith(f"the answer of {NAMES[0]} is refused: ")
    assert words in line
    assert "\n" not in line
    assert len(line) < 300
    assert reason in REASONS
    assert asked.refusals.counts == {reason: 1}
    assert asked.taken == {}
    assert asked.take(answer(asked, NAMES[0]), NAMES[0])  # and a sound one is taken afterwards


def test_strangers_and_second_answers_are_refused_and_a_repeated_message_is_not():
    said: list[str] = []
    asked = server(said=said)
    assert asked.take(answer(asked, NAMES[0]), NAMES[0])
    assert asked.take(answer(asked, NAMES[0]), NAMES[0])  # sent again: nobody had said it came
    assert not asked.take(answer(asked, NAMES[0], seed=9), NAMES[0])
    assert "the first answer counts" in said[0]
    for stranger in ("mallory", "../../etc", "a\nb", ""):
        assert not asked.take(answer(asked, NAMES[1]), stranger)
    assert all("none of the 5 clients" in line and "\n" not in line for line in said[1:])
    assert asked.refusals.counts == {"twice": 1, "unknown": 4}
    assert list(asked.taken) == [NAMES[0]]


def test_a_late_answer_counts_within_its_deadline_alone():
    for deadline, taken in ((0, False), (1, True)):
        asked = server(deadline=deadline)
        early = answer(asked, NAMES[4])
        for name in NAMES[:4]:
            asked.take(answer(asked, name), name)
        asked.close()
        assert asked.take(early, NAMES[4]) is taken
        assert asked.refusals.counts == ({} if taken else {"late": 1})
        for name in NAMES[:3]:
            asked.take(answer(asked, name), name)
        assert asked.close().late == taken


def test_a_round_of_few_answers_changes_nothing_and_says_why():
    asked = server()
    before = asked.vector.copy()
    assert "no client has answered" in asked.close().skipped
    asked.take(answer(asked, NAMES[0]), NAMES[0])
    assert "and 1 answered" in asked.close().skipped
    np.testing.assert_array_equal(asked.vector, before)
    for name in NAMES:
        asked.take(answer(asked, name), name)
    assert not asked.close().skipped
    assert asked.done
    assert not np.array_equal(asked.vector, before)
    assert not asked.take(answer(asked, NAMES[0]), NAMES[0])


def run(folder, kill_at=None):
    """Three rounds; with `kill_at` a fresh server takes over after so many answers."""
    asked, count = server(folder), 0
    while not asked.done:
        for name in NAMES:
            if name not in asked.taken:
                asked.take(answer(asked, name, seed=10 * asked.number + NAMES.index(name)), name)
                count += 1
                if count == kill_at:
                    asked = server(folder)
        asked.close()
        if kill_at is not None and count == kill_at:
            asked = server(folder)
    return asked


def test_a_killed_server_goes_on_to_the_same_bytes(tmp_path):
    whole = run(tmp_path / "whole")
    assert [closed.answered for closed in whole.closed] == [5, 5, 5]
    for kill_at in (1, 5, 8):
        again = run(tmp_path / str(kill_at), kill_at)
        assert again.vector.tobytes() == whole.vector.tobytes()
        assert again.closed == whole.closed
    assert [p.name for p in (tmp_path / "whole").iterdir()] == [STATE]
    states = [(tmp_path / n / STATE).read_bytes() for n in ("whole", "1")]
    assert states[0] == states[1]


def test_a_state_of_many_clients_and_a_long_deadline_is_read_again(tmp_path):
    names = [f"{k:03d}" + "x" * 60 for k in range(300)]
    settings = FederatedSettings(clients=300, f=0, rule="median", deadline=1000)
    asked = Asked("base-0", 2000, 8)
    first = Server(FORM, START, asked, settings, names, tmp_path)
    first._state.number = 1500
    first._state.counted = dict.fromkeys(range(500, 1501), names)
    first._save()
    assert (tmp_path / STATE).stat().st_size > 1 << 24
    assert Server(FORM, START, asked, settings, names, tmp_path).number == 1500


def test_a_folder_of_something_else_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(FederatedError, match="with another start or other settings"):
        server(tmp_path, rounds=4)
    with pytest.raises(FederatedError, match="with another start or other settings"):
        server(tmp_path, f=2)
    path = tmp_path / STATE
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FederatedError, match=r"is damaged .* remove"):
        server(tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ANSWERS).write_bytes(b"torn")
    assert server(tmp_path / "new").taken == {}  # whoever sent it is asked again
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / ANSWERS).symlink_to(tmp_path / "new" / ANSWERS)
    with pytest.raises(G2DError, match=r"cannot be read .* remove it"):
        server(tmp_path / "link")
    with pytest.raises(SettingsError, match="can be no client's name"):
        Server(FORM, START, Asked("base-0", 1, 8), FederatedSettings(rule="median"), ["a/b"])


def test_messages_round_trip_and_equal_ones_are_equal_bytes():
    asked = server()
    found = decode(asked.ask(), FORM, ROUND)
    assert found.plan == {
        "steps": 10, "rate": 0.2, "momentum": 0.9, "batch": 8, "repelled": []
    }  # fmt: skip
    np.testing.assert_array_equal(found.vector, START)
    assert asked.ask() == server().ask()
    member = Message(MEMBER, "member-3", START)
    assert decode(encode(member, FORM), FORM, MEMBER).stage == "member-3"
    np.testing.assert_array_equal(FORM.join(FORM.split(START)), START)


# --- who has which records, and when who answers ---


def test_records_are_spread_and_nobody_has_anothers():
    labels = np.arange(1000) % 10
    for alpha in (0.0, 0.5, 0.1):
        parts = shares(labels, 20, alpha, 3)
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
        again = shares(labels, 20, alpha, 3)
        assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    kinds = [len(np.unique(labels[part])) for part in parts]
    assert min(map(len, shares(labels, 20, 0.0, 3))) == 50
    assert min(kinds) <= 2 < max(kinds)
    assert min(len(part) for part in shares(labels[:30], 20, 0.02, 0)) == 0


def test_turns_are_lost_or_late_as_often_as_was_said():
    turns = timetable(4000, 0.3, 0.2, 0, "base-0", "client-00")
    assert turns == timetable(4000, 0.3, 0.2, 0, "base-0", "client-00")
    late = [n - t.arrives for n, t in enumerate(turns) if t.arrives is not None and not t.trains]
    assert set(late) == {1, 2, 3}
    free = sum(t.trains or t == turns[0] for t in turns)
    assert free
    on_time = sum(t.trains and t.arrives is not None for t in turns)
    assert abs(len(late) / (len(late) + on_time) - 0.2 / 0.7) < 0.03
    assert all(t.trains and t.arrives == n for n, t in enumerate(timetable(9, 0, 0, 0, "a-0", "b")))


def test_who_is_named_is_who_f_is_judged_by():
    for clients in (NAMES[:4], [*NAMES[:4], NAMES[0]]):
        with pytest.raises(SettingsError, match=r"4 clients are named, and .* is 5"):
            Server(FORM, START, Asked("base-0", 1, 8), FederatedSettings(clients=5), clients)


def test_values_that_leave_float32_move_nothing():
    asked = server(rule="mean", f=0)
    wide = np.full(FORM.size, 3e38, np.float32)
    assert asked.take(answer(asked, NAMES[0], vector=wide), NAMES[0])
    asked._state.x = wide.copy()
    asked._inbox.bases = {0: digest_of(wide)}
    assert "leaves the range of float32" in asked.close().skipped


def test_a_sound_message_may_begin_as_a_pickle_does():
    """A header of 640, 896, 1152 or 1408 bytes says so in bytes that begin a pickle, too."""
    seen = set()
    for length in range(0, 1400, 3):
        form = Form({"w" * (1 + length): (2,)})
        v = np.ones(2, np.float32)
        data = encode(Message(MEMBER, "member-0", v), form)
        if data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            seen.add(data[:2])
            np.testing.assert_array_equal(decode(data, form, MEMBER).vector, v)
    assert len(seen) == 4


def test_an_answer_that_counted_in_its_own_round_does_not_count_in_the_next(tmp_path):
    """Whoever resends for he never heard that it came, or wants to count twice, counts once."""
    asked = server(tmp_path, deadline=2)
    first = {name: answer(asked, name) for name in NAMES}
    for name in NAMES[:4]:
        assert asked.take(first[name], name)
    asked.close()
    for again in (asked, server(tmp_path, deadline=2)):  # it is known after a kill, too
        assert not again.take(first[NAMES[0]], NAMES[0])
        assert again.refusals.counts == {"twice": 1}
    assert asked.take(answer(asked, NAMES[0], seed=9), NAMES[0])  # and his new one is taken
    assert asked.take(first[NAMES[4]], NAMES[4])  # late, and for the first time
    for name in NAMES[1:4]:
        assert asked.take(answer(asked, name, seed=8), name)
    asked.close()
    assert not asked.take(first[NAMES[4]], NAMES[4])


def test_what_a_skipped_round_had_may_be_sent_for_the_next():
    asked = server(deadline=1)
    first = answer(asked, NAMES[0])
    assert asked.take(first, NAMES[0])
    assert asked.close().skipped
    assert asked.take(first, NAMES[0])


def test_a_client_that_floods_is_counted_and_not_told_for_ever():
    said: list[str] = []
    asked = server(said=said)
    for _ in range(500):
        asked.take(b"", NAMES[0])
        asked.take(b"", "mallory")
    assert asked.refusals.counts == {"empty": 500, "unknown": 500}
    assert len(said) < 50
    assert sum("only counted from now on" in line for line in said) == 2
    asked.take(b"", NAMES[1])
    assert NAMES[1] in said[-1]
