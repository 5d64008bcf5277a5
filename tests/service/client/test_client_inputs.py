"""Inputs of a client: arrays and pictures of the model's shape, and nothing else."""

from __future__ import annotations

import io

import numpy as np
import pytest

from g2d.errors import DataError
from g2d.service.client.inputs import bounded, fitted, read_inputs

SHAPE = (1, 4, 6)


def saved(path, array):
    np.save(path, array)
    return path


def test_arrays_of_one_or_many_inputs_are_read(tmp_path):
    one = np.linspace(0, 1, 24).reshape(SHAPE)
    for array, count in ((one, 1), (np.stack([one] * 3), 3)):
        x = read_inputs(saved(tmp_path / "x.npy", array), SHAPE)
        assert x.shape == (count, *SHAPE)
        assert x.dtype == np.float32
        assert np.allclose(x[0], one)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_become_0_to_1(tmp_path, channels, mode):
    image = pytest.importorskip("PIL.Image")
    sides = (4, 6) if channels == 1 else (4, 6, 3)
    pixels = np.arange(np.prod(sides), dtype=np.uint8).reshape(sides)
    image.fromarray(pixels, mode).save(tmp_path / "x.png")
    x = read_inputs(tmp_path / "x.png", (channels, 4, 6))
    assert x.shape == (1, channels, 4, 6)
    assert np.allclose(x[0].transpose(1, 2, 0).reshape(sides), pixels / 255.0)


def test_what_is_no_input_is_refused_in_one_line(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("L", (9, 9)).save(tmp_path / "large.png")
    (tmp_path / "words").write_text("no picture")
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "objects.npy").write_bytes(objects.getvalue())
    (tmp_path / "cut.npy").write_bytes(
        saved(tmp_path / "whole.npy", np.ones(SHAPE)).read_bytes()[:90]
    )
    saved(tmp_path / "shape.npy", np.ones((2, 3)))
    saved(tmp_path / "none.npy", np.ones((0, *SHAPE)))
    saved(tmp_path / "nan.npy", np.full(SHAPE, np.nan))
    saved(tmp_path / "text.npy", np.full(SHAPE, "a"))
    for name, says in (
        ("absent", "cannot read"), ("large.png", "9 x 9 pixels, expected 6 x 4"),
        ("words", "neither an array"), ("objects.npy", "no array of numbers"),
        ("cut.npy", "no array of numbers"), ("shape.npy", r"expected \[n, 1, 4, 6\]"),
        ("none.npy", "n > 0"), ("nan.npy", "NaN"), ("text.npy", "expected numbers"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=says) as refused:
            read_inputs(tmp_path / name, SHAPE)
        assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match="no pictures"):
        read_inputs(tmp_path / "large.png", (7,))


def test_values_out_of_bounds_are_refused():
    x = np.array([[0.0, 1.0]], np.float32)
    assert bounded(x, (0.0, 1.0)) is x
    assert bounded(255 * x, None) is not None
    with pytest.raises(DataError, match=r"divide bytes by 255.*Nothing was encrypted"):
        bounded(255 * x, (0.0, 1.0))
    with pytest.raises(DataError, match="lie in -1 to 0, expected 0 to 1"):
        bounded(x - 1, (0.0, 1.0))


def test_whole_numbers_stay_whole():
    assert fitted(np.ones((2, 3), np.int64), (3,)).dtype == np.int64
