"""Addresses, their methods, Hosts and prefixes; what Triton's clients ask for."""

from __future__ import annotations

import pytest

from g2d.service.http.options import Options
from stand_ins import ADMIN, INFER, Harness, body, run

READ = ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/g2d", "/v2/models/g2d/ready",
        "/v2/models/g2d/versions/1", "/v2/models/g2d/versions/1/ready", "/v2/models/g2d/config",
        "/v2/models/g2d/versions/1/config", "/v2/models/g2d/stats", "/v2/models/stats",
        "/v2/models/g2d/versions/1/stats")  # fmt: skip
UNKNOWN = ("/v2/nothing", "/v2/health", "/v2/models", "/v2/models/other", "/v2/models/g2d/nothing",
           "/v2/models/other/infer", "/v2/models/g2d/infer/more", "/v2x", "/nothing")  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD")


def test_unknown_addresses_are_404_and_wrong_methods_405_with_what_is_allowed():
    async def work(client):
        for path in UNKNOWN:
            for method in METHODS:
                assert (await client.request(method, path)).status_code == 404, (method, path)
        for path in (*READ, INFER, "/v2/repository/index"):
            allowed = {"GET", "HEAD"} if path in READ else {"POST"}
            for method in set(METHODS) - allowed:
                refused = await client.request(method, path)
                assert refused.status_code == 405, (method, path)
                assert set(refused.headers["allow"].split(", ")) == allowed
        for version in ("2", "x/ready", "0/config", "9/stats"):
            refused = await client.get(f"/v2/models/g2d/versions/{version}")
            assert (refused.status_code, "not live" in refused.text) == (404, True)
        refused = await client.post("/v2/models/g2d/versions/0/infer", json=body())
        assert refused.status_code == 404

    run(Harness(), work)


def test_head_is_get_without_a_body():
    async def work(client):
        for path in (*READ, "/metrics", "/status", "/redteam", "/openapi.json", "/", "/docs"):
            got, head = await client.get(path), await client.head(path)
            assert (head.status_code, head.content) == (200, b""), path
            assert head.headers["content-type"] == got.headers["content-type"]
        assert (await client.head("/events")).status_code == 405
        assert (await client.head("/admin/rotate")).status_code == 401
        assert (await client.head("/admin/rotate", headers=ADMIN)).status_code == 405

    run(Harness(), work)


@pytest.mark.parametrize("options", [Options(), Options(host="0.0.0.0", allow_host=("a.example",))])
def test_probes_by_address_are_answered(options):
    """A kubelet and Prometheus ask by the pod's address; no other site's page can be there."""
    harness = Harness(options, hosts=())
    seen = {}

    async def ask(path: str, host: str, server: str) -> int:
        async def receive():
            return {"type": "http.request", "body": b""}

        async def send(message):
            seen.update(message)

        scope = {"type": "http", "method": "GET", "path": path, "query_string": b"",
                 "headers": [(b"host", host.encode())], "client": ("10.1.2.9", 1),
                 "server": (server, 8000), "root_path": "", "scheme": "http",
                 "http_version": "1.1", "raw_path": path.encode()}  # fmt: skip
        await harness.service(scope, receive, send)
        return seen["status"]

    async def work(_):
        for path in ("/v2/health/live", "/v2/health/ready"):
            for host in ("10.1.2.3:8000", "attacker.example", ""):
                assert await ask(path, host, "10.1.2.3") == 200
        for path in ("/metrics", "/status", "/v2"):
            assert await ask(path, "10.1.2.3:8000", "10.1.2.3") == 200
            assert await ask(path, "[fe80::1]:8000", "fe80::1%eth0") == 200
            assert await ask(path, "attacker.example", "10.1.2.3") == 421
            assert await ask(path, "10.1.2.4:8000", "10.1.2.3") == 421
            assert await ask(path, "10.1.2.3", "localhost") == 421

    run(harness, work)


