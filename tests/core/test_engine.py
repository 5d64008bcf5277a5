from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from g2d.core.engine import LocalEngine, SerialEngine
from g2d.errors import PopulationError


def square(x: int) -> int:
    return x * x


def threads_after_training(_: int) -> tuple[int, bool]:
    """A worker's threads, and whether a step of training has imported torch's compiler."""
    import torch

    from g2d.training.loop import adam

    model = torch.nn.Linear(2, 2)
    optimizer = adam(model, 0.1)
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return torch.get_num_threads(), "torch._dynamo" in sys.modules


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("make", [SerialEngine, lambda: LocalEngine(2)])
def test_results_carry_their_position(make):
    with make() as engine:
        assert sorted(engine.run(square, [3, 1, 2])) == [(0, 9), (1, 1), (2, 4)]


def test_workers_use_one_thread_and_import_no_compiler():
    with LocalEngine(1) as engine:
        assert list(engine.run(threads_after_training, [0])) == [(0, (1, False))]


def test_a_killed_worker_is_a_clear_error():
    with (
        LocalEngine(1) as engine,
        pytest.raises(PopulationError, match="worker process was killed by SIGKILL"),
    ):
        list(engine.run(die, [0]))


ORPHANS = """
import time
from g2d.core.engine import LocalEngine
if __name__ == "__main__":
    engine = LocalEngine(2)
    print(sorted(engine.run(abs, [-1, -2])), flush=True)
    time.sleep(60)
"""


def test_workers_end_when_the_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    parent.stdout.readline()
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=90)
    assert alive == []


def test_close_is_quick_while_jobs_run():
    engine = LocalEngine(1)
    results = engine.run(time.sleep, [0, 290])
    next(results)
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < 120


FAULTS = """
import resource, torch
from g2d.core.engine import configure_threads
from g2d.tasks.networks import mnist_robust_cnn
torch.set_num_threads(1)
model, x = mnist_robust_cnn(), torch.rand(100, 1, 28, 28, requires_grad=True)

def faults():
    began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.autograd.grad(model(x).logsumexp(1).sum(), x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began

def settled():
    faults()
    return faults()

print(settled(), configure_threads() or settled())
"""


@pytest.mark.slow
def test_a_calm_process_keeps_its_memory():
    """Blocks of a layer's size come back without page faults."""
    command = [sys.executable, "-c", FAULTS]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(int, ran.stdout.split())
    assert after < 0.2 * before
