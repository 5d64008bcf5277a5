"""`parties.toml`, certificates and keys: a wrong line is explained."""

from __future__ import annotations

import pytest

from g2d.protect.multiparty.config import Config, certificates
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.identities import make_identity
from smpc_parties import Setup


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"aby3"', '"semi2k"', "expected aby3 or cheetah"),
        ('"aby3"', '"cheetah"', "has 2 parties, and 3 are named"),
        ("dealers =", "dealer =", "Did you mean 'dealers'"),
        ('["dealer.pem"]', "[]", "nobody could share weights"),
        ('["dealer.pem"]', '["party0.pem"]', "have one certificate"),
        ('"party1.pem"', '"party0.pem"', "have one certificate"),
        ('"party1.pem"', '"party1.key"', "holds no certificate"),
        ('"party1.pem"', '"nothing.pem"', "cannot read the certificates"),
        ("arrive", "arives", "Did you mean 'arrive'"),
        ("silence = 60.0", "silence = -1", "silence is -1"),
        ("silence = 60.0", 'bounds = "yes"', "expected a bool"),
        ("127.0.0.1:", "127.0.0.1", "no address"),
        ("[[parties]]", "[parties", "cannot read"),
    ],
)
def test_a_wrong_line_is_explained(tmp_path, old, new, expected):
    setup = Setup(tmp_path)
    text = setup.file.read_text()
    assert old in text
    setup.file.write_text(text.replace(old, new, 1))
    with pytest.raises(MultipartyError, match=expected):
        Config.read(setup.file)


def test_a_file_may_hold_the_next_certificate_too(tmp_path):
    setup = Setup(tmp_path)
    first = setup.config
    make_identity(tmp_path / "next")
    file = tmp_path / "party1.pem"
    file.write_text(file.read_text() + (tmp_path / "next.pem").read_text())
    (mark,) = [mark for mark in setup.config.roles if mark not in first.roles]
    assert str(setup.config.roles[mark]) == "party 1"
    assert len(certificates(file)) == 2


def test_a_key_that_is_open_to_others_is_not_used(tmp_path):
    setup = Setup(tmp_path)
    (tmp_path / "client.key").chmod(0o644)
    with pytest.raises(MultipartyError, match="chmod 600"):
        setup.client().infer([[0.0]])


def test_an_identity_replaces_none(tmp_path):
    make_identity(tmp_path / "one")
    with pytest.raises(MultipartyError, match="exists already"):
        make_identity(tmp_path / "one")
