"""Real ciphertexts against a real service: right answers while it rotates, and nothing else."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tenseal", reason="homomorphic inference needs TenSEAL: pip install 'g2d[he]'")

import ciphers
from ciphers import CLASSES, OPTIONS, SHAPE, Recorder, expected, images, network, serving
from commands import fail, succeed
from g2d.core.exchange import ExchangeError, ask
from g2d.errors import DataError, KeyFileError
from g2d.protect.homomorphic import HomomorphicError, Plan, SecretKeys
from g2d.service.client.encrypted import EncryptedClient, UnknownKeysError
from g2d.service.client.keyfile import Note
from g2d.service.encrypted.protocol import Query, write_query
from stand_ins import wait_for

NEAR = 1e-3


@pytest.fixture(scope="module")
def service():
    with serving() as running:
        yield running


@pytest.fixture
def client(service, tmp_path):
    made = EncryptedClient(service.address, keys=tmp_path / "my.keys")
    assert made.make_keys()
    made.upload()
    return made


def test_answers_are_torchs_and_keys_stay(service, client, tmp_path):
    x, live = images(3), service.harness.live.number
    answer = client.infer(x)
    assert np.abs(answer.values - expected(live, x)).max() < NEAR
    assert (answer.labels == expected(live, x).argmax(1)).all()
    assert (answer.number, answer.others) == (live, ())
    assert client.file.stat().st_mode & 0o777 == 0o600
    again = EncryptedClient(service.address, keys=client.file)  # another process, say
    assert again.make_keys() is False
    assert np.abs(again.infer(x).values - expected(live, x)).max() < NEAR


def test_the_secret_key_never_leaves_the_client(service, tmp_path):
    with Recorder(service.address) as recorder:
        client = EncryptedClient(recorder.address, keys=tmp_path / "my.keys")
        client.make_keys()
        size = client.upload()
        client.infer(images(1))
        sent = recorder.sent
    assert len(sent) > size
    secret = client.file.read_bytes()
    assert found(secret, sent + secret), "the search finds what is there"
    assert found(secret, b"12345" + secret[100:300]), "a part of it, at any offset"
    assert not found(secret, sent)


def found(secret: bytes, sent: bytes) -> bool:
    """Whether 16 bytes in a row of a secret's file are in what was sent, at whatever offset.

    Not its head, which names the plan and is no secret; nor runs of one byte.
    """
    from g2d.protect.homomorphic.wire import HEADER

    kept = np.frombuffer(secret[HEADER : HEADER + (len(secret) - HEADER) // 8 * 8], "<u8")
    kept = np.unique(kept[kept > 1 << 16])
    assert len(kept) > 10
    for offset in range(8):
        part = sent[offset : offset + (len(sent) - offset) // 8 * 8]
        hits = np.isin(np.frombuffer(part, "<u8"), kept)
        if (hits[1:] & hits[:-1]).any():
            return True
    return False


def test_while_it_rotates_each_answer_is_one_generations(tmp_path):
    with serving(replace(OPTIONS, encrypted_processes=2)) as service:
        x, answers, failed = images(4, seed=1), [], []
        clients = [EncryptedClient(service.address, keys=tmp_path / f"{i}.keys") for i in range(2)]
        for client in clients:
            client.make_keys()
            client.upload()

        def asking(client: EncryptedClient, i: int) -> None:
            try:
                while service.harness.live.number < 4 or len(answers) < 9:
                    answers.append((i, client.infer(x[i : i + 1])))
            except Exception as error:  # told below, for a thread's own would be lost
                failed.append(error)

        threads = [
            threading.Thread(target=asking, args=(client, i))
            for i, client in enumerate((*clients, *clients))
        ]
        for thread in threads:
            thread.start()
        for number in (2, 3, 4):
            begun = len(answers)
            spare = service.snapshot(number)
            wait_for(lambda begun=begun: len(answers) > begun + 2 or failed, 400.0)
            service.harness.live.swap(spare)
            del spare
        for thread in threads:
            thread.join(900)
        assert failed == []
        for i, answer in answers:
            assert answer.others == ()
            assert np.abs(answer.values - expected(answer.number, x[i : i + 1])).max() < NEAR
        assert {1, 4} <= {answer.number for _, answer in answers}
        wait_for(lambda: len(service.evaluators._weights) == 1)  # only what is live is held


def test_a_generation_that_answered_last_is_let_go_without_another_request(service, client):
    client.infer(images(1))
    service.harness.live.swap(service.snapshot(service.harness.live.number + 1))
    wait_for(lambda: len(service.evaluators._weights) == 1)


def test_wrong_ciphertexts_are_refused_and_right_ones_still_answered(service, client):
    plan, note = client.plan, Note.read(client.file)
    query = SecretKeys.load(client.file, plan).encrypt(ciphers.torch.from_numpy(images(1)))
    other = EncryptedClient(service.address, keys=client.file.with_name("other.keys"))
    other._plan = Plan.of(network(1, CLASSES + 1), SHAPE)
    other.make_keys()
    foreign = other._secret.encrypt(ciphers.torch.from_numpy(images(1)))
    middle = len(query) // 2

    def post(ciphertext: bytes, keys: str = note.keys, digest: str = plan.digest):
        body, headers = write_query(Query(ciphertext, keys, digest))
        return ask("POST", f"{service.address}/encrypted/infer", body, headers)

    assert post(query).status == 200
    for wrong in (query[:-1], query[:50], query + b"x", foreign, os.urandom(len(query)),
                  query[:middle] + bytes(64) + query[middle + 64 :]):  # fmt: skip
        reply = post(wrong)
        assert reply.status == 400, reply.said
        assert b"\n" not in reply.body
    assert post(query, digest=other.plan.digest).status == 409
    assert post(query, keys="0" * 32).status == 404
    assert post(bytes(plan.limits.query_bytes + (1 << 17))).status == 413
    assert post(query).status == 200


def test_wrong_keys_are_refused(service, client):
    blob = SecretKeys.load(client.file, client.plan).upload()
    assert len(blob) <= client.plan.limits.upload_bytes
    other = Plan.of(network(1, CLASSES + 1), SHAPE)
    foreign = SecretKeys.new(other).upload()

    def post(body: bytes):
        return ask("POST", f"{service.address}/encrypted/keys", body)

    for wrong in (b"", blob[:-1], blob[: len(blob) // 2], foreign, os.urandom(1000)):
        assert post(wrong).status == 400
    assert post(blob + bytes(client.plan.limits.upload_bytes)).status == 413
    assert client.infer(images(1)).number == service.harness.live.number


def test_an_answer_under_anothers_keys_is_noise_and_is_said_to_be(service, client, tmp_path):
    other = EncryptedClient(service.address, keys=tmp_path / "other.keys")
    other.make_keys()
    other.upload()
    Note(client.plan.digest, service.address, Note.read(client.file).keys).write(other.file)
    with pytest.raises(HomomorphicError, match="of another key"):
        other.infer(images(1))


def test_ids_are_of_no_use_once_keys_are_deleted_and_an_upload_helps(service, client):
    own = Note.read(client.file).keys
    gone = ask("DELETE", f"{service.address}/encrypted/keys/{own}")
    assert gone.status == 204
    with pytest.raises(UnknownKeysError, match="upload them again with `g2d client encrypted keys"):
        client.infer(images(1))
    client.upload()
    assert client.infer(images(1)).values.shape == (1, CLASSES)


def test_pixels_out_of_bounds_are_refused_before_anything_is_encrypted(client, monkeypatch):
    monkeypatch.setattr(SecretKeys, "encrypt", None)
    for wrong in (255 * images(1), images(1) - 1, images(1)[:, :, :4], np.nan * images(1)):
        with pytest.raises(DataError):
            client.infer(wrong)


def test_bounds_of_a_task_of_ones_own_can_be_said(service, client, tmp_path):
    x, live = 2 * images(1) - 1, service.harness.live.number
    np.save(tmp_path / "x.npy", x)
    words = ("client", "encrypted", "infer", service.address, tmp_path / "x.npy")
    words = (*words, "--keys", client.file)
    assert "expected 0 to 1" in fail(*words)
    succeed(*words, "--bounds", "-1", "1", "--out", tmp_path / "s.npy")
    assert np.abs(np.load(tmp_path / "s.npy") - expected(live, x)).max() < NEAR


def test_keys_for_another_network_are_told_apart(service, client, tmp_path):
    with serving(classes=CLASSES + 1) as other:
        stranger = EncryptedClient(other.address, keys=client.file)
        for call in (stranger.make_keys, stranger.upload, lambda: stranger.infer(images(1))):
            with pytest.raises(KeyFileError, match="for another network"):
                call()
        note = Note.read(client.file)
        Note(other.harness.service.encrypted._calls._offer.digest, note.url, note.keys).write(
            client.file
        )
        with pytest.raises(Exception, match="plan"):  # the secret file itself says so, too
            EncryptedClient(other.address, keys=client.file).infer(images(1))


def test_an_evaluator_that_is_killed_is_replaced(service, client):
    (process,) = service.evaluators._processes
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: process._run.ended)
    assert client.infer(images(1)).number == service.harness.live.number


def test_the_command_makes_keys_asks_and_never_overwrites(service, tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    x, live = images(2, seed=3), service.harness.live.number
    np.save(tmp_path / "x.npy", x)
    assert "run `g2d client encrypted keys" in fail(
        "client", "encrypted", "infer", service.address, tmp_path / "x.npy"
    )
    said = succeed("client", "encrypted", "keys", service.address).output
    assert "mode 600" in said
    assert "MB to http" in said
    (file,) = (tmp_path / "state" / "client").glob("*.keys")
    before = file.read_bytes()
    assert "were there already" in succeed("client", "encrypted", "keys", service.address).output
    assert file.read_bytes() == before
    for words in (("client", "encrypted", "infer"), ("client", "infer", "--way", "encrypted")):
        out = tmp_path / f"{len(words)}.npy"
        said = succeed(*words, service.address, tmp_path / "x.npy", "--out", out).output
        assert f"answered by generation {live}" in said
        assert np.abs(np.load(out) - expected(live, x)).max() < NEAR


def test_a_server_that_is_gone_is_one_line(tmp_path):
    client = EncryptedClient("http://127.0.0.1:9", keys=tmp_path / "k")
    with pytest.raises(ExchangeError, match="does not answer"):
        client.make_keys()
    assert list(Path(tmp_path).iterdir()) == []
