"""Does an evening of N buyers on this machine keep every promise?

Starts a server with an AOF (fsync always), a sale that opens in some seconds, the intake as
`seckill serve` runs it (user tokens, limits and metrics on), and locust with the users of
locustfile.py; all on this machine, so the load takes its share of the cores. Each of the sale's two
SKUs has a unit for one buyer of five, so it sells out; what is abandoned or given up goes to
whoever comes back. Then `seckill verify` of the sale.

    python -m benchmarks locust --users 200 --seconds 20
    python -m benchmarks locust --users 5000 --seconds 60 --processes 2 --mode queue

What comes after `--` goes to locust, and so do its options in the environment (EVENING_…, see
docs/load-testing.md). Exits 1 when a promise was broken, `verify` found something, or a request got
no answer however often it was repeated; 2 when fewer than nine buyers of ten came, or nothing is
known of them; with another code than 0 when the run could not be made.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from math import ceil
from pathlib import Path
from secrets import token_urlsafe
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Final, Literal, get_args

import msgspec

from benchmarks.servers import find_servers, running
from seckill.admission import Admission, Mode
from seckill.engine import Engine
from seckill.sale import Item, Sale

__all__ = ["main"]

ROOT: Final = Path(__file__).resolve().parents[1]
LOCUSTFILE: Final = ROOT / "benchmarks" / "locustfile.py"
SALE: Final = "evening"
START_S: Final = 60
# A process can sign a token, open a connection and read a page for so many buyers a second.
_COME_PER_S: Final = 150
# With fewer than this part of the buyers it was another evening than the one that was asked for.
_COME_MIN: Final = 0.9


class _Plan(msgspec.Struct, frozen=True):
    """What was asked for."""

    users: int
    seconds: int
    processes: int
    workers: int
    mode: Mode | Literal["open"]
    opens_in_s: float
    summary: Path | None
    locust: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one evening. Returns the exit code."""
    plan = _plan(arguments)
    # A buyer who clicks twice has two connections, at both ends.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with (
        TemporaryDirectory(prefix="seckill-evening-") as name,
        running(find_servers()[0], "always") as embedded,
    ):
        files, key, secret = Path(name), f"sk_{token_urlsafe(32)}", token_urlsafe(48)
        began_s = monotonic()
        with _intake(embedded.url, plan, files, key, secret) as address:
            # The processes of locust take about as long to start, twice that on a busy machine.
            started_s = 1 + 2 * (monotonic() - began_s)
            asyncio.run(_open(embedded.url, plan, plan.opens_in_s + started_s))
            summary = plan.summary or files / "summary.json"
            summary.unlink(missing_ok=True)
            code = _locust(plan, address, key, secret, summary) or _came(plan, summary)
        # A process that was killed has a negative code.
        return max(abs(code), _verify(embedded.url))


