"""Damaged, foreign and hostile keys, queries, answers and weights: one line, and no crash."""

import hashlib
import os
import random

import pytest
import torch

from g2d.protect.homomorphic import (
    EvaluationKeys,
    HomomorphicError,
    Plan,
    SecretKeys,
    encode,
    evaluate,
)
from g2d.protect.homomorphic.keys import refuse_transparent
from g2d.protect.homomorphic.wire import HEADER, pack
from g2d.tasks.polynomials import Quadratic
from he_networks import tiny

pytest.importorskip("tenseal", reason="needs TenSEAL: pip install 'g2d[he]'")
pytest.importorskip("zstandard", reason="needs zstandard: pip install 'g2d[he]'")

PLAN = Plan.of(tiny(), (6,))
IMAGE = torch.full((1, 6), 0.5)


@pytest.fixture(scope="module")
def keys():
    return SecretKeys.new(PLAN)


@pytest.fixture(scope="module")
def upload(keys):
    return keys.upload()


@pytest.fixture(scope="module")
def server(upload):
    return EvaluationKeys.read(upload, PLAN)


@pytest.fixture(scope="module")
def encoded():
    return encode(PLAN, tiny().state_dict())


@pytest.fixture(scope="module")
def readers(keys, upload, server, encoded):
    """For each kind of blob: one that is sound, and who reads it."""
    query = keys.encrypt(IMAGE)
    answer = evaluate(PLAN, encoded, server, query)
    return {
        "query": (query, lambda blob: evaluate(PLAN, encoded, server, blob)),
        "answer": (answer, keys.decrypt),
        "keys": (upload, lambda blob: EvaluationKeys.read(blob, PLAN)),
    }


KINDS = ("query", "answer", "keys")


def refused(read, blob):
    """The error of a reader, which is one line."""
    with pytest.raises(HomomorphicError) as raised:
        read(blob)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_byte_is_noticed(readers, kind):
    blob, read = readers[kind]
    draw = random.Random(0)
    places = [*range(0, HEADER, 3), *(draw.randrange(len(blob)) for _ in range(12))]
    for place in places:
        changed = bytearray(blob)
        changed[place] ^= 1 << draw.randrange(8)
        refused(read, bytes(changed))


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_and_oversized_blobs_are_refused(readers, kind):
    blob, read = readers[kind]
    for length in (0, 1, HEADER - 1, HEADER, len(blob) // 2, len(blob) - 1):
        assert "cut off" in refused(read, blob[:length])
    assert "cut off" in refused(read, blob + b"\0")
    assert "cut off" in refused(read, blob + blob)


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_or_plan_is_refused(readers, kind):
    blob, read = readers[kind]
    other = PLAN.digest[::-1]
    assert "another plan" in refused(read, pack(kind, other, [blob[HEADER:]]))
    strange = "secret" if kind != "secret" else "query"
    assert "something else" in refused(read, pack(strange, PLAN.digest, [blob[HEADER:]]))
    assert "no " in refused(read, b"x" * len(blob))


@pytest.mark.parametrize("kind", KINDS)
def test_a_forger_who_mends_the_checksum_crashes_nothing(readers, kind):
    """SEAL sees his residues: it refuses them, or computes an answer for him alone."""
    blob, read = readers[kind]
    draw = random.Random(1)
    outcomes = set()
    for _ in range(12):
        payload = bytearray(blob[HEADER:])
        for _ in range(draw.choice([1, 8])):
            payload[draw.randrange(len(payload))] = draw.choice([0, 1, 127, 128, 255])
        try:
            read(pack(kind, PLAN.digest, [bytes(payload)]))
            outcomes.add("taken")
        except HomomorphicError as error:
            outcomes.add("refused" if "\n" not in str(error) else "told in several lines")
    assert "refused" in outcomes
    assert outcomes <= {"refused", "taken"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_residues_of_one_byte_crash_nothing(readers, kind, fill):
    """All zero: of an answer, transparent. All ones: no residue of any prime."""
    blob, read = readers[kind]
    forged = pack(kind, PLAN.digest, [fill * (len(blob) - HEADER)])
    if fill == b"\xff" or kind == "answer":
        said = refused(read, forged)
        assert ("transparent" in said) == (fill == b"\0")
    else:
        read(forged)


def test_a_transparent_ciphertext_is_refused():
    from tenseal import sealapi

    from g2d.protect.homomorphic.seal import levels

    top = levels(PLAN.parameters)[PLAN.parameters.levels]
    with pytest.raises(HomomorphicError, match="transparent"):
        refuse_transparent(sealapi.Ciphertext(top.context), "query")


def test_a_query_of_another_level_is_refused(keys, server, encoded):
    """Fewer primes are fewer bytes: there is no field in which a level or a scale could lie."""
    query = keys.encrypt(IMAGE)
    shorter = query[HEADER : -8 * PLAN.parameters.degree]
    said = refused(
        lambda blob: evaluate(PLAN, encoded, server, blob), pack("query", PLAN.digest, [shorter])
    )
    assert "another level" in said


def test_missing_rotation_keys_are_refused_before_anything_is_evaluated(upload):
    last = PLAN.key_sizes[-1]
    said = refused(
        lambda blob: EvaluationKeys.read(blob, PLAN),
        pack("keys", PLAN.digest, [upload[HEADER:-last]]),
    )
    assert "cut off" in said


def test_keys_of_another_client_give_noise_that_is_noticed(server, encoded):
    other = SecretKeys.new(PLAN)
    answer = evaluate(PLAN, encoded, server, other.encrypt(IMAGE))
    with pytest.raises(HomomorphicError, match="the answer is noise"):
        other.decrypt(answer)


def test_weights_and_keys_of_another_plan_are_refused(keys, server, encoded):
    plan = Plan.of(tiny(hidden=5), (6,))
    query = keys.encrypt(IMAGE)
    foreign = encode(plan, tiny(hidden=5).state_dict())
    with pytest.raises(HomomorphicError, match="weights are encoded for another plan"):
        evaluate(PLAN, foreign, server, query)
    with pytest.raises(HomomorphicError, match="keys are of another plan"):
        evaluate(plan, foreign, server, query)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 6),
        torch.zeros(0, 6),
        torch.zeros(6),
        torch.zeros(1, 7),
        torch.full((1, 6), torch.nan),
        torch.full((1, 6), torch.inf),
        torch.full((1, 6), PLAN.bound * 1.01),
    ],
)
def test_inputs_out_of_shape_or_bounds_are_not_encrypted(keys, images):
    with pytest.raises(HomomorphicError, match="image"):
        keys.encrypt(images)


