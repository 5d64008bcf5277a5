"""Low-rank adapters: what trains, what stays, and a defence of one per cent of a network."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import g2d
from g2d.core.engine import SerialEngine
from g2d.errors import TaskError
from g2d.service.loader import VaultLoader
from g2d.settings import Settings, build
from g2d.tasks.adapters import Adapted, is_adapter
from g2d.weights.symmetry import couplings


class Shared(nn.Module):
    """A head that shares its weight with another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(x))


class Body(nn.Module):
    """A network large beside its adapters: 1 x 8 x 8 images, two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.wide = nn.Sequential(nn.Flatten(), nn.Linear(512, 256), nn.ReLU())
        self.mixer = nn.MultiheadAttention(256, 2, batch_first=True)
        self.head = nn.Linear(256, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.wide(self.conv(x).relu())[:, None]
        return self.head((h + self.mixer(h, h, h)[0])[:, 0])


ADAPTED = Adapted(Body, layers=["conv", "wide.*"], rank=2, train=["head.*"])


def bright() -> g2d.Task:
    x = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0, :4].mean((1, 2)) > 0.5).long()
    return g2d.Task("bright", ADAPTED, g2d.split_dataset(x, y), classes=2, eps=0.1)


def test_an_adapter_begins_as_nothing_and_is_merged_to_the_very_logits() -> None:
    model, plain = ADAPTED().eval(), Body().eval()
    bare = {n: t for n, t in model.state_dict().items() if not is_adapter(n)}
    plain.load_state_dict(bare)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(model(x), plain(x))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.normal_(0, 0.1)
    assert not torch.allclose(model(x), plain(x), atol=1e-3)
    plain.load_state_dict(ADAPTED.merged(model.state_dict()))
    assert torch.allclose(model(x), plain(x), atol=1e-6)
    assert couplings(model, x) == ()  # a permuted layer would leave its adapter behind


def test_a_layer_whose_weight_others_take_has_its_adapter_there_too() -> None:
    """In evaluation torch's encoder takes the weights of its layers, which it never calls."""

    def encoder() -> nn.Module:
        torch.manual_seed(2)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        return nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 2))

    model = Adapted(encoder, layers=["0.linear*"], rank=2)().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.normal_(0, 1)
    x = torch.rand(4, 3, 8)
    with torch.no_grad():
        assert torch.allclose(model(x), model.train()(x), atol=1e-5)


def test_adapters_and_what_is_named_train_and_nothing_else() -> None:
    model = pickle.loads(pickle.dumps(ADAPTED))()
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    adapters = {f"{n}.adapter_{way}" for n in ("conv", "wide.1") for way in ("up", "down")}
    assert free == {"head.weight", "head.bias", *adapters}
    small = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert small <= 0.01 * sum(p.numel() for p in model.parameters())


def test_a_tied_layer_is_refused() -> None:
    said = r"layer 'head' shares its weight with 'first.weight' \(tied\)"
    with pytest.raises(TaskError, match=said):
        Adapted(Shared, layers=["head"])()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"layers": ["tail.*"]},
            r"pattern 'tail.\*' matches no layer. The model has: conv, wide.1",
        ),
        (
            {"layers": ["mixer.out_proj"]},
            "is of type NonDynamicallyQuantizableLinear, expected one",
        ),
        ({"layers": ["conv"], "train": ["tail"]}, "pattern 'tail' matches no parameter"),
        ({"layers": "conv"}, "expected a list of names"),
        ({"layers": ["conv"], "rank": 0}, "expected 1 or more"),
        ({"layers": []}, "name no layers"),
    ],
)
def test_a_pattern_that_does_not_fit_is_one_line(given: dict[str, object], words: str) -> None:
    with pytest.raises(TaskError, match=words) as told:
        Adapted(Body, **given)()  # type: ignore[arg-type]
    assert "\n" not in str(told.value)


def test_a_pretrained_base_is_defended_by_one_per_cent_of_it(tmp_path: Path) -> None:
    torch.manual_seed(1)
    pretrained = Body().state_dict()
    settings = build(Settings, {
        "population": {"members": 3, "basins": 1, "early_steps": 4, "fork_steps": 4, "batch": 8,
                       "pool": 8, "pool_steps": 1},
        "generator": {"space": "soup"},
        "guidance": {"pool": 8, "pool_steps": 1, "latent_steps": 1, "polish_steps": 2, "batch": 8},
        "gates": {"accuracy_drop": 1.0, "class_drop": 1.0, "stale_asr": 1.0, "pool": 8,
                  "pool_steps": 1, "distance": 0.0},
    }, "tests")  # fmt: skip
    with g2d.Defence.create(bright(), tmp_path / "v", settings) as defence:
        defence.adopt_base({f"module.{name}": tensor for name, tensor in pretrained.items()})
        defence.populate(engine=SerialEngine())
        defence.fit()
        (made,) = defence.generate(seed=1)
        assert defence.generator.codec.size <= 0.01 * sum(t.numel() for t in pretrained.values())
    for name, tensor in made.state.items():
        moves = is_adapter(name) or name.startswith("head.")
        assert moves or torch.equal(tensor, pretrained[name])
    plain, x = Body().eval(), torch.rand(2, 1, 8, 8)
    plain.load_state_dict(ADAPTED.merged(made.state))
    (tmp_path / "v").chmod(0o700)
    loader = VaultLoader(tmp_path / "v", "bright")
    try:
        snapshot, _ = loader.first()
        served = torch.from_numpy(snapshot.predict(x.numpy()))
        assert torch.allclose(served, plain(x), atol=1e-5)
    finally:
        loader.close()
