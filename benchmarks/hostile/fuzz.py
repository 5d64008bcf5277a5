"""Hostile input against a live service: schemathesis, and malformed requests over raw sockets.

    python -m benchmarks.hostile.fuzz                            # 12,000 requests, eight minutes
    python -m benchmarks.hostile.fuzz --authenticated --cases 20000   # of a service that asks who
    python -m benchmarks.hostile.fuzz --cases 600 --examples 5   # a try

A real `g2d serve --timeout 2s` of a small vault. First schemathesis reads /openapi.json and runs
all its checks but positive_data_acceptance (see schemathesis.toml) with the admin's token, without
/events, whose answer never ends. Then seeded malformed requests (`malformed`) on sockets of their
own: every one has to be answered or closed within --patience seconds, without a 5xx; between them
good requests have to be answered rightly. Resident memory of the service: after a warm-up of the
same kind, after every tenth, at the end, and its peak. With --authenticated the service takes JWTs,
and three of four malformed requests come with a right one. Writes results/fuzz.json, or
results/fuzz-authenticated.json.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import command
from benchmarks.common.places import ROOT
from benchmarks.common.results import record
from benchmarks.hostile.malformed import KINDS, SLOW, Case
from benchmarks.serving.answers import judge
from benchmarks.serving.credentials import Credentials
from benchmarks.serving.load import answer_of, ask_once, infer_request, inputs
from benchmarks.serving.process import TINY, TOKEN, Server, make_vault

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
CHECKS = re.compile(r"(\d+) generated(?:, (\d+) passed)?")


# --- schemathesis --------------------------------------------------------------------------------


def described(port: int, a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run schemathesis; return how many cases it made, and what it complains about."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file",
        str(ROOT / "benchmarks" / "hostile" / "schemathesis.toml"), "run",
        f"http://127.0.0.1:{port}/openapi.json", "--checks", "all", "--exclude-checks",
        "positive_data_acceptance", "--exclude-path", "/events", "--max-examples",
        str(a.examples), "--seed", str(a.seed), "--request-timeout", "30", "--no-color",
        "--continue-on-failure", "-H", f"Authorization: Bearer {TOKEN}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    counts = CHECKS.search(done.stdout)
    complaints = re.findall(r"^\s*❌ (ST\d+ .*)$", done.stdout, re.MULTILINE)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:])
    return {"exit": done.returncode, "cases": int(counts[1]) if counts else 0,
            "complaints": complaints, "output": done.stdout[-3000:]}  # fmt: skip


# --- malformed requests --------------------------------------------------------------------------


async def send(port: int, case: Case, patience: float) -> str:
    """One case on a connection of its own; what became of it: statuses, "closed" or "hang"."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = b""
    try:
        async with asyncio.timeout(patience):
            if case.unread:
                return await ignored(writer, case)
            for part, wait in case.parts:
                writer.write(part)
                await writer.drain()
                if wait:
                    await asyncio.sleep(wait)
            if case.ends:
                writer.write_eof()
            while part := await reader.read(1 << 16):
                found += part
                if not case.ends and len(STATUS.findall(found)) >= case.answers:
                    break
    except TimeoutError:
        return f"hang after {time.perf_counter() - began:.0f} s"
    except OSError:
        pass  # closed while we still sent: a refusal too
    finally:
        writer.close()
    statuses = [status.decode() for status in STATUS.findall(found)]
    return "+".join(statuses) or "closed"


async def ignored(writer: asyncio.StreamWriter, case: Case) -> str:
    """Send all of a case and read nothing: what is answered piles up at the other side."""
    writer.transport.pause_reading()
    for part, _ in case.parts:
        writer.write(part)
    await asyncio.sleep(case.unread)
    writer.transport.abort()
    return "not read"


async def storm(port: int, cases: list[Case], a: argparse.Namespace) -> Counter[tuple[str, str]]:
    """Send all cases, `a.connections` at once; count outcomes by kind."""
    outcomes: Counter[tuple[str, str]] = Counter()
    queue = iter(cases)

    async def client() -> None:
        for case in queue:
            outcomes[case.kind, await send(port, case, a.patience)] += 1

    await asyncio.gather(*(client() for _ in range(a.connections)))
    return outcomes