def changed(**arrays):
    return tiny().state_dict() | arrays


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(**{"0.weight": torch.zeros(6, 7)}), "has the shape"),
        (changed(**{"0.weight": torch.full((6, 6), torch.nan)}), "not finite"),
        (changed(**{"2.bias": torch.full((3,), torch.inf)}), "not finite"),
        (changed(**{"9.weight": torch.zeros(1)}), "another network"),
        ({"0.weight": torch.zeros(6, 6)}, "another network"),
        (changed(**{"0.weight": torch.zeros(6, 6)}), "are zero"),
        (changed(**{"0.weight": torch.full((6, 6), 1e30)}), "too large"),
    ],
)
def test_foreign_and_broken_weights_are_not_encoded(state, message):
    with pytest.raises(HomomorphicError, match=message):
        encode(PLAN, state)


def test_a_quadratic_that_is_all_but_a_line_is_not_encoded():
    network = torch.nn.Sequential(
        torch.nn.Linear(6, 4), Quadratic(1.0, 1.0, learned=True), torch.nn.Linear(4, 2)
    )
    plan = Plan.of(network, (6,))
    for a in (0.0, 1e-9):
        state = network.state_dict() | {"1.a": torch.tensor(a)}
        with pytest.raises(HomomorphicError, match="too near a line"):
            encode(plan, state)


def test_the_checksum_is_of_everything_behind_it(readers):
    blob, _ = readers["query"]
    assert hashlib.sha256(blob[HEADER:]).digest() == blob[HEADER - 32 : HEADER]


def test_without_tenseal_one_line_says_how_to_install_it(monkeypatch):
    import sys

    from g2d.protect.homomorphic.seal import sealapi

    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(HomomorphicError, match=r"pip install 'g2d\[he\]'"):
        sealapi()


def test_without_files_in_memory_a_private_folder_is_used_and_removed(keys, monkeypatch, tmp_path):
    """macOS and Windows have no memfd: SEAL reads and writes files alone."""
    made = []

    def folder(prefix, dir=None):
        path = tmp_path / f"{prefix}{len(made)}"
        path.mkdir(0o700)
        made.append(path)
        return str(path)

    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.mkdtemp", folder)
    assert len(keys.encrypt(IMAGE)) == PLAN.limits.query_bytes
    SecretKeys.new(PLAN)._key(1)
    assert len(made) >= 3
    assert not any(path.exists() for path in made)
