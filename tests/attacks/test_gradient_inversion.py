"""Gradient inversion finds records in plain gradients, and is measured beside what needs none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.federated import inversion
from benchmarks.federated.inversion import likeness, psnr, ssim
from g2d.attacks.gradients import Inversion, Local, gradients, invert, moved
from g2d.errors import SettingsError
from g2d.tasks.splits import Split


def test_a_record_is_found_in_the_gradient_of_one_step(digits):
    one = digits.splits.train.take(torch.arange(1))
    model = digits.model(3)
    change = [-g.detach() for g in gradients(digits, model, one.x, one.y)]
    before = [p.clone() for p in model.parameters()]
    source = torch.Generator().manual_seed(1)
    found = invert(digits, model, change, one.y, source, Inversion(80, restarts=1))
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert found.shape == one.x.shape
    assert not found.requires_grad
    low, high = digits.bounds
    assert float(found.min()) >= low
    assert float(found.max()) <= high
    assert likeness(found, one, high - low)["ssim"] > 0.9


def test_local_steps_are_those_of_torchs_sgd(digits):
    few = digits.splits.train.take(torch.arange(5))
    model = digits.model(3)
    found = moved(digits, model, few.x, few.y, Local(3, 0.05))
    start = [p.detach().clone() for p in model.parameters()]
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
    for _ in range(3):
        optimiser.zero_grad()
        digits.loss(model(few.x), few.y).backward()
        optimiser.step()
    for one, before, after in zip(found, start, model.parameters(), strict=True):
        torch.testing.assert_close(one.detach(), after.detach() - before, rtol=1e-3, atol=1e-6)


def test_what_is_no_image_is_refused(iris_like):
    with pytest.raises(SettingsError, match="looks for images"):
        invert(iris_like, iris_like.model(0), [], torch.zeros(1), torch.Generator())


@pytest.fixture
def iris_like(digits):
    import dataclasses

    splits = digits.splits
    flat = {
        name: Split(part.x.flatten(1), part.y)
        for name in ("train", "guide", "gate", "test")
        for part in (getattr(splits, name),)
    }
    made = dataclasses.replace(splits, **flat)

    class Flat:
        bounds = digits.bounds
        splits = made

        def model(self, seed):
            return torch.nn.Linear(64, 10)

    return Flat()


def test_likeness_knows_equal_images_and_takes_the_best_match():
    source = np.random.default_rng(2)
    a, b = source.random((2, 8, 8))
    assert ssim(a, a, 1.0) == pytest.approx(1.0)
    assert ssim(a, b, 1.0) < 0.5
    assert psnr(a, a, 1.0) == 100.0
    assert psnr(np.zeros((8, 8)), np.full((8, 8), 0.1), 1.0) == pytest.approx(20.0)
    x = torch.from_numpy(np.stack([a, b]).astype(np.float32))[:, None]
    records = Split(x, torch.tensor([3, 3]))
    swapped = likeness(x.flip(0), records, 1.0)
    assert swapped["ssim"] == pytest.approx(1.0)


def test_the_benchmark_measures_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inversion, "commit", lambda: "one")
    monkeypatch.setattr(inversion, "KINDS", ("plain", "message", "class mean"))
    words = ["--counts", "1", "--cases", "1", "--steps", "4", "--restarts", "1",
             "--local-steps", "2", "--out", str(tmp_path)]  # fmt: skip
    inversion.main(words)
    told = capsys.readouterr().out
    assert "| 1 | plain | " in told
    monkeypatch.setattr(inversion, "likeness", lambda *_: pytest.fail("it was measured already"))
    inversion.main(words)
