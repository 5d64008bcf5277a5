"""Time stamps of RFC 3161: asked for, verified against a commitment, refused where they are not."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("rfc3161_client")
pytest.importorskip("asn1crypto")

from g2d.errors import ClaimError, G2DError, KeyFileError
from g2d.protect.watermark.commitment import Published
from g2d.protect.watermark.timestamp import read_stamp, request_stamp, roots_of
from g2d.vault.keys import SigningKey
from marked import committed, serving
from timestamping import NAME, Authority


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def roots(authority, tmp_path):
    return roots_of(authority.write(tmp_path / "root.pem"))


def stamping(authority):
    return serving(lambda _, body: (200, authority.answer(body), {}))


def test_a_commitment_is_dated_by_a_third_party_and_verified_under_its_root(
    authority, roots, tmp_path
):
    signing = SigningKey.generate()
    with stamping(authority) as url:
        made = committed(tmp_path / "vault", signing, timestamp=url, roots=roots)
    again = Published.from_record(made.record())
    dated = again.verify(time.time(), signing.public, roots)
    assert dated.word == f"by RFC 3161, {NAME}"
    assert abs(dated.time - made.commitment.created) < 60
    with pytest.raises(ClaimError, match="--tsa has to name"):
        again.verify(time.time(), roots=Authority().root and [Authority().root])
    other = committed(tmp_path / "other", signing)
    moved = Published(other.commitment, other.signature, made.token)
    with pytest.raises(ClaimError, match="of other bytes"):
        moved.verify(time.time(), roots=roots)


def test_a_commitment_that_says_another_date_than_its_stamp_is_not_believed(
    authority, roots, tmp_path
):
    late = Authority(datetime.now(UTC) - timedelta(days=900))
    with stamping(late) as url, pytest.raises(ClaimError, match="not to be believed"):
        committed(tmp_path / "vault", timestamp=url, roots=[late.root]).verify(
            time.time(), roots=[late.root]
        )


def test_a_server_that_grants_nothing_is_one_line(authority, roots, tmp_path):
    for answer, said in (
        ((500, b"no", {}), "answered 500: no"),
        ((200, b"rubbish", {}), "is not verified"),
        ((200, b"", {}), "is not verified"),
        ((200, authority.answer(_query(b"others")), {}), "is not verified"),
    ):
        with serving(lambda *_, a=answer: a) as url, pytest.raises(ClaimError, match=said):
            request_stamp(url, b"data", roots)
    with pytest.raises(ClaimError, match="nothing was written"):
        request_stamp("http://127.0.0.1:1", b"data", roots)


def test_no_roots_and_no_package_say_what_to_do(authority, tmp_path, monkeypatch):
    with pytest.raises(ClaimError, match="give --tsa"):
        read_stamp(b"token", b"data", [])
    (tmp_path / "none.pem").write_text("none")
    with pytest.raises(KeyFileError, match="holds no certificates"):
        roots_of(tmp_path / "none.pem")
    assert isinstance(roots_of(None), list)  # whatever this system trusts
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    with pytest.raises(G2DError, match=r"pip install 'g2d\[timestamp\]'"):
        request_stamp("http://127.0.0.1:1", b"data", [])


def _query(data: bytes) -> bytes:
    import rfc3161_client as library

    builder = library.TimestampRequestBuilder().data(data)
    return builder.hash_algorithm(library.HashAlgorithm.SHA256).build().as_bytes()
