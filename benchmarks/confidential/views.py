"""What parties' views tell, and what a party or a client that means harm gets: red-team rows.

Views are real: shares of weights as they lie on disk, shares of inputs as a client makes them,
shares of answers as parties send them. Who learns from them is a linear classifier (ridge
regression); that it can learn is shown on two parties' views together. Parties that mean harm are
processes (`malicious`), and so is whoever they deceive.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy import stats
from torch import nn

from benchmarks.confidential.answers import halves, through
from benchmarks.confidential.malicious import FLIP, NAME
from benchmarks.confidential.parties import Parties
from g2d import Task
from g2d.core.types import Array
from g2d.protect.multiparty.client import Client
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.rings import from_ring, join, split, to_ring
from g2d.redteam.rows import Row
from g2d.redteam.scoring import share

FAMILY = "parties"
NEAR = 1e-3
_MESSAGES = 6  # of numbers, that party 1 surely sends within a request
View = tuple[list[bytes], list[bytes]]
"""Shares of inputs and of answers, by rank."""


def seen(parties: Parties, x: Array, batch: int) -> tuple[View, Array]:
    """What each party gets of inputs and gives of answers, and the logits that these add up to."""
    protocol = parties.config.protocol
    given = [b""] * len(parties.config.ranks)
    answers = [b""] * len(given)
    with parties.client() as client:
        for at in range(0, len(x), batch):
            shares = split(to_ring(x[at : at + batch]), protocol)
            told = asked(client, len(x[at : at + batch]), shares)
            for rank, body in enumerate(told):
                given[rank] += shares[rank]
                answers[rank] += body
        classes = client.program.classes
    return (given, answers), from_ring(join(answers, protocol)).reshape(-1, classes)


def asked(client: Client, n: int, shares: Sequence[bytes], name: str = "") -> list[bytes]:
    """Shares of an answer to shares of somebody else's making; raises `MultipartyError`."""
    about = {
        "kind": "infer", "id": name or secrets.token_hex(16), "n": n,
        "digest": client.program.digest,
    }  # fmt: skip
    try:
        for line, body in zip(client.lines, shares, strict=True):
            line.send(about, body)
        most = 16 * n * client.program.classes
        return [line.receive(most)[1] for line in client.lines]
    except MultipartyError:
        client.close()
        raise


def guessed(view: Array, y: Array) -> float:
    """How many classes of the second half ridge regression on the first one names."""
    half = len(y) // 2
    real = (view - view[:half].mean(0)) / (view[:half].std(0) + 1e-9)
    targets = np.eye(int(y.max()) + 1)[y]
    kernel = real[:half] @ real[:half].T + 0.1 * len(real[0]) * np.eye(half)
    scores = real[half:] @ (real[:half].T @ np.linalg.solve(kernel, targets[:half]))
    return float((scores.argmax(1) == y[half:]).sum())


