"""Inference under encryption gives torch's answers, layer by layer, and tells nothing else."""

import os
import stat

import numpy as np
import pytest
import torch
from torch import nn

from g2d.protect.homomorphic import (
    EvaluationKeys,
    HomomorphicError,
    Plan,
    SecretKeys,
    encode,
    evaluate,
)
from g2d.protect.homomorphic.keys import GRID
from g2d.tasks.networks import digits_he_cnn
from g2d.tasks.polynomials import Quadratic, Square
from he_networks import mixed, tiny

pytest.importorskip("tenseal", reason="needs TenSEAL: pip install 'g2d[he]'")
pytest.importorskip("zstandard", reason="needs zstandard: pip install 'g2d[he]'")


class Session:
    """Both sides for one network."""

    def __init__(self, network, shape):
        self.network, self.plan = network.eval(), Plan.of(network, shape)
        self.keys = SecretKeys.new(self.plan)
        self.upload = self.keys.upload()
        self.server = EvaluationKeys.read(self.upload, self.plan)
        self.encoded = encode(self.plan, network.state_dict())

    def ask(self, image):
        return evaluate(self.plan, self.encoded, self.server, self.keys.encrypt(image))

    def wanted(self, image):
        with torch.no_grad():
            return self.network(image)


@pytest.fixture(scope="module")
def session():
    return Session(tiny(), (6,))


@pytest.fixture(scope="module")
def digits():
    torch.manual_seed(3)
    network = digits_he_cnn()
    with torch.no_grad():
        for one in network.parameters():  # as large as training makes them
            one.mul_(1.7)
    return Session(network, (1, 8, 8))


def image_for(session, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, *session.plan.shape, generator=generator)


@pytest.mark.parametrize("step", range(4))
def test_every_linear_step_of_every_kind_of_layer_agrees_with_torch(step):
    """The network up to each of its sums, so that no later layer hides an error."""
    network = mixed()
    ends = [2, 5, 9, 11]  # behind the norm, the second convolution, both dense layers
    session = Session(nn.Sequential(*list(network)[: ends[step]]), (2, 8, 8))
    image = image_for(session, step)
    logits = session.keys.decrypt(session.ask(image), exact=True)
    torch.testing.assert_close(
        logits, session.wanted(image).reshape(1, -1), atol=2e-4, rtol=0
    )  # fmt: skip


def test_a_network_of_digits_agrees_with_torch(digits):
    image = image_for(digits)
    answer, wanted = digits.ask(image), digits.wanted(image)
    exact, rounded = digits.keys.decrypt(answer, exact=True), digits.keys.decrypt(answer)
    assert exact.dtype == torch.float32
    assert exact.shape == (1, 10)
    torch.testing.assert_close(exact, wanted, atol=2e-4, rtol=0)
    torch.testing.assert_close(rounded, wanted, atol=1e-3, rtol=0)


