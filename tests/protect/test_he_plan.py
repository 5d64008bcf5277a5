"""What a plan says, what it refuses, and what a client believes of one that somebody else wrote."""

import json

import pytest
import torch
from scipy import sparse
from torch import nn

from g2d.protect.homomorphic import HomomorphicError, Plan, Unsupported, pre_activations
from g2d.protect.homomorphic.parameters import MOST_BITS, Parameters, check_security, choose
from g2d.tasks.networks import digits_he_cnn
from g2d.tasks.polynomials import Quadratic, Square
from he_networks import mixed, tiny


@pytest.fixture(scope="module")
def plan():
    return Plan.of(tiny(), (6,))


def told(plan, **changes):
    """A plan's JSON with something else in it."""
    return json.dumps(json.loads(plan.to_json()) | changes)


@pytest.mark.parametrize(("make", "shape"), [(tiny, (6,)), (mixed, (2, 8, 8))])
def test_a_plan_survives_its_json(make, shape):
    plan = Plan.of(make(), shape)
    again = Plan.from_json(plan.to_json())
    assert again.digest == plan.digest
    assert again.limits == plan.limits
    assert again.rotations == plan.rotations


def test_plans_differ_where_networks_do(plan):
    assert Plan.of(tiny(hidden=7), (6,)).digest != plan.digest
    assert Plan.of(tiny(seed=5), (6,)).digest == plan.digest  # no weights in it


@pytest.mark.parametrize(
    "changes",
    [
        {"degree": 4096},
        {"degree": 1 << 40},
        {"primes": [97, 193]},
        {"input_scale": 1e300},
        {"ciphertexts": 1 << 30},
        {"classes": 1 << 40},
        {"rotations": {}},
        {"packing": "batch"},
        {"packing": []},
        {"shape": [1 << 40]},
        {"shape": [True]},
        {"shape": []},
        {"shape": {}},
        {"layers": []},
        {"layers": [{"kind": "dense"}]},
        {"layers": [{"kind": "relu", "name": "0"}]},
        {"layers": [1, 2]},
        {"layers": None},
        {"layers": [{"kind": "flatten", "name": "0"}] * 65},
        {"layers": [{"kind": "dense", "name": "0", "outputs": 1 << 40, "bias": True}]},
        {"layers": [{"kind": "dense", "name": "x" * 201, "outputs": 2, "bias": True}]},
        {"layers": [{"kind": "dense", "name": "0", "outputs": True, "bias": True}]},
        {"layers": [{"kind": "dense", "name": "0", "outputs": 2.0, "bias": True}]},
        {"format": "another"},
        {"more": 1},
    ],
)
def test_a_client_takes_nothing_from_a_plan_that_it_did_not_compile(plan, changes):
    with pytest.raises(HomomorphicError):
        Plan.from_json(told(plan, **changes))


@pytest.mark.parametrize(
    "layers",
    [
        [{"kind": "dense", "name": "0", "outputs": 65536, "bias": True}],
        [{"kind": "conv", "name": "0", "channels": 65536, "kernel": [4096, 4096],
          "stride": [1, 1], "padding": [4096, 4096], "dilation": [1, 1], "bias": True}],
        [{"kind": "pool", "name": "0", "kernel": [250, 250], "stride": [1, 1]}],
    ],
)  # fmt: skip
def test_a_plan_cannot_make_a_client_allocate_gigabytes(plan, layers):
    """Nor compute for minutes: what is asked for is counted before it is laid out."""
    shape = [65536] if layers[0]["kind"] == "dense" else [1, 256, 256]
    with pytest.raises(HomomorphicError):
        Plan.from_json(told(plan, layers=layers, shape=shape))