def curious(parties: Parties, x: Array, y: Array, batch: int) -> Iterator[Row]:
    """Parties that do what they should, and look."""
    protocol = parties.config.protocol
    (given, answers), _ = seen(parties, x, batch)
    n, half = len(x), len(x) // 2
    chance = float(np.bincount(y[: n // 2]).max() / half)
    for rank in parties.config.ranks:
        parts = [np.frombuffer(body, "<i8").reshape(n, -1) for body in (given[rank], answers[rank])]
        found = share(guessed(np.concatenate(parts, 1) / 2.0**63, y), n - half)
        bodies = (parties.shares(rank), given[rank], answers[rank])
        p = [_uniform(body) for body in bodies]
        yield Row(
            FAMILY, "party-view", "one party looks at all that it has of a request",
            f"party {rank} of {protocol}", "ridge regression on its shares", found,
            metric="classes guessed", chain=protocol, note=f"chance is {chance:.3f}",
            extra={"rank": rank, "chance": chance, "p_weights": p[0], "p_inputs": p[1],
                   "p_answers": p[2]},
        )  # fmt: skip
    both = from_ring(join(given, protocol)).reshape(n, -1)
    yield Row(
        FAMILY, "party-views-together", "parties put their shares together",
        f"{'any two' if protocol == 'aby3' else 'both'} of {protocol}",
        "the same, on their sums", share(guessed(both, y), n - half),
        metric="classes guessed", chain=protocol, harm=1.0,
        note="they have inputs, answers and weights in plain: nothing stops it",
        extra={"chance": chance},
    )  # fmt: skip


def _uniform(body: bytes) -> float:
    counts = np.bincount(np.frombuffer(body, np.uint8), minlength=256)
    return float(stats.chisquare(counts).pvalue)


def changed_answers(parties: Parties, x: Array, batch: int) -> Row:
    """A party adds to its share of each answer what makes it another class."""
    protocol = parties.config.protocol
    (_, answers), _ = seen(parties, x, batch)
    taken, size = 0, len(answers[0]) // len(x)
    for place in range(len(x)):
        own = [body[place * size : (place + 1) * size] for body in answers]
        before = from_ring(join(own, protocol))
        false = np.frombuffer(own[-1], "<u8").copy().reshape(len(before), -1)
        false[int(before.argmin()), -1] += np.uint64(1 << 40)
        own[-1] = false.tobytes()
        with contextlib.suppress(MultipartyError):
            taken += int(from_ring(join(own, protocol)).argmax() != before.argmax())
    return Row(
        FAMILY, "party-answer", "one party changes its share of an answer",
        f"a client of {protocol}", "adds to the logit of another class", share(taken, len(x)),
        metric="wrong answers that are taken", chain=protocol,
        note="two parties hold each part of an answer (ABY3), or one does (Cheetah)",
    )  # fmt: skip


def harmful(parties: Parties, x: Array, expected: Array, times: int) -> Iterator[Row]:
    """Party 1 is another one's making: it changes a message, or puts another's name on it."""
    protocol = parties.config.protocol
    for kind, threat in (
        (FLIP, "one party changes a number that it sends to another"),
        (NAME, "one party sends a message in another's name"),
    ):
        wrong = refused = 0
        order = parties.corrupt(1)
        for place in range(times):
            parties.until_open()
            with parties.client() as client:
                _ = client.program  # of our own making until now
                order.write_text(f"{kind} {1 + place % _MESSAGES}")
                try:
                    logits = client.infer(x[:1]).logits
                    wrong += int(np.abs(logits - expected[:1]).max() > NEAR)
                except MultipartyError:
                    refused += 1
            order.unlink(missing_ok=True)
        yield Row(
            FAMILY, f"party-{kind}", threat, f"a client of {protocol}",
            "one message of a request, later and later ones", share(wrong, times),
            metric="wrong answers that are taken", chain=protocol, scored=times,
            note="" if kind == NAME else "protocols are for parties that follow them",
            extra={"refused": refused},
        )  # fmt: skip


def false_clients(parties: Parties, x: Array, times: int) -> Iterator[Row]:
    """Clients of another making: what they get computed that they should not."""
    protocol = parties.config.protocol
    tried = ["party-range", "party-replay", *(["party-mixed"] if protocol == "aby3" else [])]
    words = {
        "party-range": ("a client shares numbers that are out of range", "one pixel, any integer"),
        "party-replay": ("a client sends a request twice", "the same name and shares"),
        "party-mixed": ("a client deals parties shares of different inputs", "one byte of a share"),
    }
    source = np.random.default_rng(0)
    for kind in tried:
        through = 0
        for place in range(times):
            ring, name = to_ring(x[:1]).copy(), secrets.token_hex(16)
            if kind == "party-range":
                ring.reshape(-1)[place % ring.size] = source.integers(1 << 20, 1 << 63)
            shares = [bytearray(body) for body in split(ring, protocol)]
            if kind == "party-mixed":
                shares[place % 3][8] ^= 1
            bodies = [bytes(body) for body in shares]
            with parties.client() as client, contextlib.suppress(MultipartyError):
                asked(client, 1, bodies, name)
                if kind == "party-replay":
                    asked(client, 1, bodies, name)
                through += 1
        yield Row(
            FAMILY, kind, words[kind][0], f"parties of {protocol}", words[kind][1],
            share(through, times), metric="requests computed", chain=protocol, scored=times,
        )  # fmt: skip


def through_answers(
    parties: Parties, task: Task, model: nn.Module, fresh: nn.Module, n: int, batch: int, steps: int
) -> Iterator[Row]:
    """Extraction and membership by the parties' logits, and by the plain network's."""
    both = halves(task, n)
    x = torch.cat([part.x for part in both])
    _, logits = seen(parties, x.numpy(), batch)
    with torch.no_grad():
        plain = model(x)
    told = {"parties": (parties.config.protocol, torch.from_numpy(logits).float()),
            "plain": ("plain", plain)}  # fmt: skip
    yield from through("party", FAMILY, told, both, fresh, steps)
