"""The third part of benchmarks/queue.py: place queries over HTTP, in the rig of benchmarks/http.py.

Run as a program, it is the load where wrk is missing: ``python -m benchmarks.queue_http URL FILE
CONNECTIONS SECONDS``.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from math import ceil
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from time import time
from typing import Final
from urllib.parse import urlsplit

import msgspec

from benchmarks.clients import Crowd
from benchmarks.http import CONNECTIONS, INTAKE, NOOP, Process, started
from benchmarks.load import Load, _children_s, generator
from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from benchmarks.queue_workload import NAME, calls_of, create_queue, join_all
from benchmarks.report import RATIO, Row
from benchmarks.servers import durability_of
from benchmarks.workload import Wire, check_sale
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine

__all__ = ["ask_over_http"]

TARGET: Final = 0.85
SALE: Final = "place-http"
# One question for each line of a file: a buyer's user token and ticket.
_WRK: Final = """
dofile('{summary}')
local heads, number = {{}}, 0
function init(args)
  for line in io.lines(args[1]) do
    local token, ticket = line:match('(%S+) (%S+)')
    heads[#heads + 1] = 'GET ' .. wrk.path .. ' HTTP/1.1\\r\\nHost: ' .. wrk.host .. ':'
      .. wrk.port .. '\\r\\nAuthorization: Bearer ' .. token
      .. '\\r\\nSeckill-Ticket: ' .. ticket .. '\\r\\n\\r\\n'
  end
end
function request()
  number = number + 1
  return heads[(number - 1) % #heads + 1]
end
"""


class _Slice(msgspec.Struct, frozen=True):
    """What one server has done in one slice. ``calls``: those that Redis got from it."""

    load: Load
    server_cpu_s: float
    calls: int


def ask_over_http(plan: Plan, label: str, embedded: EmbeddedServer) -> Iterator[Row]:
    """The intake's places against a handler that does nothing."""
    seconds, buyers = (1, 4_000) if plan.quick else (3, 20_000)
    rounds = plan.rounds
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(embedded))
        files = Path(stack.enter_context(TemporaryDirectory(prefix="seckill-bench-")))
        secret = token_hex(32)
        with plan.runner() as runner:
            runner.run(_write_requests(files, embedded.url, secret, buyers))
        start = {
            "url": embedded.url,
            "durability": durability_of("always"),
            "user_secret": secret,
            "backend_hash": f"sha256:{token_hex(32)}",
        }
        modules = {INTAKE: "references.intake_server", NOOP: "queue_noop"}
        servers = {
            who: stack.enter_context(started(module, msgspec.json.encode(start).decode()))
            for who, module in modules.items()
        }
        if not plan.quick:
            plan.say(f"{NAME}: {label}, places over HTTP, warming up")
            _warm(servers[INTAKE], files, wire, seconds, buyers)
        found: dict[str, list[_Slice]] = {who: [] for who in servers}
        for turn in range(rounds):
            for who in list(servers)[:: -1 if turn % 2 else 1]:
                plan.say(f"{NAME}: {label}, places over HTTP, round {turn + 1} of {rounds}, {who}")
                slice_ = plan.stolen.least(partial(_slice, servers[who], files, wire, seconds))
                found[who].append(slice_)
    yield from _rows(label, found)
    with plan.runner() as runner:
        durability = durability_of("always")
        yield runner.run(check_sale(NAME, label, embedded.url, durability, SALE))


def _warm(process: Process, files: Path, wire: Wire, seconds: int, buyers: int) -> None:
    """Lets the intake see the user token of every buyer. Each slice begins with the first."""
    load = _slice(process, files, wire, seconds).load
    if load.requests < buyers:
        _slice(process, files, wire, ceil(1.5 * buyers / load.rate))


async def _write_requests(files: Path, url: str, secret: str, count: int) -> None:
    """Fills the sale's line, and the files that the load reads."""
    import jwt

    buyers = [f"b{number:023}" for number in range(count)]
    async with Engine(url, durability=durability_of("always"), sweep_ms=0) as engine:
        await create_queue(engine, SALE)
        tickets = await join_all(engine, SALE, buyers)
    claims = {"iat": int(time()), "exp": int(time()) + 36_000}
    tokens = (jwt.encode({"sub": buyer, **claims}, secret, algorithm="HS256") for buyer in buyers)
    lines = (f"{token} {ticket}\n" for token, ticket in zip(tokens, tickets, strict=True))
    (files / "places").write_text("".join(lines))
    summary = Path(__file__).with_name("wrk") / "summary.lua"
    (files / "places.lua").write_text(_WRK.format(summary=summary))


def _slice(process: Process, files: Path, wire: Wire, seconds: int) -> _Slice:
    wire.call("CONFIG", "RESETSTAT")
    server_s = cpu_seconds(process.pid)
    load = _send(f"{process.base}/v1/sales/{SALE}/tickets/me", files, seconds)
    server_s = cpu_seconds(process.pid) - server_s
    assert load.requests > 0, "no request was answered"
    assert load.failed == load.refused == 0, load
    calls = calls_of(wire)
    scripts = calls.get("evalsha", (0, 0))[0] + calls.get("eval", (0, 0))[0]
    return _Slice(load, server_s, scripts)


def _send(url: str, files: Path, seconds: int) -> Load:
    if wrk := shutil.which("wrk"):
        command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s"]
        command += ["-s", str(files / "places.lua"), url, "--", str(files / "places")]
    else:
        command = [sys.executable, "-m", "benchmarks.queue_http", url, str(files / "places")]
        command += [str(CONNECTIONS), str(seconds)]
    before_s = _children_s()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 2 * seconds)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr[-500:]}")
    found = msgspec.json.decode(done.stdout.splitlines()[-1], type=Load)
    return msgspec.structs.replace(found, cpu_s=_children_s() - before_s)


