"""A host is asked, released to and opens, and all that is killed: is anything lost?

    python -m benchmarks.sealing.attest_kills            # 100 kills, some minutes; swtpm
    python -m benchmarks.sealing.attest_kills --kills 5

A child process asks a host for a quote, releases a generation to it and opens that with its TPM; it
is killed by SIGKILL just before one of its calls into C, evenly spread over all of them. Then the
TPM is started anew, as after a power cut, and the same has to work once more, without an enrolment
and without a file that was restored; and the vault has to be sound.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common.command import carry_out, parser
from benchmarks.common.results import record
from benchmarks.sealing.software_tpm import running
from g2d.cli import attest
from g2d.protect.attestation import enrolment
from g2d.protect.attestation import host as asked
from g2d.protect.sealing import make_custodian
from g2d.protect.tpm import counter, documents
from g2d.protect.tpm.device import open_device
from g2d.vault.sealing import changing
from g2d.vault.vault import Vault
from g2d.vault.verify import verify

GENERATIONS = 2


def content(number: int) -> bytes:
    """What stands for the weights of a generation: they are sealed and opened, never loaded."""
    return b"weights of %d " % number * 50


class Sides:
    """A vault with two generations, and a host that is enrolled."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.vault, self.host = folder, folder / "vault", folder / "edge.host"
        self.copy, self.key = folder / "copy", folder / "approvals.key"
        os.environ["G2D_STATE"] = str(folder / "state")
        url = f"file:{folder / 'custodian.key'}"
        with Vault.create(self.vault, '[task]\nname = "none"\n') as made:
            for number in range(1, GENERATIONS + 1):
                made.accept({"weights": content(number)}, {}, activate=True)
            changing.seal(made, make_custodian(url)[0], url)
        with self.tpm() as address:
            with open_device(address) as device:
                request = asked.request(device, counter.DEFAULT_INDEX)
            terms = enrolment.Terms((14,), every=1)
            challenge, pending = enrolment.begin(request, terms, (), True, time.time())
            with open_device(address) as device:
                answer = asked.answer(device, challenge)
        documents.store(self.host, enrolment.finish(pending, answer, time.time()))

    def tpm(self) -> contextlib.AbstractContextManager[str]:
        """The host's TPM, from its start on."""
        return running(self.folder / "tpm")

    def round(self, address: str) -> None:
        """Ask, quote, release and open; what an earlier round left is no hindrance."""
        question, quote = self.folder / "ask", self.folder / "quote"
        with contextlib.redirect_stdout(io.StringIO()):
            attest.ask(self.host, question)
            attest.quote(question, quote, address)
            attest.release(self.vault, self.host, quote, None, self.key, 300)
            shutil.rmtree(self.copy, ignore_errors=True)
            shutil.copytree(self.vault, self.copy)
            attest.open_released(self.copy, None, address)

    def is_sound(self) -> bool:
        """Whether both sides read what was released, and the vault is whole."""
        for path in (self.vault, self.copy):
            with Vault.open(path) as opened:
                if opened.read_generation(GENERATIONS) != content(GENERATIONS):
                    return False
        told = [problem for problem in verify(self.vault) if problem.kind in ("sealing", "ledger")]
        return not told

    def killed(self, address: str, moment: int) -> int:
        """A round in a child that is killed before its call number `moment` into C.

        Returns:
            0: it was killed; else how many calls it made, for it ended before.
        """
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            calls = 0

            def count(_frame: object, event: str, _what: object) -> None:
                nonlocal calls
                calls += event == "c_call"
                if calls == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                sys.setprofile(count)
                self.round(address)
                sys.setprofile(None)
                os.write(writer, str(calls).encode())
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader) as told:
            said = told.read()
        os.waitpid(child, 0)
        return int(said or 0)


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kill a round `--kills` times; each time it has to work after that."""
    return record(given) | kills(Sides(folder), given.kills)


def kills(sides: Sides, count: int) -> dict[str, Any]:
    """How many of `count` kills were survived, and how many calls a round makes."""
    with sides.tpm() as address:
        sides.round(address)  # whatever is imported for it is there before calls are counted
        calls = sides.killed(address, -1)
    assert calls, "a round that nobody kills fails"
    struck, survived = 0, 0
    for turn in range(count):
        moment = 1 + calls * turn // count
        with sides.tpm() as address:
            struck += not sides.killed(address, moment)
        with sides.tpm() as address, contextlib.suppress(Exception):
            sides.round(address)
            survived += sides.is_sound()
    return {"kills": count, "struck": struck, "survived": survived, "calls": calls}


def rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """The table."""
    told = f"{result['survived']} of {result['kills']} ({result['struck']} struck)"
    return [("kills of a release after which nothing is lost", "all", told)]


def main() -> None:
    """Run the command line."""
    flags = parser(__doc__)
    flags.add_argument("--kills", type=int, default=100, help="default: 100")
    carry_out("attest-kills", flags, measure, rows)


if __name__ == "__main__":
    main()