def drawn(count: int, seed: int, tokens: Sequence[str] = ("",)) -> list[Case]:
    """Seeded cases, every kind as often as the others, with a token each; the slow ones are few."""
    chance = random.Random(seed)
    names = list(KINDS)
    return [
        carried(KINDS[names[place % len(names)]](chance), tokens[place // len(names) % len(tokens)])
        for place in range(count)
    ]


def carried(case: Case, token: str) -> Case:
    """The case with a token in its first head, if it has a head; "": as it is."""
    data, wait = case.parts[0]
    line, end, rest = data.partition(b" HTTP/1.1\r\n")
    if not token or not end:
        return case
    first = line + end + f"authorization: Bearer {token}\r\n".encode() + rest
    return replace(case, parts=((first, wait), *case.parts[1:]))


def tabled(outcomes: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Outcomes by kind, as JSON takes them."""
    table: dict[str, dict[str, int]] = {}
    for (kind, outcome), count in sorted(outcomes.items()):
        table.setdefault(kind, {})[outcome] = count
    return table


# --- the run -------------------------------------------------------------------------------------


def good(port: int, vault: Path) -> bool:
    """Whether requests of every form are answered, and rightly."""
    for count in (1, 16):
        for binary in (False, True):
            answer = ask_once(port, infer_request(inputs(count), binary, token=TOKEN))
            if not answer.startswith(b"HTTP/1.1 200"):
                return False
            number, data = answer_of(answer)
            if judge(vault, [inputs(count)], {(number, 0, data)}).wrong:
                return False
    return True


def memory(server: Server) -> float:
    """Resident memory of the service in MB, once it rests."""
    time.sleep(1.0)
    return psutil.Process(server.process.pid).memory_info().rss / 1e6


def peak(server: Server) -> float:
    """The most resident memory in MB that the service has had since it started."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    vault = make_vault(folder / "vault", TINY)
    result, options, tokens = record(a), ["--timeout", "2s"], [""]
    if a.authenticated:
        known = Credentials(folder / "credentials")
        options += known.by_token()
        tokens += known.tokens(3)
    server = Server(vault, folder / "log", *options)
    try:
        server.ready()
        result["schemathesis"] = described(server.port, a, folder)
        server.ask("/admin/resume", "POST")
        asyncio.run(storm(server.port, drawn(a.cases // 10, a.seed + 1, tokens), a))  # warm-up
        rss, right, peaks = [memory(server)], 0, [peak(server)]
        outcomes: Counter[tuple[str, str]] = Counter()
        for part in range(10):
            cases = drawn(a.cases // 10, a.seed + 2 + part, tokens)
            outcomes += asyncio.run(storm(server.port, cases, a))
            right += good(server.port, vault)
            rss.append(memory(server))
            peaks.append(peak(server))
            print(f"{outcomes.total()} requests, {rss[-1]:.1f} MB, peak {peaks[-1]:.1f} MB",
                  flush=True)  # fmt: skip
        chance = random.Random(a.seed)
        cases = [make(chance) for make in SLOW.values() for _ in range(a.slow)]
        outcomes += asyncio.run(storm(server.port, cases, argparse.Namespace(
            connections=len(cases), patience=a.patience)))  # fmt: skip
        result |= {"rss_mb": rss, "after_mb": memory(server), "right": right,
                   "peak_mb": [*peaks, peak(server)],
                   "outcomes": tabled(outcomes)}  # fmt: skip
        right_after = good(server.port, vault)
        result["right_after"] = right_after and server.stop() == 0
        result |= {
            "broken": server.count("broken"),
            "errors": server.count("server", "error"),
            "exceptions": [e for e in server.events("server") if "error" in e][:20],
        }
    finally:
        if server.process.poll() is None:
            server.kill()
    return result | counted(outcomes)


def counted(outcomes: Counter[tuple[str, str]]) -> dict[str, Any]:
    """How many requests in all, with a 5xx, that hang, that were taken for good."""

    def where(test: Any) -> int:
        return sum(count for (_, outcome), count in outcomes.items() if test(outcome))

    return {
        "requests": outcomes.total(),
        "server_errors": where(lambda o: any(s.startswith("5") for s in o.split("+"))),
        "hangs": where(lambda o: o.startswith("hang")),
        "answered_200": where(lambda o: "200" in o),
    }  # fmt: skip


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows: what, target, reached. Also for docs/benchmarks/serving.md."""
    told = result["schemathesis"]
    before, after = result["rss_mb"][0], result["after_mb"]
    hanging = sorted({kind for kind, found in result["outcomes"].items()
                      if any(o.startswith("hang") for o in found)})  # fmt: skip
    which = f" ({', '.join(hanging)})" if hanging else ""
    return [
        [f"schemathesis on the OpenAPI description, {told['cases']:,} cases, all checks but one:"
         " complaints", "0", "; ".join(told["complaints"]) or ("0" if not told["exit"] else "!")],
        [f"{result['requests']:,} malformed requests: 5xx / hang", "0 / 0",
         f"{result['server_errors']} / {result['hangs']}{which}"],
        ["resident memory of the service after a warm-up and after all, MB; its peak",
         "flat; no bomb",
         f"{before:.1f} → {after:.1f} ({100 * (after / before - 1):+.1f} %);"
         f" {result['peak_mb'][-1]:.1f}"],
        ["exceptions that the service logged: of a generation's model / of the server", "0 / 0",
         f"{result['broken']} / {result['errors']}"],
        ["good requests among them and afterwards answered rightly", "all",
         f"{result['right']} of 10 rounds; afterwards: {'yes' if result['right_after'] else 'no'}"],
    ]  # fmt: skip


def main() -> None:
    flags = command.parser(__doc__)
    flags.add_argument("--cases", type=int, default=12_000, help="malformed requests")
    flags.add_argument("--slow", type=int, default=25, help="of each kind of slow sender, at once")
    flags.add_argument(
        "--examples", type=int, default=100, help="of schemathesis for each operation"
    )
    flags.add_argument("--connections", type=int, default=16)
    flags.add_argument("--patience", type=float, default=12, help="seconds until a case hangs")
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--authenticated", action="store_true", help="of a service that takes JWTs")
    name = "fuzz-authenticated" if "--authenticated" in sys.argv else "fuzz"
    command.carry_out(name, flags, measure, rows, "outcomes")


if __name__ == "__main__":
    main()
