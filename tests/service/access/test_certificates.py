"""Whose a certificate is, and what files TLS refuses; no connection is made."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from authority import PROD
from g2d.errors import SettingsError
from g2d.service.access.certificates import peer_of
from g2d.service.access.tls import ServerTls
from g2d.service.http.options import Options

URI, DNS, MAIL = x509.UniformResourceIdentifier, x509.DNSName, x509.RFC822Name


@pytest.mark.parametrize(
    ("names", "common", "identity"),
    [
        ([URI(PROD)], "bob", PROD),
        ([DNS("a.example"), URI(PROD)], "", PROD),
        ([DNS("a.example"), DNS("b.example")], "bob", "dns:a.example"),
        ([MAIL("ann@a.example")], "bob", "email:ann@a.example"),
        ([URI("https://a.example/x"), DNS("a.example")], "", "dns:a.example"),
        ([], "bob", "cn:bob"),
        ([], "spiffe://example.org/ns/prod/x", "cn:spiffe://example.org/ns/prod/x"),
    ],
)
def test_the_identity_of_a_certificate(authority, names, common, identity):
    pair = authority.issue(names, common=common)
    peer = peer_of(pair.read.public_bytes(Encoding.DER), "t")
    assert (peer.name, peer.trust, peer.wrong) == (identity, "t", "")
    assert peer.ends == pair.read.not_valid_after_utc.timestamp()


@pytest.mark.parametrize(
    ("names", "common", "said"),
    [
        ([URI(PROD), URI("spiffe://other.org/x")], "bob", "more than one URI"),
        ([URI(PROD), URI("https://a.example")], "bob", "more than one URI"),
        *(
            ([URI(wrong), DNS("a.example")], "bob", "SPIFFE ID is not spiffe://domain/path")
            for wrong in (
                "spiffe://example.org", "spiffe://example.org/", "spiffe://example.org/a//b",
                "spiffe://example.org/ns/../prod", "spiffe://example.org/.", "spiffe:///x",
                "spiffe://EXAMPLE.org/x", "SPIFFE://example.org/x", "spiffe://a@example.org/x",
                "spiffe://example.org:1/x", "spiffe://example.org/x?y", "spiffe://example.org/%41",
                "spiffe://example.org/" + "x" * 2048, "spiffe:x",
            )
        ),
        ([], "", "names nobody"),
        ([], "bob\nann", "not plain text"),
        ([], "*", "not plain text"),
        ([DNS("*.example")], "", "not plain text"),
    ],
)  # fmt: skip
def test_a_certificate_without_a_proper_identity_has_none(authority, names, common, said):
    peer = peer_of(authority.issue(names, common=common).read.public_bytes(Encoding.DER), "t")
    assert peer.name == ""
    assert said in peer.wrong
    assert peer_of(b"\x30\x03abc", "t").wrong == "the client certificate cannot be read"


def test_files_that_tls_cannot_use_are_said_in_one_line(authority, server_pair, tmp_path):
    for name, text in (("text", "no PEM"), ("none", ""), ("damaged", (
        "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n"))):  # fmt: skip
        (tmp_path / name).write_text(text)
    crl = authority.revoke()
    ours = {"tls_cert": server_pair.cert, "tls_key": server_pair.key, "client_ca": authority.cert}
    for changes, said in (
        ({"client_ca": str(tmp_path / "gone")}, "cannot read --client-ca"),
        ({"client_ca": str(tmp_path)}, "cannot read --client-ca"),
        ({"client_ca": str(tmp_path / "text")}, "holds no certificate in PEM"),
        ({"client_ca": str(tmp_path / "damaged")}, "cannot be used"),
        ({"client_ca": server_pair.cert}, "holds no certificate of a CA"),
        ({"client_crl": authority.cert}, "holds no list of revoked certificates in PEM"),
        ({"client_crl": str(tmp_path / "none")}, "holds no list of revoked"),
        ({"tls_key": authority.issue().key}, "is not the private key of"),
    ):
        with pytest.raises(SettingsError) as refused:
            ServerTls(Options(**ours | changes))
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
    assert ServerTls(Options(**ours)).trust != ServerTls(Options(**ours, client_crl=crl)).trust
