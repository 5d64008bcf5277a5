"""Answers wait while a load is probed, one model's calls do not mix, nothing waits for ever."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from g2d.protect.snapshots import ArrayInference, Inference, build_snapshot
from g2d.protect.turns import Turns

SCALE = torch.ones(3)
"""Of this module: every network that is built reads it."""


class Shared(nn.Module):
    """Reads a tensor of its module, and registers a view of it as a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("scale", SCALE[:])
        self.met = None

    def forward(self, x):
        if self.met is not None and bool(SCALE.isnan().any()):
            self.met()
        return self.layer(x) * SCALE


def test_no_answer_meets_what_the_probe_of_another_load_writes():
    x, answers, threads = torch.rand(2, 4), [], []
    torch.manual_seed(0)
    live = Shared()
    first = build_snapshot(1, live, live.state_dict(), probe=x)
    right = first.predict(x)
    assert "1 of 3 tensors moved" not in first.layout
    second = Shared()

    def ask():
        threads.append(threading.Thread(target=lambda: answers.append(first.predict(x))))
        threads[-1].start()
        threads[-1].join(0.2)  # without turns it is done by now, with NaN

    second.met = ask
    build_snapshot(2, second, second.state_dict(), probe=x)
    for thread in threads:
        thread.join()
    assert threads, "the probe did write NaN where both read"
    assert all(torch.equal(answer, right) for answer in answers)


class Keeping(nn.Module):
    """Keeps what it was asked on itself, and answers that after a while."""

    def __init__(self, meet):
        super().__init__()
        self.meet = meet

    def forward(self, x):
        self.kept = x
        self.meet.wait(0.05)
        return self.kept


@pytest.mark.parametrize("kind", [Inference, ArrayInference])
def test_two_threads_do_not_mix_their_answers(kind):
    predict = kind(Keeping(threading.Event()))
    asked = [torch.full((1, 2), float(i)) for i in range(4)]
    wrong = []

    def ask(x):
        given = x if kind is Inference else x.numpy()
        if (torch.as_tensor(predict(given)) != x).any():
            wrong.append(x)

    threads = [threading.Thread(target=ask, args=(x,)) for x in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_probe_is_alone_and_answers_of_its_own_thread_go_on():
    turns, order = Turns(), []
    begun, done = threading.Event(), threading.Event()

    def answer():
        with turns.answering():
            begun.set()
            done.wait()
            order.append("answer")

    thread = threading.Thread(target=answer)
    thread.start()
    begun.wait()
    probe = threading.Thread(target=lambda: _probe(turns, order))
    probe.start()
    done.set()
    for one in (thread, probe):
        one.join()
    assert order == ["answer", "probe", "within"]
    with turns.answering(), turns.answering(), turns.probing():
        order.append("nested")
    assert order[-1] == "nested"


def _probe(turns, order):
    with turns.probing():
        order.append("probe")
        with turns.answering():
            order.append("within")


def test_an_answer_that_hangs_does_not_stop_probes_for_ever():
    turns, begun, done = Turns(patience=0.05), threading.Event(), threading.Event()

    def hang():
        with turns.answering():
            begun.set()
            done.wait()

    thread = threading.Thread(target=hang)
    thread.start()
    begun.wait()
    with turns.probing():
        pass
    done.set()
    thread.join()
