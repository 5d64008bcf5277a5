"""AutoAttack and APGD: the library's own verdicts, from inside its room."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from g2d.attacks import apgd, autoattack, pgd, project
from g2d.errors import SettingsError
from g2d.redteam.scoring import attack_rate
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from small_models import fitted, source


@pytest.mark.slow
def test_autoattack_gives_the_verdict_of_a_direct_call_image_by_image(images):
    pytest.importorskip("pyautoattack")
    from pyautoattack import AutoAttack

    (model, _), split = images
    split = split.take(range(10))
    found = autoattack(model, split.x, split.y, eps=0.14, seed=5, batch=7)
    with torch.random.fork_rng(devices=[]):
        direct = AutoAttack(model, eps=0.14, seed=5, version="standard")
        expected, labels = direct.run_standard_evaluation(split.x, split.y, batch_size=7)
    assert torch.equal(found, expected)
    robust = predict(model, project(found, split.x, 0.14, (0.0, 1.0))).argmax(1) == split.y
    assert torch.equal(robust, labels == split.y)
    assert 0 < int(robust.sum()) < len(split)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_autoattack_with_few_classes(classes):
    pytest.importorskip("pyautoattack")
    g = source(classes)
    y = torch.arange(8) % classes
    x = (torch.eye(4)[y].reshape(-1, 1, 2, 2) * 0.4 + 0.3).repeat_interleave(2, 3)
    x = (x + 0.02 * torch.randn(x.shape, generator=g)).clamp(0, 1)
    torch.manual_seed(0)
    model = fitted(nn.Sequential(nn.Flatten(), nn.Linear(8, classes)), x, y)
    found = autoattack(model, x, y, eps=0.6, seed=0)
    assert attack_rate(model, found, Split(x, y), 0.6, (0.0, 1.0)).value == 1


def test_autoattack_is_silent_and_leaves_the_logger_as_it_was(images, caplog):
    pytest.importorskip("pyautoattack")
    (model, _), split = images
    with caplog.at_level(logging.DEBUG):
        autoattack(lambda x: model(x).softmax(1), split.x[:2], split.y[:2], eps=0.9, seed=0)
    assert not caplog.records
    assert not logging.getLogger("auto-attack").disabled


def test_an_unknown_version_is_refused(images):
    (model, _), split = images
    with pytest.raises(SettingsError, match="standard, plus, rand"):
        autoattack(model, split.x, split.y, eps=0.1, seed=0, version="quick")


def test_apgd_flips_what_the_librarys_own_flips(images):
    pytest.importorskip("pyautoattack")
    from pyautoattack.autopgd_base import APGDAttack

    (model, _), split = images
    with torch.random.fork_rng(devices=[]):
        direct = APGDAttack(model, n_iter=30, eps=0.12, seed=4, loss="ce")
        expected = direct.perturb(split.x, split.y)
    found = apgd(model, split.x, split.y, eps=0.12, steps=30, seed=4, keep="flip")
    flipped = [predict(model, x).argmax(1) != split.y for x in (found, expected)]
    assert torch.equal(*flipped)
    assert 0 < int(flipped[0].sum()) < len(split)


def test_a_model_beside_itself_is_attacked_as_it_is_alone(images):
    pytest.importorskip("pyautoattack")
    (model, _), split = images
    one = apgd(model, split.x, split.y, eps=0.1, steps=15, seed=0)
    two = apgd([model, model], split.x, split.y, eps=0.1, steps=15, seed=0)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_joint_apgd_reaches_a_higher_joint_loss_than_pgd(images):
    pytest.importorskip("pyautoattack")
    models, split = images
    x, y = split.x, split.y

    def loss(points):
        parts = [F.cross_entropy(m(points), y, reduction="none") for m in models]
        return float(torch.stack(parts).sum(0).mean())

    found = apgd(models, x, y, eps=0.1, steps=40, seed=0)
    plain = pgd(models, x, y, eps=0.1, steps=40, generator=source(0))
    assert loss(found) >= loss(plain) - 1e-3


def test_apgd_refuses_what_makes_no_sense(images):
    models, split = images
    with pytest.raises(SettingsError, match="one model"):
        apgd(models, split.x, split.y, eps=0.1, steps=5, seed=0, keep="flip")
    with pytest.raises(SettingsError, match="loss"):
        apgd(models, split.x, split.y, eps=0.1, steps=5, seed=0, loss="hinge")
    with pytest.raises(SettingsError, match="at least one step"):
        apgd(models, split.x, split.y, eps=0.1, steps=0, seed=0)
