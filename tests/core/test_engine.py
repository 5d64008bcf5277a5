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


def threads(_: int) -> int:
    import torch

    return torch.get_num_threads()


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("make", [SerialEngine, lambda: LocalEngine(2)])
def test_results_carry_their_position(make):
    with make() as engine:
        assert sorted(engine.run(square, [3, 1, 2])) == [(0, 9), (1, 1), (2, 4)]


def test_workers_use_one_thread():
    with LocalEngine(1) as engine:
        assert list(engine.run(threads, [0])) == [(0, 1)]


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


def page_faults(first: str) -> int:
    """Page faults of twenty gradients of a small network, after five."""
    program = (
        f"import resource, torch; from g2d.core.engine import configure_threads; {first}\n"
        "from g2d.tasks.networks import mnist_robust_cnn\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "model, x = mnist_robust_cnn(), torch.rand(250, 1, 28, 28, requires_grad=True)\n"
        "def step(): torch.autograd.grad(model(x).logsumexp(1).sum(), x)\n"
        "for _ in range(5): step()\n"
        "before = faults()\n"
        "for _ in range(20): step()\n"
        "print(faults() - before)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )  # fmt: skip
    return int(ran.stdout)


@pytest.mark.slow
def test_a_calm_process_keeps_its_memory():
    """Blocks of a layer's size come back without page faults."""
    assert page_faults("configure_threads()") < 0.2 * page_faults("torch.set_num_threads(1)")
