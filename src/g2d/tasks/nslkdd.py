"""NSL-KDD (Tavallaee et al. 2009): flows, what their attacker may change, what is measured.

A flow is one row in its own units (bytes, seconds, counts, shares), its three categories one-hot.
The network scales; nothing is fitted for that, so nothing of another split can leak into it.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import os
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from g2d.core.platforms import open_plain
from g2d.errors import DataError
from g2d.tasks.budget import Budget
from g2d.tasks.splits import Split, Splits

FILES = ("KDDTrain+_20Percent.txt.gz", "KDDTest+.txt.gz")
COLUMNS = 43  # 41 features, the label, how hard the flow was to learn for those who made the set
HELD_OUT = 0.2  # of the training flows: what tells drift from over-fitting
FRACTIONS = (0.6, 0.2, 0.2)
FALSE_ALARMS = 0.01

PROTOCOLS = ("icmp", "tcp", "udp")
_SERVICES = """
IRC X11 Z39_50 auth bgp courier csnet_ns ctf daytime discard domain domain_u echo eco_i ecr_i
efs exec finger ftp ftp_data gopher hostnames http http_443 http_8001 imap4 iso_tsap klogin
kshell ldap link login mtp name netbios_dgm netbios_ns netbios_ssn netstat nnsp nntp ntp_u other
pm_dump pop_2 pop_3 printer private red_i remote_job rje shell smtp sql_net ssh sunrpc supdup
systat telnet tim_i time urh_i urp_i uucp uucp_path vmnet whois
"""
SERVICES = tuple(_SERVICES.split())
FLAGS = ("OTH", "REJ", "RSTO", "RSTOS0", "RSTR", "S0", "S1", "S2", "S3", "SF", "SH")
CATEGORIES = (PROTOCOLS, SERVICES, FLAGS)
"""The categories of the training file; each group has one more column, for any that it lacks."""
_MOST = 1 << 28  # bytes of a file unpacked; the larger one has 19 MB


@dataclass(frozen=True)
class Feature:
    """A number of a flow: its range, and how an attacker may change it.

    Attributes:
        most: largest value by definition (a counter of 100 connections ends at 255, a window of two
            seconds at 511); inf: none. eps: 0: out of reach. way: "grow" or "" (both).
    """

    most: float
    eps: float = 0.0
    way: str = ""
    whole: bool = True


def _share(eps: float) -> Feature:
    return Feature(1.0, eps, whole=False)


_INF = float("inf")

FEATURES: Mapping[str, Feature] = {
    # His own side of the connection: he can stay longer and pad, never take back what the attack
    # itself needs. He can ask for more than that, and is answered with more bytes.
    "duration": Feature(_INF, 60, "grow"),
    "src_bytes": Feature(_INF, 1000, "grow"),
    "dst_bytes": Feature(_INF, 1000, "grow"),
    "land": Feature(1),
    "wrong_fragment": Feature(3),
    "urgent": Feature(_INF, 1, "grow"),
    # What the host logs of the session. He may touch more files and fail more logins, and hides no
    # trace of a success.
    "hot": Feature(_INF, 1, "grow"),
    "num_failed_logins": Feature(_INF, 1, "grow"),
    "logged_in": Feature(1),
    "num_compromised": Feature(_INF),
    "root_shell": Feature(1),
    "su_attempted": Feature(2),
    "num_root": Feature(_INF),
    "num_file_creations": Feature(_INF),
    "num_shells": Feature(_INF),
    "num_access_files": Feature(_INF),
    "num_outbound_cmds": Feature(_INF),
    "is_host_login": Feature(1),
    "is_guest_login": Feature(1),
    # The last two seconds: he opens a connection of his choice for every four of the attack, which
    # moves shares by a fifth either way, and counts up.
    "count": Feature(511, 50, "grow"),
    "srv_count": Feature(511, 50, "grow"),
    "serror_rate": _share(0.2),
    "srv_serror_rate": _share(0.2),
    "rerror_rate": _share(0.2),
    "srv_rerror_rate": _share(0.2),
    "same_srv_rate": _share(0.2),
    "diff_srv_rate": _share(0.2),
    "srv_diff_host_rate": _share(0.2),
    # The host's last hundred connections, most of them others': he adds ten.
    "dst_host_count": Feature(255, 10, "grow"),
    "dst_host_srv_count": Feature(255, 10, "grow"),
    "dst_host_same_srv_rate": _share(0.1),
    "dst_host_diff_srv_rate": _share(0.1),
    "dst_host_same_src_port_rate": _share(0.1),
    "dst_host_srv_diff_host_rate": _share(0.1),
    "dst_host_serror_rate": _share(0.1),
    "dst_host_srv_serror_rate": _share(0.1),
    "dst_host_rerror_rate": _share(0.1),
    "dst_host_srv_rerror_rate": _share(0.1),
}

# Which categories he may exchange. The protocol carries the attack. The service is the victim's,
# but for ports without a known one. How a connection that stands ends is his: closed, reset by
# him, or left open; a handshake that the attack leaves out (S0, REJ) stays out.
_SWAPS: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"other", "private"}),
    frozenset({"SF", "RSTO", "S1"}),
)

WIDTH = len(FEATURES) + sum(len(names) + 1 for names in CATEGORIES)


def budget() -> Budget:
    """What the attacker of a flow may change, in bytes, seconds, counts and shares.

    It holds each feature by itself: that a share and a count of the same window belong together is
    not in it, so an attacker here can do a little more than a real one.
    """
    numbers = list(FEATURES.values())
    eps, groups = [f.eps for f in numbers], []
    for names, swaps in zip(CATEGORIES, _SWAPS, strict=True):
        groups.append(tuple(range(len(eps), len(eps) + len(names) + 1)))
        eps += [float(name in swaps) for name in (*names, "")]
    rest = WIDTH - len(numbers)
    return Budget(
        eps=eps,
        grow=[i for i, f in enumerate(numbers) if f.way == "grow"],
        integer=[i for i, f in enumerate(numbers) if f.whole],
        one_hot=groups,
        least=[0.0] * WIDTH,
        most=[f.most for f in numbers] + [1.0] * rest,
    )


class FlowScale(nn.Module):
    """log(1 + x) / log(1 + most): every number of a flow to [0, 1], without anything fitted.

    What has no largest value is divided by log(1 + 10^6). Categories stay.
    """

    def __init__(self) -> None:
        super().__init__()
        most = torch.tensor([min(f.most, 1e6) for f in FEATURES.values()])
        rest = torch.ones(WIDTH - len(most))
        self.register_buffer("size", torch.cat([most, rest]).log1p(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map flows (N, WIDTH) to the same shape."""
        assert isinstance(self.size, Tensor)
        return x.clamp_min(0).log1p() / self.size


