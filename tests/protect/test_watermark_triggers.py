"""Triggers and labels are a function of the key and the form alone, and worth what chance says."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import torch

from g2d.errors import CheckpointError, KeyFileError, SettingsError, TaskError
from g2d.protect.watermark import (
    InputForm,
    WatermarkKey,
    make_triggers,
    needed_hits,
    p_value,
    stretched,
    triggers_of,
)

IMAGE = InputForm("image", (1, 8, 8), 10, (0.0,), (1.0,))
TABLE = InputForm(
    "table", (5,), 3, (0.0, -1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 9.0, 1.0, 1.0), (2,), ((3, 4),)
)
TOKENS = InputForm("tokens", (6,), 2, vocabulary=9, special=(0, 1))
FORMS = {"image": IMAGE, "table": TABLE, "tokens": TOKENS}


@pytest.mark.parametrize("name", FORMS)
def test_the_same_key_draws_the_same_triggers_and_fewer_are_the_beginning_of_more(name):
    form = FORMS[name]
    x, y = make_triggers(bytes(32), form, 20)
    again, fewer = make_triggers(bytes(32), form, 20), make_triggers(bytes(32), form, 7)
    assert torch.equal(x, again[0])
    assert torch.equal(y, again[1])
    assert torch.equal(x[:7], fewer[0])
    assert torch.equal(y[:7], fewer[1])
    assert x.shape == (20, *form.shape)
    assert y.dtype == torch.int64
    other, _ = make_triggers(bytes([1]) + bytes(31), form, 20)
    assert not torch.equal(x, other)


def test_triggers_are_bit_for_bit_those_of_the_first_release():
    """A claim of today must be checkable in ten years: this digest never changes."""
    x, y = make_triggers(bytes(32), IMAGE, 100)
    levels = (x * 255).round().to(torch.uint8)
    assert torch.equal(levels.float() / 255, x)
    digest = hashlib.sha256(levels.numpy().tobytes() + bytes(y.tolist())).hexdigest()
    assert digest == "25a2455d2e7af5bfd6f6ef1f0ca9b1a0af677280bf2898bdeec62acee3bebe55"


def test_what_a_set_s_key_is_stretched_to_is_that_of_the_first_release():
    """PBKDF2 of 2^16 rounds lies between a key and its triggers: so much dearer is a search."""
    assert stretched(bytes(32)).hex() == (
        "80410cb18faf095e605054d00e59996d03dd4b2663ade214e390047d2b4054c9"
    )
    assert torch.equal(
        triggers_of(bytes(32), IMAGE, 3)[0], make_triggers(stretched(bytes(32)), IMAGE, 3)[0]
    )


def test_no_range_of_a_form_is_empty_and_a_table_may_hold_a_constant():
    for change in (
        {"low": (1.0,)}, {"low": (2.0,)}, {"low": (float("-inf"),)}, {"high": (float("nan"),)},
        {"low": (0.0, 0.0)}, {"high": ()}, {"low": ("0",)},
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match="no form of inputs"):
            InputForm.from_record(dataclasses.replace(IMAGE, **change).record())
    constant = dataclasses.replace(TABLE, low=(1.0, *TABLE.low[1:]))
    assert InputForm.from_record(constant.record()) == constant
    for form in FORMS.values():
        assert InputForm.from_record(form.record()) == form


def test_tables_keep_ranges_whole_numbers_and_groups_and_tokens_their_vocabulary():
    x, _ = make_triggers(bytes(32), TABLE, 200)
    assert (x >= torch.tensor(TABLE.low)).all()
    assert (x <= torch.tensor(TABLE.high)).all()
    assert torch.equal(x[:, 2], x[:, 2].round())
    assert torch.equal(x[:, 3:].sum(1), torch.ones(200))
    ids, _ = make_triggers(bytes(32), TOKENS, 200)
    assert ids.dtype == torch.int64
    assert ids.unique().tolist() == [2, 3, 4, 5, 6, 7, 8]


def test_labels_are_uniform():
    _, y = make_triggers(bytes(32), IMAGE, 2000)
    counts = y.bincount(minlength=10).double()
    assert float(((counts - 200) ** 2 / 200).sum()) < 33.7  # chi-squared, 9 degrees: p = 1e-4


def test_what_hits_are_worth():
    assert needed_hits(100, 10) == 46
    assert needed_hits(100, 10, 2.0**-128) == 65
    assert needed_hits(100, 3) == 79
    assert needed_hits(100, 2) == 93
    assert needed_hits(100, 2, 2.0**-128) is None
    assert needed_hits(100, 10, suspects=1000) > 46
    assert p_value(0, 100, 10) == 1.0
    assert p_value(100, 100, 2) == pytest.approx(2.0**-100)
    with pytest.raises(SettingsError, match="hits from 0 to n"):
        p_value(101, 100, 10)


def test_a_form_survives_its_record_and_nothing_else_is_one(digits):
    form = InputForm.of(digits)
    assert InputForm.from_record(form.record()) == form
    assert form.shape == tuple(digits.splits.train.x.shape[1:])
    wrong = form.record() | {"shape": [1 << 16, 1 << 16]}
    for record in ({}, [], wrong, form.record() | {"more": 1}, form.record() | {"classes": 1}):
        with pytest.raises(CheckpointError, match="no form of inputs"):
            InputForm.from_record(record)
    assert dataclasses.replace(form, classes=9).digest != form.digest


def test_unbounded_inputs_have_no_triggers(digits):
    with pytest.raises(TaskError, match="unbounded inputs"):
        InputForm.of(dataclasses.replace(digits, bounds=None))


def test_a_key_file_is_private_and_shown_nowhere(tmp_path):
    key = WatermarkKey.generate()
    key.write(tmp_path / "mark.key")
    assert WatermarkKey.read(tmp_path / "mark.key") == key
    assert key.secret.hex() not in repr(key)
    assert len(key.of_set(0)) == 32
    assert key.of_set(0) != key.of_set(1)
    with pytest.raises(KeyFileError, match="never overwritten"):
        WatermarkKey.generate().write(tmp_path / "mark.key")
    (tmp_path / "mark.key").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        WatermarkKey.read(tmp_path / "mark.key")
    with pytest.raises(KeyFileError, match="g2d watermark new"):
        WatermarkKey.read(tmp_path / "absent")