def dense(*sizes):
    return [
        {"kind": "dense", "name": str(i), "outputs": size, "bias": False}
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(("inputs", "sizes"), [(65536, (45, 65536)), (1700, (1700, 1700))])
def test_products_of_matrices_are_counted_before_they_are_made(plan, monkeypatch, inputs, sizes):
    """The first would take 50 GB; of the second each matrix is small, and all products many."""
    made, usual = [], sparse.csr_matrix.__matmul__

    def times(one, other):
        if not sparse.issparse(other):
            return usual(one, other)
        made.append(one.shape)
        raise MemoryError

    monkeypatch.setattr(sparse.csr_matrix, "__matmul__", times)
    with pytest.raises(HomomorphicError, match=r"needs \d+ products"):
        Plan.from_json(told(plan, layers=dense(*sizes), shape=[inputs]))
    assert made == []


def test_a_plan_whose_query_or_keys_are_gigabytes_is_refused(plan):
    """As many inputs as are allowed in a batch, and a chain as deep as the primes last."""
    layers = []
    for i in range(13):
        square = {"kind": "polynomial", "name": f"square {i}", "fixed": [1.0, 0.0, 0.0]}
        layers += [dense(2)[0] | {"name": f"{i}"}, square]
    with pytest.raises(HomomorphicError, match=r"a query of \d+ MB .* 1024 MB at most"):
        Plan.from_json(told(plan, layers=layers[:-1], shape=[2000], packing="batch"))


@pytest.mark.parametrize(
    "text", ["", "[]", "nul", "NaN", "[" * 60000, '{"layers": NaN}', "0" * 70000]
)
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(HomomorphicError):
        Plan.from_json(text)


class Residual(nn.Module):
    """What its children in order are not."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.one(x)


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)), (6,), r"'1' \(ReLU\) comp"),
        (nn.Sequential(nn.MaxPool2d(2)), (1, 4, 4), r"'0' \(MaxPool2d\) .* AvgPool2d"),
        (nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)), (6,), r"'1' \(Tanh\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)), (2, 4, 4), "groups=1 would do"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), (2, 4, 4), "zeros"),
        (nn.Sequential(nn.AvgPool2d(3, padding=1)), (2, 4, 4), "pads"),
        (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)), (2, 5, 5), "pads"),
        (nn.Sequential(Square(), nn.Linear(6, 2)), (6,), "no linear layer on both"),
        (nn.Sequential(nn.Linear(6, 2), Square()), (6,), "no linear layer on both"),
        (nn.Sequential(nn.Linear(6, 6), Square(), Square(), nn.Linear(6, 2)), (6,), "'2'"),
        (nn.Sequential(nn.Linear(6, 2)), (7,), "does not take inputs of"),
        (nn.Sequential(nn.Conv2d(1, 1, 2)), (1, 4, 4, 4), r"\(C, H, W\)|does not take"),
        (nn.Sequential(nn.Linear(4, 2)), (1, 4, 4), "put Flatten before it"),
        (nn.Sequential(), (6,), "no linear|no layers|neither linear"),
        (Residual(), (6,), "no chain"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_named_with_what_would_do(network, shape, message):
    with pytest.raises(Unsupported, match=message) as raised:
        Plan.of(network, shape)
    assert "\n" not in str(raised.value)


def test_too_much_depth_is_named():
    layers = [nn.Linear(4, 4)]
    for _ in range(13):
        layers += [Square(), nn.Linear(4, 4)]
    with pytest.raises(Unsupported, match=r"layer '26' is linear step 14, .* room for 13 "):
        Plan.of(nn.Sequential(*layers), (4,))


def test_packings_are_latency_and_batch():
    with pytest.raises(Unsupported, match="latency or batch would do"):
        Plan.of(tiny(), (6,), packing="simd")
    plan = Plan.of(tiny(), (6,), packing="batch")
    assert plan.batch == plan.parameters.slots - 2
    assert plan.rotations == {}
    assert Plan.from_json(plan.to_json()).digest == plan.digest
    assert plan.digest != Plan.of(tiny(), (6,)).digest


def test_a_batch_of_a_network_that_is_too_wide_is_refused():
    network = nn.Sequential(nn.Conv2d(1, 9, 1), Square(), nn.Flatten(), nn.Linear(9 * 256, 2))
    with pytest.raises(Unsupported, match=r"layer '0' has 2304 numbers .* 'latency' would do"):
        Plan.of(network, (1, 16, 16), packing="batch")


def test_the_smallest_degree_that_has_room_is_taken():
    assert Plan.of(tiny(), (6,)).parameters.degree == 8192
    assert Plan.of(digits_he_cnn(), (1, 8, 8)).parameters.degree == 16384


@pytest.mark.parametrize("degree", MOST_BITS)
@pytest.mark.parametrize("steps", [1, 2, 4, 6, 13])
def test_parameters_are_within_the_standard(degree, steps):
    found = choose(degree, steps)
    if found is None:
        return
    assert found.bits <= MOST_BITS[degree]
    assert found.levels == steps + 1
    assert len(set(found.primes)) == len(found.primes)
    assert all(prime % (2 * degree) == 1 for prime in found.primes)
    for level in range(1, found.levels + 1):
        check_security(degree, sum(prime.bit_length() for prime in found.chain(level)))


def test_the_standards_table_is_seals():
    seal = pytest.importorskip("tenseal.sealapi", reason="needs TenSEAL: pip install 'g2d[he]'")
    for degree, bits in MOST_BITS.items():
        assert seal.CoeffModulus.MaxBitCount(degree, seal.SEC_LEVEL_TYPE.TC128) == bits


@pytest.mark.parametrize(("degree", "bits"), [(8192, 219), (16384, 439), (12345, 10), (65536, 10)])
def test_parameters_below_128_bits_are_refused(degree, bits):
    with pytest.raises(HomomorphicError, match="below 128 bits"):
        check_security(degree, bits)


def test_weak_primes_never_reach_seal():
    pytest.importorskip("tenseal", reason="needs TenSEAL: pip install 'g2d[he]'")
    from g2d.protect.homomorphic.seal import levels

    weak = Parameters(1024, choose(8192, 2).primes, 2.0**40)
    with pytest.raises(HomomorphicError, match="below 128 bits"):
        levels(weak)


def test_pre_activations_are_the_largest_that_a_polynomial_sees():
    network = nn.Sequential(nn.Linear(2, 2), Square(), nn.Linear(2, 1), Quadratic(1.0, 0.0))
    with torch.no_grad():
        for layer in (network[0], network[2]):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
    inputs = torch.tensor([[1.0, 2.0], [-3.0, -1.0]])
    assert pre_activations(network, inputs) == {"1": 4.0, "3": 32.0}
    assert pre_activations(network, inputs * torch.inf)["1"] == torch.inf


def test_the_bound_is_far_from_where_values_wrap(plan):
    assert 64 <= plan.bound <= 2**17