def nslkdd_mlp() -> nn.Module:
    """Build an MLP for flows (N, WIDTH), 2 classes: 0 normal, 1 attack."""
    return nn.Sequential(
        FlowScale(),
        nn.Linear(WIDTH, 32),
        nn.ReLU(),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, 2),
    )


# --- data ---


def load_nslkdd(folder: Path | str, seed: int = 0) -> Splits:
    """Read the flows: x (N, WIDTH) float32 in their own units, y 0 normal, 1 attack.

    Of the training file four fifths become train, guide and gate; the rest is `held_out`. The test
    split is the official test file, which holds attacks that the training file does not.

    Raises:
        DataError: a file is missing, truncated or not what its name says.
    """
    x, y = _read(folder, FILES[0])
    order = _order(len(y), seed)[round(HELD_OUT * len(y)) :]
    cuts = [0, *(round(sum(FRACTIONS[: i + 1]) * len(order)) for i in range(3))]
    parts = [order[a:b] for a, b in itertools.pairwise(cuts)]
    if min(map(len, parts)) < 2:
        raise DataError(f"{folder}/{FILES[0]}: {len(y)} flows are too few; expected 25,192")
    train, guide, gate = (Split(x[part], y[part]) for part in parts)
    return Splits(train, guide, gate, Split(*_read(folder, FILES[1])))


