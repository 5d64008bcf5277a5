"""What cannot be defended is refused in one line when a task is made; what can is left unharmed."""

import copy
import inspect
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2d.errors import TaskError
from g2d.tasks.probe import training
from g2d.tasks.splits import split_dataset
from g2d.tasks.task import Task


def splits():
    x = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    return split_dataset(x, torch.arange(60) % 3)


def toy(factory, **changed):
    given = {"splits": splits(), "classes": 3, "eps": 0.1}
    return Task("toy", factory, **(given | changed))


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Own(nn.Module):
    """A small network whose forward pass is the test's."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.body, self.how = mlp(), forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.how(self, x)


def own(forward, **parts):
    return lambda: Own(forward, **{name: make() for name, make in parts.items()})


# --- inputs that are changed in place ---


def changed_in_place(model, x):
    x.sub_(0.5).mul_(2.0)
    return model.body(x)


def through_a_view(model, x):
    x[:, 0] = 0.0
    return model.body(x.view(len(x), -1).clamp_(0.1, 0.9))


def only_while_trained(model, x):
    return model.body(x.add_(1.0) if model.training else x)


def relu_first():
    return nn.Sequential(nn.ReLU(inplace=True), *mlp())


IN_PLACE = [own(changed_in_place), own(through_a_view), own(only_while_trained), relu_first]


@pytest.mark.parametrize("factory", IN_PLACE)
def test_a_model_that_changes_its_input_changes_a_copy(factory):
    from g2d.attacks import pgd
    from g2d.tasks.inference import predict

    given = splits()
    before = copy.deepcopy(given)
    task = toy(factory, splits=given)
    model, x = task.model(0), given.test.x
    for mode in (True, False):
        model.train(mode)
        model(x)
        torch.func.functional_call(model, dict(model.state_dict()), (x,))
    pgd(model, x, given.test.y, eps=0.1, steps=2, generator=torch.Generator().manual_seed(0))
    first = predict(model, x)
    assert torch.equal(first, predict(model, x))
    assert all(torch.equal(getattr(given, n).x, getattr(before, n).x) for n in vars(given))


def test_a_loss_that_changes_what_it_is_given_changes_copies():
    def centred(logits, y):
        return F.cross_entropy(logits.sub_(logits.detach().mean(1, keepdim=True)), y.clamp_(max=1))

    task = toy(mlp, loss=centred)
    logits, y = torch.randn(5, 3), torch.arange(5) % 3
    kept = logits.clone(), y.clone()
    task.loss_of(logits, y)
    assert torch.equal(logits, kept[0])
    assert torch.equal(y, kept[1])


# --- gradients to the input ---


def tokens(model, x):
    return model.last(model.table((x * 9).long()).mean(1))


def frozen_backbone(model, x):
    with torch.no_grad():
        hidden = model.body[:2](x)
    return model.body[2](hidden)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (own(tokens, table=lambda: nn.Embedding(10, 8), last=lambda: nn.Linear(8, 3)),
         "no gradient reaches the model's input"),
        (own(frozen_backbone), "no gradient reaches the model's input"),
        (own(lambda model, x: model.body(x.detach())), "no gradient reaches the model's input"),
        (own(torch.no_grad()(lambda model, x: model.body(x))), "no gradient reaches"),
        (own(lambda model, x: model.body((x * 8).round())), "is zero, whatever the parameters"),
        (own(lambda model, x: model.body((x > 0.5).float() + 0 * x)), "is zero, whatever"),
        (own(lambda model, x: model.body(x.sign())), "is zero, whatever the parameters"),
    ],
)  # fmt: skip
def test_an_input_without_a_gradient_is_refused(factory, words):
    with pytest.raises(TaskError, match=words) as caught:
        toy(factory)
    assert "attack='none'" in str(caught.value)
    assert "\n" not in str(caught.value)


def zero_head():
    model = mlp()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    return model


def dead_at_first():
    model = mlp()
    nn.init.constant_(model[0].weight, -1e-3)
    nn.init.zeros_(model[0].bias)
    return model


@pytest.mark.parametrize("factory", [zero_head, dead_at_first])
def test_a_gradient_that_is_zero_only_at_first_is_taken(factory):
    task = toy(factory)
    x = task.splits.guide.x.clone().requires_grad_(True)
    assert not torch.autograd.grad(task.model(0)(x).square().sum(), x)[0].any()


# --- training mode ---


class Outputs(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


def inception(model, x):
    logits = model.body(x)
    return Outputs(logits, logits) if model.training else logits


def raise_in_training(model, x):
    if model.training:
        raise ValueError("first\nsecond")
    return model.body(x)


def frozen_model():
    return mlp().requires_grad_(False)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (own(inception), "in training mode the model gives Outputs, as models with auxiliary"),
        (own(lambda m, x: (m.body(x),) if m.training else m.body(x)), "the model gives tuple"),
        (own(lambda m, x: {"logits": m.body(x)} if m.training else m.body(x)), "gives dict"),
        (own(lambda m, x: m.body(x)[:1] if m.training else m.body(x)), r"a tensor \(1, 3\)"),
        (own(raise_in_training), "fails on a batch of 2: ValueError: first second"),
        (frozen_model, "no parameter gets a gradient"),
        (own(lambda m, x: m.body(x) / (0.0 if m.training else 1.0)), "is not finite in training"),
    ],
)
def test_what_cannot_be_trained_is_refused(factory, words):
    with pytest.raises(TaskError, match=words) as caught:
        toy(factory)
    assert "\n" not in str(caught.value)


def with_batch_norm():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batch_norm_learns_from_every_batch_but_one_example(batch):
    given = {"settings": {"population": {"batch": batch}}}
    if batch > 1:
        assert toy(with_batch_norm, **given)
        return
    with pytest.raises(TaskError, match=r"set \[population\] batch to 2 or more") as caught:
        toy(with_batch_norm, **given)
    assert "Expected more than 1 value per channel" in str(caught.value)
    assert toy(mlp, **given)


def counted(sizes):
    def forward(model, x):
        if model.training:
            sizes.append(len(x))
        return model.body(x)

    return own(forward)


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, [2, 20]), (9.0, [2])])
def test_a_step_has_the_batch_that_is_set_where_time_allows(monkeypatch, seconds, expected):
    clock = iter(float(seconds * tick) for tick in range(100))
    monkeypatch.setattr(training.time, "process_time", lambda: next(clock))
    sizes = []
    toy(counted(sizes), settings={"population": {"batch": 20}})
    assert sizes == expected
    del sizes[:]
    toy(counted(sizes), settings={"population": {"batch": 1000}})
    assert sizes[-1] in (2, len(splits().train))


# --- wrappers ---


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(mlp())


def traced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(mlp(), torch.zeros(2, 4), check_trace=False)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (lambda: nn.DataParallel(mlp()), r"return the module inside it, its `\.module`"),
        (scripted, "return the module that you gave to torch.jit"),
        (traced, "return the module that you gave to torch.jit"),
        (lambda: nn.Sequential(nn.Identity(), scripted()), "its part '1', a .* is scripted"),
    ],
)
def test_a_wrapper_is_refused_by_its_name(factory, words):
    with pytest.raises(TaskError, match=words):
        toy(factory)


class OptimizedModule(nn.Module):
    """Named as what torch.compile makes, whose import takes ten seconds."""

    def __init__(self):
        super().__init__()
        self._orig_mod = mlp()


def compiled_in_place():
    model = mlp()
    model._compiled_call_impl = model._call_impl  # what model.compile() sets
    return model


@pytest.mark.parametrize(
    "factory",
    [OptimizedModule, lambda: nn.Sequential(OptimizedModule()), compiled_in_place],
)
def test_a_compiled_module_is_refused(factory):
    from importlib.util import find_spec

    source = Path(find_spec("torch").origin).parent / "_dynamo" / "eval_frame.py"
    assert "class OptimizedModule(" in source.read_text()
    assert "self._compiled_call_impl = torch.compile(" in inspect.getsource(nn.Module.compile)
    with pytest.raises(TaskError, match=r"return the module that you gave to torch\.compile"):
        toy(factory)


def test_a_module_traced_by_fx_is_a_module():
    assert toy(lambda: torch.fx.symbolic_trace(mlp()))


# --- the state ---


def plain_tensor():
    model = own(lambda m, x: m.body(x @ m.turn))()
    model.turn = torch.randn(4, 4)
    return model


def kept_weight():
    model = mlp()
    kept = [model[2].weight]
    model[2].forward = lambda x: F.linear(x, kept[0])
    return model


@pytest.mark.parametrize(
    ("factory", "words"),
    [(plain_tensor, r"more than its state dict \(as turn\)"), (kept_weight, "more than its state")],
)
def test_what_is_computed_with_has_to_be_in_the_state(factory, words):
    with pytest.raises(TaskError, match=words):
        toy(factory)


def test_a_constant_that_is_the_same_for_every_seed_may_lie_outside():
    def centred():
        model = own(lambda m, x: m.body(x - m.mean))()
        model.mean = torch.full((4,), 0.5)
        return model

    assert toy(centred)


def test_logits_that_no_array_can_hold_are_refused():
    def sparse(model, x):
        return model.body(x).to_sparse()

    with pytest.raises(TaskError, match="return a dense tensor on the CPU"):
        toy(own(sparse))