def _rows(label: str, found: dict[str, list[_Slice]]) -> Iterator[Row]:
    pairs = zip(found[INTAKE], found[NOOP], strict=True)
    ratios = [ours.load.rate / noop.load.rate for ours, noop in pairs]
    question = "places over HTTP against a no-op handler"
    yield Row.of(NAME, label, question, RATIO, ratios, at_least=TARGET, note=generator())
    for who, parts in found.items():
        rates = [part.load.rate for part in parts]
        yield Row.of(NAME, label, f"places over HTTP, {who}", "answers/s", rates)
    for who, parts in found.items():
        for name in ("server", "load"):
            spent_s = [part.load.cpu_s if name == "load" else part.server_cpu_s for part in parts]
            values = [s / p.load.requests * 10_000 for s, p in zip(spent_s, parts, strict=True)]
            yield Row.of(NAME, label, f"CPU of the {name}, places, {who}", "s/10k places", values)
    calls = [part.calls / part.load.took_s for part in found[INTAKE]]
    question = "scripts that the intake calls while places are asked"
    yield Row.of(NAME, label, question, "a second", calls, note="looks and sweeps")


def main() -> None:
    """Reads its arguments, asks, prints."""
    import uvloop

    url, file, connections, seconds = sys.argv[1:]
    at = urlsplit(url)
    assert at.hostname is not None
    assert at.port is not None
    pairs = (line.split() for line in Path(file).read_text(encoding="ascii").splitlines())
    requests = [
        f"GET {at.path} HTTP/1.1\r\nHost: {at.netloc}\r\nAuthorization: Bearer {token}\r\n"
        f"Seckill-Ticket: {ticket}\r\n\r\n".encode()
        for token, ticket in pairs
    ]
    asking = Crowd(cycle(requests)).buy(at.hostname, at.port, int(connections), int(seconds))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(msgspec.json.encode(runner.run(asking)).decode())


if __name__ == "__main__":
    main()
