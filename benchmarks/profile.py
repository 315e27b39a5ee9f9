"""Which benchmarks there are, which of them fit into ten minutes, and what becomes of one that
fails: the others go on, and the report has a row that says so. What was measured on a server that
broke a promise is no figure, and is left out.

The ten minutes of `make bench` (SHORT) are for one server, that which comes with the install, so
that a stranger's run is the same as ours. What matters most comes first. A benchmark that would end
too late on a machine slower than ours is left out with a word: ten minutes are a promise, too.
Rounds are never made fewer, so that ranges mean the same in every report.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Final

import msgspec

from benchmarks import (
    cost,
    drain,
    durability,
    footprint,
    http,
    lane,
    latency,
    lua_limit,
    open_loop,
    queue,
    rebuild,
    scale,
    socket,
    workers,
)
from benchmarks.plan import Plan
from benchmarks.report import RUN, VERIFY, Row, Verdict, broken

__all__ = ["BENCHMARKS", "SHORT", "Step", "missing_tools", "run", "short"]

# From the bottom up: Redis, the engine in front of it, the intake in front of that, the ledger
# behind it, the queue before it.
BENCHMARKS: Final[dict[str, Callable[[Plan], Iterator[Row]]]] = {
    lua_limit.NAME: lua_limit.run,
    cost.NAME: cost.run,
    scale.NAME: scale.run,
    footprint.NAME: footprint.run,
    latency.NAME: latency.run,
    lane.NAME: lane.run,
    http.NAME: http.run,
    workers.NAME: workers.run,
    durability.NAME: durability.run,
    socket.NAME: socket.run,
    drain.NAME: drain.run,
    rebuild.NAME: rebuild.run,
    queue.NAME: queue.run,
    open_loop.NAME: open_loop.run,
}

# Programs that a benchmark does without, and the packages of Debian that bring them.
_TOOLS: Final = {"wrk": "wrk", "go": "golang-go", "node": "nodejs", "npm": "npm"}


class Step(msgspec.Struct, frozen=True):
    """A benchmark, and how long it takes for one server on two quiet cores."""

    name: str
    about_s: float


SHORT: Final = (
    Step(http.NAME, 215),
    Step(lane.NAME, 90),
    Step(socket.NAME, 95),
    Step(queue.NAME, 95),
)
# What is left of ten minutes is for installing it all.
LIMIT_S: Final = 550.0
# Steps take longer on a disturbed machine, whatever is taken again.
SPARE_S: Final = 30.0
# Nobody was promised an end of the others.
AGAIN_S: Final = 120.0


def run(name: str, plan: Plan, *, again_s: float = AGAIN_S) -> Iterator[Row]:
    """The rows of one benchmark. If it fails, those that it had by then, and one that says why.
    None of a server whose sale has broken a promise, but those that say so. For ``again_s`` slices
    that the machine's host has disturbed may be taken again."""
    plan.say(f"{name}: starting")
    plan.stolen.allow(0.0 if plan.quick else again_s)
    rows: list[Row] = []
    try:
        # All of them first: many a sale is verified only after its figures. What came before a
        # failure stays in the list.
        rows.extend(BENCHMARKS[name](plan))
    # Whatever it was, the minutes that the others have taken are not to be lost.
    except Exception as error:  # noqa: BLE001
        servers = ", ".join(server.name for server in plan.servers)
        rows.append(
            Row.fact(name, servers, RUN, Verdict.MISSED, "an end", f"failed: {_why(error)}")
        )
    yield from _without_spoiled(rows)


def _without_spoiled(rows: Sequence[Row]) -> Iterator[Row]:
    spoiled = {row.server for row in broken(rows) if row.question == VERIFY}
    for row in rows:
        if row.question in (VERIFY, RUN) or not any(_same(row.server, bad) for bad in spoiled):
            yield row


def _same(server: str, other: str) -> bool:
    """Whether one is the other, or a way of running it: "Redis 7.0" and "Redis 7.0, fsync off"."""
    return server.startswith(other) or other.startswith(server)


def short(plan: Plan, *, clock: Callable[[], float] = perf_counter) -> Iterator[Row]:
    """The ten minutes. ``clock`` counts seconds."""
    began = clock()
    for number, step in enumerate(SHORT):
        left_s = LIMIT_S - (clock() - began)
        if step.about_s <= left_s:
            # None of the steps to come shall be left out for it.
            needed_s = sum(each.about_s for each in SHORT[number:])
            yield from run(step.name, plan, again_s=left_s - needed_s - SPARE_S)
            continue
        server, note = plan.servers[0].name, "skipped: it would not end within ten minutes"
        yield Row.fact(step.name, server, RUN, Verdict.INFO, "–", note)


def missing_tools() -> str:
    """Programs that this machine lacks, with the packages that bring them; "" if it has all."""
    missing = [name for name in _TOOLS if shutil.which(name) is None]
    packages = " ".join(_TOOLS[name] for name in missing)
    return f"{', '.join(missing)} (Debian: apt install {packages})" if missing else ""


def _why(error: Exception) -> str:
    """One line: what happened, and where in our own code, as far down as it goes."""
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    here = Path(__file__).parents[1]
    ours = [at for at in frames if Path(at.filename).is_relative_to(here)]
    said = (str(error) or type(error).__name__).strip().splitlines()[0]
    where = f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    return f"{said}{where}"
