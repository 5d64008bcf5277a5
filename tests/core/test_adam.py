"""Our Adam is torch's, bit for bit; that it imports no compiler is shown in `test_engine`."""

import pytest
import torch

from g2d.core.adam import Adam


def trained(kind: type, **options) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    optimizer = kind(model.parameters(), 0.01, **options)
    for step in range(20):
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
        optimizer.zero_grad()
        model(torch.randn(8, 5)).square().sum().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"weight_decay": 0.1}])
def test_it_takes_the_steps_of_torchs_own(options):
    pairs = zip(trained(Adam, **options), trained(torch.optim.Adam, **options), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_it_takes_a_closure_and_leaves_grad_mode_as_it_was():
    x = torch.ones(2, requires_grad=True)
    optimizer = Adam([x], 0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 2.0
    assert torch.is_grad_enabled()
    assert torch.allclose(x, torch.full((2,), 0.9))
    assert x.is_leaf
