"""A CA, an issuer and their files, made once for all tests of who may ask."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("jwt", reason="the extra auth is not installed")

from authority import AUDIENCE, ISSUER, Authority, Issuer, Pair
from g2d.service.http.options import Options


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("foreign"), "foreign")


@pytest.fixture(scope="session")
def server_pair(authority: Authority) -> Pair:
    return authority.server()


@pytest.fixture(scope="session")
def issuer() -> Issuer:
    return Issuer("one", "two")


@pytest.fixture
def jwks(issuer: Issuer, tmp_path: Path) -> str:
    return issuer.write(tmp_path / "jwks.json")


@pytest.fixture
def by_token(jwks: str) -> Options:
    """Options of a service whose clients come with tokens."""
    return Options(jwks=jwks, jwt_audience=AUDIENCE, jwt_issuer=ISSUER)
