"""`g2d serve --encrypted` as a process: what it refuses to start with, and how it ends."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

pytest.importorskip("tenseal", reason="homomorphic inference needs TenSEAL: pip install 'g2d[he]'")

from g2d.core.exchange import ExchangeError, ask
from g2d.service.client.encrypted import EncryptedClient
from g2d.settings import Settings
from g2d.tasks.networks import digits_he_cnn
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import pack
from places import ROOT
from service_process import Process, serve
from stand_ins import wait_for

X = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)


def network(number: int) -> torch.nn.Module:
    torch.manual_seed(number)
    return digits_he_cnn().eval().requires_grad_(False)


def expected(number: int) -> np.ndarray:
    return network(number)(torch.from_numpy(X)).numpy()


def accept(vault: Vault, number: int) -> None:
    weights = pack(network(number).state_dict())
    assert vault.accept({"weights": weights}, {}, activate=True).number == number


@pytest.fixture
def vault(tmp_path) -> Path:
    settings = Settings().override(task__name="digits-he")
    with Vault.create(tmp_path / "vault", settings.to_toml()) as made:
        accept(made, 1)
    return tmp_path / "vault"


def test_it_answers_follows_the_ledger_and_drains(vault, tmp_path):
    patient = ("--drain", "10m", "--timeout", "10m", "--encrypted-timeout", "10m")
    with (
        Vault.open(vault, write=True) as opened,  # ours from the start: its worker would hold it
        Process(vault, "--encrypted-only", *patient, log=tmp_path / "log") as served,
    ):
        wait_for(lambda: "ciphertexts are answered at" in served.text())
        client = EncryptedClient(served.address, keys=tmp_path / "my.keys")
        client.make_keys()
        client.upload()
        assert np.abs(client.infer(X).values - expected(1)).max() < 1e-3
        plain = {"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}
        status, told = served.ask("/v2/models/g2d/infer", {"inputs": [plain]})
        assert (status, "only ciphertexts" in told["error"]) == (403, True)
        accept(opened, 2)
        wait_for(lambda: served.rotation()["generation"] == 2)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(client.infer(X)))
        evaluator = evaluator_of(served)
        evaluator.suspend()  # so that the service ends while one is being answered
        asking.start()
        wait_for(lambda: "g2d_encrypted_waiting 1.0" in metrics(served))
        served.process.send_signal(signal.SIGTERM)
        wait_for(lambda: any(line["event"] == "stop" for line in served.lines()) or refuses(served))
        evaluator.resume()
        asking.join(400)
        assert served.process.wait(400) == 0, served.text()
        (answer,) = answers
        assert answer.number == 2
        assert np.abs(answer.values - expected(2)).max() < 1e-3


def evaluator_of(served: Process) -> psutil.Process:
    children = psutil.Process(served.process.pid).children()
    (found,) = [c for c in children if "g2d.service.encrypted.evaluator" in c.cmdline()]
    return found


def refuses(served: Process) -> bool:
    """Whether it takes no more connections."""
    try:
        metrics(served)
    except ExchangeError:
        return True
    return False


def metrics(served: Process) -> str:
    return ask("GET", f"{served.address}/metrics").body.decode()


def test_a_killed_service_leaves_no_evaluator_and_no_keys(vault, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with Process(vault, "--encrypted", log=tmp_path / "log") as served:
        client = EncryptedClient(served.address, keys=tmp_path / "my.keys")
        client.make_keys()
        client.upload()
        (spool,) = (tmp_path / "tmp").glob("g2d-evaluation-keys-*")
        assert spool.stat().st_mode & 0o777 == 0o700
        assert list(spool.iterdir())
        children = psutil.Process(served.process.pid).children(recursive=True)
        served.process.kill()
        wait_for(lambda: not spool.exists())
        wait_for(lambda: not any(child.is_running() for child in children))


def test_a_network_that_cannot_be_computed_is_refused_with_the_layer(tiny_vault):
    done = serve(str(tiny_vault), "--encrypted", "--port", "0")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "ReLU" in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--policy", "vote"), "policy is 'vote'"),
        (("--answers", "label"), "answers is 'label'"),
    ],
)
def test_what_does_not_go_with_it_is_refused(vault, flags, says):
    done = serve(str(vault), "--encrypted", *flags, "--port", "0")
    assert done.returncode == 1
    assert says in done.stderr.strip().splitlines()[-1]


def test_help_of_all_commands_knows_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; sys.argv = ['g2d', 'client', 'encrypted', '--help']\n"
        "from g2d.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'numpy', 'tenseal'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
    )  # fmt: skip
    assert done.stderr.strip() == "set()"