def test_a_prefix_is_taken_off_where_a_proxy_leaves_it():
    harness = Harness(Options(root_path="/models/one"))

    async def work(client):
        for prefix in ("", "/models/one"):
            assert (await client.get(f"{prefix}/v2/health/ready")).status_code == 200
            assert (await client.post(prefix + INFER, json=body())).status_code == 200
            page = await client.get(f"{prefix}/")
            assert "Live generation" in page.text
            assert (await client.get(f"{prefix}/status")).json()["model"] == "g2d"
            assert (await client.post(f"{prefix}/admin/pause")).status_code == 401
            assert (await client.post(f"{prefix}/admin/pause", headers=ADMIN)).status_code == 200
            schema = (await client.get(f"{prefix}/openapi.json")).json()
            assert schema["servers"] == [{"url": "/models/one"}]
        bare = await client.get("/models/one")
        assert (bare.status_code, bare.headers["location"]) == (308, "/models/one/")
        for other in ("/models/on/v2", "/models/one2/v2", "/models/one/models/one/v2"):
            assert (await client.get(other)).status_code == 404

    run(harness, work)
    assert 'href="/' not in page_of()


def page_of() -> str:
    """The pages' text."""
    from g2d.service.http import web_page

    return "".join(web_page.assemble(*each)[0] for each in web_page._PAGES.values())


def test_headers_that_may_come_once_do():
    async def work(client):
        for name in ("host", "content-encoding", "authorization", "content-length",
                     "inference-header-content-length", "content-type", "origin"):  # fmt: skip
            twice = [(name, "identity"), (name.title(), "identity")]
            for path in (INFER, "/admin/pause", "/v2/health/live"):
                request = client.build_request("POST", path, content=b"{}")
                for key in (name, "content-length"):
                    request.headers.pop(key, None)
                request.headers = type(request.headers)([*request.headers.multi_items(), *twice])
                refused = await client.send(request)
                assert refused.status_code == 400, (name, path)
                assert name in refused.json()["error"]

    run(Harness(), work)


def test_what_perf_analyzer_asks_for(served_socket):
    """Its sequence, through Triton's public client over a socket."""
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    import numpy as np

    client = triton.InferenceServerClient(served_socket)
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert {"statistics", "model_configuration"} <= {
            *client.get_server_metadata()["extensions"]
        }
        assert client.is_model_ready("g2d")
        assert client.is_model_ready("g2d", "1")
        assert not client.is_model_ready("g2d", "2")
        about = client.get_model_metadata("g2d", "1")
        config = client.get_model_config("g2d", "1")
        assert config == client.get_model_config("g2d")
        assert config["max_batch_size"] == 256
        for side, key in (("input", "inputs"), ("output", "outputs")):
            (one,), (other,) = config[side], about[key]
            assert one["name"] == other["name"]
            assert one["data_type"] == f"TYPE_{other['datatype']}"
            assert [-1, *one["dims"]] == other["shape"]
        (model,) = client.get_model_repository_index()
        assert model == {"name": "g2d", "version": "1", "state": "READY", "reason": ""}
        before = client.get_inference_statistics("g2d", "1")["model_stats"][0]
        tensor = triton.InferInput("input", [2, 1, 2, 2], "FP32")
        tensor.set_data_from_numpy(np.ones((2, 1, 2, 2), np.float32))
        assert client.infer("g2d", [tensor]).as_numpy("logits").shape == (2, 3)
        after = client.get_inference_statistics()["model_stats"][0]
        assert (after["name"], after["version"]) == ("g2d", "1")
        for key, more in (("inference_count", 2), ("execution_count", 1)):
            assert after[key] - before[key] == more
        good = after["inference_stats"]["success"]
        assert (good["count"], good["ns"] > 0) == (1, True)
        with pytest.raises(triton.InferenceServerException, match="not live"):
            client.get_model_config("g2d", "2")
    finally:
        client.close()