def _plan(arguments: Sequence[str] | None) -> _Plan:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks locust",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--users", type=int, default=200, help="buyers (200)")
    parser.add_argument(
        "--seconds", type=int, default=20, help="from the opening to the end, at most (20)"
    )
    parser.add_argument("--processes", type=int, default=1, help="of the load (1)")
    parser.add_argument("--workers", type=int, default=1, help="of the intake (1)")
    parser.add_argument("--mode", choices=["open", *get_args(Mode)], default="open")
    parser.add_argument("--opens-in", type=float, help="seconds; long enough for all to come")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="the end of the run, as JSON")
    parser.add_argument("locust", nargs="*", help="options of locust, after --")
    asked = parser.parse_args(arguments)
    for name in ("users", "seconds", "processes", "workers"):
        if getattr(asked, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    opens_in_s = asked.opens_in or max(4.0, ceil(asked.users / _COME_PER_S) + 2.0)
    return _Plan(
        asked.users,
        asked.seconds,
        asked.processes,
        asked.workers,
        asked.mode,
        opens_in_s,
        asked.summary,
        asked.locust,
    )


async def _open(url: str, plan: _Plan, opens_in_s: float) -> None:
    """The sale, from so many seconds on."""
    opens_at = datetime.now(UTC) + timedelta(seconds=opens_in_s)
    each = max(1, plan.users // 5)
    admission = None
    if plan.mode != "open":
        # Everybody who can be served is called within a third of the run.
        rate = max(5, ceil(3 * plan.users / plan.seconds))
        admission = Admission(mode=plan.mode, rate_per_s=rate, token_life_ms=10_000)
    hold_ms = 1000 * max(5, plan.seconds // 4)
    sale = Sale(
        id=SALE,
        title="晚8点秒杀",
        opens_at=opens_at,
        ends_at=opens_at + timedelta(hours=1),
        items=(
            Item(sku="mug", title="青瓷马克杯", price_fen=5_900, total=each, limit_per_buyer=1),
            Item(sku="tea", title="明前龙井 50g", price_fen=9_900, total=each, limit_per_buyer=2),
        ),
        limit_per_buyer=2,
        hold_ms=hold_ms,
        pay_ms=hold_ms,
        admission=admission,
    )
    async with Engine(url, sweep_ms=0) as engine:
        assert (await engine.create(sale)).ok
        assert (await engine.open(sale.id)).ok


@contextmanager
def _intake(url: str, plan: _Plan, files: Path, key: str, secret: str) -> Iterator[str]:
    """`seckill serve` with proofs of its own. Gives its address."""
    settings = files / "seckill.toml"
    (files / "secret").write_text(secret)
    settings.write_text(
        f'[users]\nsecrets = ["file:{files / "secret"}"]\n'
        f'[[keys]]\nname = "mall"\nhash = "sha256:{sha256(key.encode()).hexdigest()}"\n'
        'scopes = ["backend", "admin"]\n'
    )
    settings.chmod(0o600)
    (files / "secret").chmod(0o600)
    command = [sys.executable, "-m", "seckill.cli", "serve", "--config", str(settings)]
    command += ["--redis", url, "--port", "0", "--workers", str(plan.workers)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _address(process)
        finally:
            _end(process)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if " takes orders on " in line:
            return line.split(" takes orders on ")[1].strip()
    raise RuntimeError("the intake did not start; it has said why")


def _came(plan: _Plan, summary: Path) -> int:
    """Whether what locust calls a success was a run at all. Returns the exit code."""
    try:
        ended = msgspec.json.decode(summary.read_bytes(), type=dict)
    except FileNotFoundError:
        print("locust ended without an account: nothing is known", file=sys.stderr)
        return 2
    if not ended["answers"]:
        print("nobody had an answer: nothing is known", file=sys.stderr)
        return 2
    if ended["begun"] < plan.users:
        print(f"only {ended['begun']:,} of {plan.users:,} buyers came", file=sys.stderr)
    if ended["begun"] < _COME_MIN * plan.users:
        said = "too few for an evening of so many; give more seconds, --processes, or fewer --users"
        print(said, file=sys.stderr)
        return 2
    return 0


def _locust(plan: _Plan, host: str, key: str, secret: str, summary: Path) -> int:
    """Locust in processes of its own, for it changes how a process waits. Returns its code."""
    environment = {
        **os.environ,
        "EVENING_SALE": SALE,
        "EVENING_USER_SECRET": secret,
        "EVENING_API_KEY": key,
        # Who comes late is to come while there is something to see.
        "EVENING_TAIL_S": os.environ.get("EVENING_TAIL_S", str(plan.seconds / 10)),
        "EVENING_SUMMARY": str(summary.resolve()),
    }
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(LOCUSTFILE),
        "--loglevel",
        "WARNING",
    ]
    lead = [*command, "--headless", "--only-summary", "--host", host, *plan.locust]
    lead += ["--users", str(plan.users), "--run-time", f"{plan.seconds}s"]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        if plan.processes > 1:
            port = str(_free_port())
            lead += ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
            lead += ["--expect-workers", str(plan.processes)]
            lead += ["--expect-workers-max-wait", str(START_S)]
            worker = [*command, "--worker", "--master-host", "127.0.0.1", "--master-port", port]
            workers += [
                subprocess.Popen(worker, cwd=ROOT, env=environment) for _ in range(plan.processes)
            ]
        # The start, the accounts and the last looks are not in the run's time.
        longest_s = plan.opens_in_s + plan.seconds + 4 * START_S
        return subprocess.run(lead, cwd=ROOT, env=environment, timeout=longest_s).returncode
    except subprocess.TimeoutExpired:
        print(f"locust has not ended after {longest_s:.0f} s", file=sys.stderr)
        return 1
    finally:
        for process in workers:
            _end(process)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=START_S / 2)
        return
    process.kill()


def _verify(url: str) -> int:
    command = [sys.executable, "-m", "seckill.cli", "verify", SALE, "--redis", url]
    return 1 if subprocess.run(command, cwd=ROOT).returncode else 0


if __name__ == "__main__":
    sys.exit(main())