def held_out(folder: Path | str, seed: int = 0) -> Split:
    """The training flows that no split of `load_nslkdd` of that seed holds.

    Raises:
        DataError: as `load_nslkdd`.
    """
    x, y = _read(folder, FILES[0])
    part = _order(len(y), seed)[: round(HELD_OUT * len(y))]
    return Split(x[part], y[part])


def _order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _read(folder: Path | str, name: str) -> tuple[Tensor, Tensor]:
    """Flows and labels of one file."""
    path = Path(folder) / name
    if not str(folder) or not path.is_file():
        raise DataError(
            f"{path} is not there; expected NSL-KDD as {' and '.join(FILES)}. Point --data at the "
            "folder that holds them"
        )
    try:
        with os.fdopen(open_plain(path, follow=True), "rb") as raw, gzip.open(raw) as packed:
            text = packed.read(_MOST + 1).decode("ascii")
        if len(text) > _MOST:  # a few bytes of a .gz unpack to any number
            raise DataError(f"{path} holds more than {_MOST} bytes; fetch the file again")
        rows = list(csv.reader(text.splitlines()))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}; fetch the file again") from error
    if not rows:
        raise DataError(f"{path} is empty; expected flows of {COLUMNS} columns")
    numbers, labels = array("d"), []  # flat: a tensor of nested lists takes seconds
    for place, row in enumerate(rows, 1):
        if len(row) != COLUMNS:
            raise DataError(
                f"{path}, line {place}: {len(row)} columns, expected {COLUMNS}: 41 features, the "
                "label and its difficulty, without a header"
            )
        try:
            numbers.extend([float(row[0]), *map(float, row[4:41])])
        except ValueError as error:
            raise DataError(f"{path}, line {place}: {error}; expected numbers") from error
        labels.append(int(row[41] != "normal"))
    table = torch.frombuffer(numbers, dtype=torch.float64).reshape(len(rows), len(FEATURES))
    if not bool(torch.isfinite(table).all()) or bool((table < 0).any()):
        raise DataError(f"{path} holds negative or infinite numbers; fetch the file again")
    parts = [table.float()]
    for column, names in enumerate(CATEGORIES, 1):
        known = {name: i for i, name in enumerate(names)}
        place_of = torch.tensor([known.get(row[column], len(names)) for row in rows])
        parts.append(nn.functional.one_hot(place_of, len(names) + 1).float())
    return torch.cat(parts, 1), torch.tensor(labels)


# --- what is measured beside accuracy ---


def threshold(logits: Tensor, y: Tensor, false_alarms: float = FALSE_ALARMS) -> float:
    """The lowest score z_1 - z_0 above which at most that share of normal flows lies.

    Raises:
        DataError: there is no normal flow.
    """
    normal = _score(logits)[y == 0].sort(descending=True).values
    if not len(normal):
        raise DataError("a threshold needs normal flows (label 0), and there are none")
    return float(normal[min(int(false_alarms * len(normal)), len(normal) - 1)])


def alarms(logits: Tensor, y: Tensor, above: float) -> tuple[float, float]:
    """Share of attacks, and of normal flows, whose score lies above a threshold."""
    flagged = (_score(logits) > above).double()
    return float(flagged[y == 1].mean()), float(flagged[y == 0].mean())


def detection_rate(logits: Tensor, y: Tensor) -> float:
    """Share of attacks that are found at a false-positive rate of 1 % on the same flows."""
    return alarms(logits, y, threshold(logits, y))[0]


def _score(logits: Tensor) -> Tensor:
    return (logits[:, 1] - logits[:, 0]).double()
