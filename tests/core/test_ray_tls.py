"""What a machine is told that would join a Ray cluster and has not what its nodes have: gRPC's own
server, as strict as Ray's, in the place of a cluster's head."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.cluster.certificates import Authority
from g2d.core import ray_tls
from g2d.errors import G2DError

grpc = pytest.importorskip("grpc")
pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def node(authority: Authority, tmp_path: Path) -> dict[str, str]:
    return authority.issue(tmp_path / "node")


@pytest.fixture
def foreign(tmp_path: Path) -> dict[str, str]:
    return Authority("another").issue(tmp_path / "foreign")


@pytest.fixture
def head(request: pytest.FixtureRequest, node: dict[str, str]) -> Iterator[int]:
    """The port of a head on 127.0.0.1 and 127.0.0.2, with TLS unless a test wants none."""
    server = grpc.server(ThreadPoolExecutor(1))
    if getattr(request, "param", "tls") == "plain":
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        key, cert, ca = (Path(node[f"RAY_TLS_{name}"]).read_bytes()
                         for name in ("SERVER_KEY", "SERVER_CERT", "CA_CERT"))  # fmt: skip
        strict = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", strict)
        server.add_secure_port(f"127.0.0.2:{port}", strict)
    server.start()
    yield port
    server.stop(0).wait()


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch):
    for name in ("USE_TLS", "TLS_SERVER_CERT", "TLS_SERVER_KEY", "TLS_CA_CERT"):
        monkeypatch.delenv(f"RAY_{name}", raising=False)

    def put(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def test_a_node_of_the_cluster_is_welcome(head, node, env):
    env(node)
    assert ray_tls.greet("127.0.0.1", head) is None  # it would raise


@pytest.mark.parametrize("head", ["plain"], indirect=True)
def test_without_tls_on_either_side_nothing_is_said(head, env):
    assert ray_tls.greet("127.0.0.1", head) is None


def test_without_a_certificate(head, env):
    with pytest.raises(G2DError, match="does not talk without TLS: set RAY_USE_TLS=1 and RAY_TLS_"):
        ray_tls.greet("127.0.0.1", head)


def test_with_a_foreign_certificate(head, node, foreign, env):
    env(foreign | {"RAY_TLS_CA_CERT": node["RAY_TLS_CA_CERT"]})
    with pytest.raises(G2DError, match=r"refuses the certificate in RAY_TLS_SERVER_CERT=.*foreign"):
        ray_tls.greet("127.0.0.1", head)


def test_of_a_foreign_cluster(head, foreign, env):
    env(foreign)
    with pytest.raises(G2DError, match=r"a certificate that is not trusted here .*RAY_TLS_CA_CERT"):
        ray_tls.greet("127.0.0.1", head)


def test_of_a_head_whose_certificate_names_another_address(head, node, env):
    env(node)
    with pytest.raises(G2DError, match=r"not trusted here .* it must name 127\.0\.0\.2"):
        ray_tls.greet("127.0.0.2", head)


@pytest.mark.parametrize("head", ["plain"], indirect=True)
def test_of_a_cluster_without_tls(head, node, env):
    env(node)
    with pytest.raises(G2DError, match="speaks no TLS, and RAY_USE_TLS is set here"):
        ray_tls.greet("127.0.0.1", head)


def test_files_are_checked_before_ray_is_started(node, env, tmp_path):
    ray_tls.check_files()  # nobody wants TLS
    env({"RAY_USE_TLS": "1"})
    with pytest.raises(G2DError, match="RAY_TLS_SERVER_CERT and RAY_TLS_SERVER_KEY and RAY_TLS_CA"):
        ray_tls.check_files()
    env(node)
    ray_tls.check_files()
    nothing = tmp_path / "none.pem"
    for name, word in (("CA_CERT", "RAY_TLS_CA_CERT"), ("SERVER_CERT", "RAY_TLS_SERVER_CERT")):
        env({f"RAY_TLS_{name}": str(nothing)})
        with pytest.raises(G2DError, match=f"{word}=.*none.pem.* cannot be used"):
            ray_tls.check_files()
        env(node)
    Path(node["RAY_TLS_SERVER_KEY"]).chmod(0o644)
    with pytest.raises(
        G2DError, match=r"is open to others: run `chmod 600 .*server_key.pem` first"
    ):
        ray_tls.check_files()


def test_a_wrong_token_is_said_before_ray_asks_for_twenty_seconds(monkeypatch, env):
    pytest.importorskip("ray")
    from g2d.core.ray_cluster import joined

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)

    def refuse(_: bytes, context) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")

    handlers = {"CheckAlive": grpc.unary_unary_rpc_method_handler(refuse)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(G2DError, match="asks for another token"), joined(f"127.0.0.1:{port}"):
            pass
    finally:
        server.stop(0).wait()
