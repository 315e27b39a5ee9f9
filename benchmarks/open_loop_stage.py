"""What both halves of the open loop stand on: Redis, our intake and the no-op handler, a sale, user
tokens, and a look at each process while the load runs.

Nobody is bound to a core, unless the load must offer more than one that shares its cores can: then
it has one of its own (``Stage.load_apart``), and everything else shares the others. On two cores
the intake and its Redis share one then.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from time import clock_gettime, monotonic, time
from typing import Final

import msgspec

from benchmarks.arrivals import Answers, Ask, Phase, load_core, offer, sharing
from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from benchmarks.references.launch import Process, started
from benchmarks.references.start import start_of
from benchmarks.report import Row, Verdict
from benchmarks.servers import Fsync, Server, durability_of, running
from benchmarks.workload import check_sale, make_sale
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine

__all__ = [
    "CONNECTIONS",
    "FSYNC",
    "INTAKE",
    "NOOP",
    "WHO",
    "Look",
    "Stage",
    "at",
    "beside_load",
    "looking",
    "staged",
    "stopped",
    "throttled",
]

FSYNC: Final[Fsync] = "always"
INTAKE, NOOP = "intake", "no-op"
WHO: Final = (INTAKE, NOOP)
CONNECTIONS: Final = 128
BUYERS: Final = 20_000
QUICK_BUYERS: Final = 1_000
_MODULES: Final = {INTAKE: "references.intake_server", NOOP: "references.noop_server"}
_LOOK_S: Final = 0.05
# How long a process may go on after its CPU time is spent.
_QUOTA_S: Final = 0.0005


class Look(msgspec.Struct, frozen=True):
    """A process at one moment: CPU seconds so far, and the memory it holds."""

    at_s: float
    cpu_s: float
    resident_bytes: int


class Stage:
    """Everything that is asked, and who asks."""

    def __init__(
        self,
        plan: Plan,
        embedded: EmbeddedServer,
        servers: dict[str, Process],
        tokens: Path,
    ) -> None:
        self.plan = plan
        self.embedded = embedded
        self.servers = servers
        self.tokens = tokens
        self.sales: list[str] = []
        self.core: int | None = None

    def open_sale(self) -> None:
        """A fresh sale for all that follows, with stock for everybody, again and again."""
        with self.plan.runner() as runner:
            runner.run(self._open())

    async def _open(self) -> None:
        sale, replace = make_sale(f"open-loop-{len(self.sales)}"), msgspec.structs.replace
        item = replace(sale.items[0], limit_per_buyer=0)
        sale = replace(sale, items=(item,), limit_per_buyer=0)
        durability = durability_of(FSYNC)
        async with Engine(self.embedded.url, durability=durability, sweep_ms=0) as engine:
            assert (await engine.create(sale)).ok
            assert (await engine.open(sale.id)).ok
        self.sales.append(sale.id)

    def offer(
        self, who: str, *phases: Phase, connections: int, waits: bool = True, seed: int | None = 1
    ) -> Answers:
        """Offers orders of the last sale to one of the two."""
        answers = offer(
            Ask(
                url=f"{self.servers[who].base}/v1/sales/{self.sales[-1]}/orders",
                file=str(self.tokens),
                phases=phases,
                connections=connections,
                waits=waits,
                seed=seed,
                core=self.core,
            )
        )
        for came in answers.phases:
            assert not came.odd, f"{who}: unexpected answers: {came.odd}"
        return answers

    @contextmanager
    def load_apart(self) -> Iterator[None]:
        """Gives the load a core of its own, where there are two."""
        with ExitStack() as stack:
            self.core = load_core()
            stack.enter_context(sharing(self.core))
            for pid in (self.embedded.pid, *(server.pid for server in self.servers.values())):
                stack.enter_context(_moved(pid, os.sched_getaffinity(0)))
            try:
                yield
            finally:
                self.core = None

    def verify(self, benchmark: str, label: str) -> Row:
        """One row for all sales: the first that broke a promise, or how many were looked at."""
        durability, rows = durability_of(FSYNC), []
        with self.plan.runner() as runner:
            for sale in self.sales:
                self.plan.say(f"{benchmark}: {label}, verify {sale}")
                checked = check_sale(benchmark, label, self.embedded.url, durability, sale)
                rows.append(runner.run(checked))
        broken = (row for row in rows if row.verdict is not Verdict.MET)
        note = f"{len(rows)} sales; {rows[-1].note} in the last"
        return next(broken, msgspec.structs.replace(rows[-1], note=note))


@contextmanager
def staged(plan: Plan, server: Server) -> Iterator[Stage]:
    """Servers that run, and a first sale."""
    with ExitStack() as stack:
        files = Path(stack.enter_context(TemporaryDirectory(prefix="seckill-bench-")))
        stack.enter_context(_stderr_to(files / "log"))
        embedded = stack.enter_context(running(server, FSYNC))
        secret = token_hex(32)
        _write_tokens(files / "tokens", secret, QUICK_BUYERS if plan.quick else BUYERS)
        start = start_of(embedded.url, durability_of(FSYNC), secret)
        text = msgspec.json.encode(start).decode()
        servers = {
            who: stack.enter_context(started(module, text)) for who, module in _MODULES.items()
        }
        stage = Stage(plan, embedded, servers, files / "tokens")
        stage.open_sale()
        yield stage


def _write_tokens(file: Path, secret: str, count: int) -> None:
    import jwt

    claims = {"iat": int(time()), "exp": int(time()) + 36_000}
    tokens = (
        jwt.encode({"sub": f"b{number:023}", **claims}, secret, algorithm="HS256")
        for number in range(count)
    )
    file.write_text("".join(f"{token}\n" for token in tokens))


@contextmanager
def _stderr_to(file: Path) -> Iterator[None]:
    """The intake's log has a hundred lines a second about refusals, which would bury the report."""
    kept = os.dup(2)
    try:
        with file.open("wb") as log:
            os.dup2(log.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def looking(pid: int) -> Iterator[list[Look]]:
    """Looks at a process twenty times a second."""
    looks: list[Look] = []
    over = threading.Event()

    def look() -> None:
        while True:
            looks.append(Look(monotonic(), cpu_seconds(pid), _resident(pid)))
            if over.wait(_LOOK_S):
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield looks
    finally:
        over.set()
        thread.join()


def at(looks: Sequence[Look], at_s: float) -> Look:
    """The look that was nearest to that moment."""
    return min(looks, key=lambda look: abs(look.at_s - at_s))


@contextmanager
def throttled(pid: int, *, cpu_s: float, period_s: float) -> Iterator[None]:
    """Lets a process have so much CPU time in each period, as a container's quota does: when it is
    spent it stands until the next one, which also bears what was taken too much. It runs in the
    end."""
    over = threading.Event()
    clock = _cpu_clock(pid)

    def take_turns() -> None:
        left_s, spent_s = 0.0, clock_gettime(clock)
        while not over.is_set():
            left_s, end_s = min(left_s, 0.0) + cpu_s, monotonic() + period_s
            os.kill(pid, signal.SIGCONT if left_s > 0.0 else signal.SIGSTOP)
            while left_s > 0.0 and monotonic() < end_s and not over.wait(_QUOTA_S):
                before_s, spent_s = spent_s, clock_gettime(clock)
                left_s -= spent_s - before_s
            if left_s <= 0.0:
                os.kill(pid, signal.SIGSTOP)
                over.wait(max(0.0, end_s - monotonic()))

    thread = threading.Thread(target=take_turns)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)


def _cpu_clock(pid: int) -> int:
    """The clock of a process's CPU time, as Linux's clock_getcpuclockid makes it."""
    return (~pid << 3) | 2


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Lets a process stand still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def beside_load(pid: int, core: int | None) -> Iterator[None]:
    """Moves a process to the core of the load, where it has nobody else beside it, on a machine
    that has no third one for it: what a server is refused must not slow its Redis."""
    before = os.sched_getaffinity(pid)
    with _moved(pid, {core} if core is not None and len(before) == 1 else before):
        yield


@contextmanager
def _moved(pid: int, cores: set[int]) -> Iterator[None]:
    before = os.sched_getaffinity(pid)
    _move(pid, cores)
    try:
        yield
    finally:
        _move(pid, before)


def _move(pid: int, cores: set[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