def test_every_slot_beyond_the_answer_is_a_copy_of_a_logit_or_zero(digits):
    """No partial sum of any step is in the answer: only what the client was to learn."""
    image = image_for(digits)
    (slots,) = digits.keys.slots(digits.ask(image))
    period = np.zeros(16)
    period[:10] = digits.wanted(image).numpy()
    np.testing.assert_allclose(slots, np.tile(period, len(slots) // 16), atol=1e-3)


def test_answers_are_rounded_unless_exact_ones_are_asked_for(session):
    answer = session.ask(image_for(session))
    rounded = session.keys.decrypt(answer)
    assert torch.equal(rounded, (rounded / GRID).round() * GRID)
    exact = session.keys.decrypt(answer, exact=True)
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().max() <= GRID / 2


def test_the_same_question_never_gives_the_same_bytes(session):
    image = image_for(session)
    query = session.keys.encrypt(image)
    assert query != session.keys.encrypt(image)
    answers = [evaluate(session.plan, session.encoded, session.server, query) for _ in range(2)]
    assert answers[0] != answers[1]  # an encryption of zero is added


def test_a_new_generation_needs_no_new_keys(session):
    other = tiny(seed=9)
    encoded = encode(session.plan, other.state_dict())
    image = image_for(session)
    answer = evaluate(session.plan, encoded, session.server, session.keys.encrypt(image))
    with torch.no_grad():
        torch.testing.assert_close(session.keys.decrypt(answer), other(image), atol=1e-3, rtol=0)


def test_the_secret_key_is_not_in_what_is_sent(session):
    """Neither its residues, at any prime, nor its coefficients in any plain form."""
    secret, sent = session.keys._words, session.upload + session.keys.encrypt(image_for(session))
    step = session.plan.parameters.degree * 8
    for start in range(0, len(secret), step):
        for offset in range(0, step, step // 8):
            assert secret[start + offset : start + offset + 16] not in sent
    assert len(session.upload) == session.plan.limits.upload_bytes


def test_what_travels_is_of_the_size_that_the_plan_says(session):
    limits, image = session.plan.limits, image_for(session)
    assert len(session.keys.encrypt(image)) == limits.query_bytes
    assert len(session.ask(image)) == limits.answer_bytes


def test_a_secret_key_is_kept_for_its_owner_alone(session, tmp_path):
    path = tmp_path / "secret"
    session.keys.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(HomomorphicError, match="is there already"):
        session.keys.save(path)
    image = image_for(session)
    again = SecretKeys.load(path, session.plan)
    torch.testing.assert_close(
        again.decrypt(session.ask(image)), session.wanted(image), atol=1e-3, rtol=0
    )  # fmt: skip
    with pytest.raises(HomomorphicError, match="another plan"):
        SecretKeys.load(path, Plan.of(tiny(hidden=5), (6,)))
    path.chmod(0o644)
    with pytest.raises(HomomorphicError, match="chmod 600"):
        SecretKeys.load(path, session.plan)


def test_a_secret_key_file_that_is_damaged_or_absent_is_refused(session, tmp_path):
    with pytest.raises(HomomorphicError, match="cannot read"):
        SecretKeys.load(tmp_path / "none", session.plan)
    path = tmp_path / "secret"
    session.keys.save(path)
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    with pytest.raises(HomomorphicError, match="damaged"):
        SecretKeys.load(path, session.plan)
    os.truncate(path, 1000)
    with pytest.raises(HomomorphicError, match="cut off"):
        SecretKeys.load(path, session.plan)


def test_keys_say_nothing_of_themselves(session):
    assert session.keys._words.hex()[:32] not in repr(vars(session.server))
    assert "_words" not in repr(session.keys)


@pytest.mark.parametrize("a", [1.0, -2.0, 0.01])
def test_quadratics_of_any_sign_cost_no_step_of_their_own(a):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), Quadratic(a, 0.5, -0.3), nn.Linear(5, 3)).eval()
    session = Session(network, (6,))
    assert len(session.plan.steps) == 2
    image = image_for(session)
    torch.testing.assert_close(
        session.keys.decrypt(session.ask(image)), session.wanted(image), atol=1e-3, rtol=0
    )  # fmt: skip


def test_values_up_to_the_bound_keep_their_precision():
    """Pre-activations of 256 and squares of 65,536; the answer is of their size."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), Square(), nn.Linear(1, 1, bias=False))
    session = Session(network, (1,))
    with torch.no_grad():
        network[0].weight.fill_(session.plan.bound)
        network[2].weight.fill_(2.0**-8)
    session.encoded = encode(session.plan, network.state_dict())
    image = torch.ones(1, 1)
    exact = session.keys.decrypt(session.ask(image), exact=True)
    torch.testing.assert_close(exact, session.wanted(image), atol=1e-2, rtol=0)


def test_values_that_wrap_around_are_noticed():
    network = nn.Sequential(nn.Linear(1, 1, bias=False), Square(), nn.Linear(1, 3, bias=False))
    session = Session(network, (1,))
    with torch.no_grad():
        for layer in (network[0], network[2]):
            layer.weight.fill_(2.0**14)
    session.encoded = encode(session.plan, network.state_dict())
    with pytest.raises(HomomorphicError, match="the answer is noise"):
        session.keys.decrypt(session.ask(torch.full((1, 1), 7.3)))


@pytest.mark.parametrize(("hidden", "classes"), [(16, 4), (2, 2), (4, 4), (8, 8), (1, 1)])
def test_one_slot_of_every_period_is_idle_and_shows_what_wrapped_around(hidden, classes):
    """As many classes as a power of two fill no period: all copies of a wrapped logit agree."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Linear(16, hidden, bias=False), Square(), nn.Linear(hidden, classes, bias=False)
    )
    session = Session(network, (16,))
    assert session.plan.programs[-1].made.period > classes
    with torch.no_grad():
        for one in network.parameters():
            one.add_(0.5).mul_(8.0)
    session.encoded = encode(session.plan, network.state_dict())
    image = image_for(session)
    torch.testing.assert_close(
        session.keys.decrypt(session.ask(image)), session.wanted(image), atol=2e-2, rtol=1e-4
    )  # fmt: skip
    large = image * float((2.0**19 / session.wanted(image).abs().max()).sqrt())
    assert session.wanted(large).abs().max() > 2.0**18
    with pytest.raises(HomomorphicError, match="the answer is noise"):
        session.keys.decrypt(session.ask(large))


def test_logits_near_where_they_wrap_around_are_refused():
    network = nn.Sequential(nn.Linear(1, 1, bias=False), Square(), nn.Linear(1, 3, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[2].weight.copy_(torch.tensor([[1.0], [-0.5], [0.25]]))
    session = Session(network, (1,))
    below, above = torch.full((1, 1), 350.0), torch.full((1, 1), 440.0)  # squares: 2^16.9, 2^17.6
    assert session.keys.decrypt(session.ask(below)).argmax() == 0
    with pytest.raises(HomomorphicError, match="the answer is noise"):
        session.keys.decrypt(session.ask(above))


def test_pruned_weights_are_evaluated():
    """SEAL refuses to multiply by zero: those products are left out."""
    network = tiny()
    with torch.no_grad():
        network[0].weight[1:] = 0.0
        network[2].bias.zero_()
    session = Session(network, (6,))
    image = image_for(session)
    torch.testing.assert_close(
        session.keys.decrypt(session.ask(image)), session.wanted(image), atol=1e-3, rtol=0
    )  # fmt: skip
