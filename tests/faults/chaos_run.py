"""One chaos run, from its seed to its verdict."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import redis

from seckill.engine import Engine
from seckill.errors import SeckillError
from seckill.ledger import Ledger
from seckill.ledger.rebuild import rebuild
from tests.faults.chaos_crew import GROUP, Crew, wait_for
from tests.faults.chaos_groups import a_topology
from tests.faults.chaos_judge import Result, judge
from tests.faults.chaos_patience import Outages
from tests.faults.chaos_schedule import Fault, schedule
from tests.faults.chaos_servers import SALE, Servers, header_of
from tests.faults.checker import Verdict, observe
from tests.faults.sales import busy_sale
from tests.faults.topologies import NodeFailed

__all__ = ["Plan", "run"]

# Before the first fault, and after the last one.
ORDERS = 30


class Plan(msgspec.Struct, frozen=True):
    """What is to be run. ``faults`` names those to choose from; none means the usual ones."""

    topology: str
    seed: int
    seconds: float = 6.0
    faults: tuple[str, ...] = ()
    broken: str = ""
    loads: int = 2
    callers: int = 8

    @property
    def schedule(self) -> list[Fault]:
        """Its faults: the same for the same plan."""
        return schedule(self.topology, self.seed, self.seconds, self.faults)


def run(plan: Plan) -> Result:
    """Runs it. The logs of one that was not valid stay, in the result's ``folder``."""
    folder = Path(tempfile.mkdtemp(prefix=f"seckill-chaos-{plan.topology}-{plan.seed}-"))
    faults = plan.schedule
    (folder / "schedule.txt").write_text("".join(f"{fault}\n" for fault in faults))
    trouble: list[str] = []
    with ExitStack() as stack:
        servers = stack.enter_context(a_topology(plan.topology, folder, broken=plan.broken))
        crew = Crew(
            folder,
            stack,
            sale=SALE,
            seed=plan.seed,
            broken=plan.broken,
            callers=plan.callers,
        )
        crew.url, crew.durability = servers.url, servers.durability
        asyncio.run(_open_sale(servers))
        outages = Outages(servers, plan.topology)
        for part in (
            lambda: _begin(servers, crew, plan),
            lambda: _perform(faults, outages, crew),
            lambda: _recover(servers, crew),
        ):
            _note(trouble, part)
        trouble += crew.finish(crew.loads)
        groups = [GROUP, *(["ledger"] if crew.keepers else [])]
        _note(trouble, lambda: _settle(servers, crew, groups))
        trouble += crew.finish([*crew.consumers, *crew.keepers])
        result = judge(crew, servers, plan.seed, plan.topology, faults, trouble, outages.told)
        if result.fenced and result.verdict is Verdict.VALID:
            _note(trouble, lambda: _rebuild(servers, crew))
            servers.rebuilt = True
            result = judge(crew, servers, plan.seed, plan.topology, faults, trouble, outages.told)
    if result.verdict is Verdict.VALID:
        shutil.rmtree(folder)
        return result
    told = "\n".join((str(result), *result.report.problems, *result.report.listed))
    (folder / "verdict.txt").write_text(told + "\n")
    return msgspec.structs.replace(result, folder=str(folder))


def _note(trouble: list[str], part: Callable[[], None]) -> None:
    """One part of a run. What goes wrong with it is no verdict, but proves that there is none."""
    if trouble:
        return  # Whatever follows would only fail by what has failed already.
    try:
        part()
    except (AssertionError, NodeFailed, OSError, RuntimeError, redis.RedisError) as error:
        trouble.append(f"unsettled: {str(error) or type(error).__name__}")
    except SeckillError as error:
        trouble.append(f"unsettled: {type(error).__name__}: {error}")


async def _open_sale(servers: Servers) -> None:
    durability: Any = servers.durability
    async with Engine(servers.url, durability=durability, sweep_ms=0, timeout_ms=30_000) as engine:
        assert (await engine.create(busy_sale(SALE))).ok
        assert (await engine.open(SALE)).ok


def _begin(servers: Servers, crew: Crew, plan: Plan) -> None:
    for _ in range(plan.loads):
        crew.add_load()
    crew.add_consumer()
    if plan.broken != "no_fence":
        # The keeper is a fence of its own, and would do the engines' work.
        crew.add_keeper()
        wait_for("the ledger", lambda: observe(servers.inside_url, SALE).acked.get("ledger"))
    wait_for("everybody to begin", crew.all_at_work)
    crew.wait_for_orders(ORDERS)


def _perform(faults: Sequence[Fault], outages: Outages, crew: Crew) -> None:
    """Every begin and end in the order of their times."""
    steps: list[tuple[int, int, Callable[[], None]]] = []
    for number, fault in enumerate(faults):
        if fault.name in ("kill_load", "kill_consumer", "kill_keeper"):
            steps.append((fault.at_ms, number, _step(crew.replace, fault.name)))
            continue
        steps.append((fault.at_ms, number, _step(outages.begin, fault)))
        steps.append((fault.at_ms + fault.for_ms, number, _step(outages.end, fault)))
    start_s = time.monotonic()
    # Stable: a fault of no length ends after it has begun.
    for at_ms, _, step in sorted(steps, key=lambda each: each[:2]):
        due_s = start_s + at_ms / 1000
        time.sleep(max(0.0, due_s - time.monotonic()))
        step()
        # A step may take its time, as a failover does; what follows keeps its distance.
        start_s += time.monotonic() - due_s


def _step(do: Callable[[Any], None], what: Any) -> Callable[[], None]:
    return lambda: do(what)


def _recover(servers: Servers, crew: Crew) -> None:
    """All is well again, and so callers must be served, unless the sale is fenced for good."""
    servers.heal()
    goal = crew.read().accepted + ORDERS

    def served() -> bool:
        all_there = crew.all_at_work() and crew.read().accepted >= goal
        return all_there or _fenced(servers)

    wait_for("orders after all faults", served)


def _rebuild(servers: Servers, crew: Crew) -> None:
    """Brings a fenced sale back as a person would, and sells on."""

    async def bring_back() -> None:
        url, ledger_url = servers.inside_url, crew.ledger_url
        async with (
            Engine(url, durability="memory", sweep_ms=0, timeout_ms=30_000) as engine,
            Ledger(ledger_url) as ledger,
        ):
            assert (await rebuild(engine, ledger, SALE)).done, "the rebuild is not done"
            assert (await engine.resume(SALE)).ok, "the rebuilt sale does not go on"

    asyncio.run(bring_back())
    crew.add_keeper()
    crew.add_load()
    crew.wait_for_orders(ORDERS)
    trouble = crew.finish(crew.loads[-1:])
    _settle(servers, crew, ["ledger"])
    trouble += crew.finish(crew.keepers[-1:])
    if trouble:
        raise RuntimeError("; ".join(trouble))


def _fenced(servers: Servers) -> bool:
    return header_of(servers, "state") == ["fenced"]


def _settle(servers: Servers, crew: Crew, groups: Sequence[str]) -> None:
    """The consumers and the ledger have come to the end of the stream."""
    if _fenced(servers):
        return
    servers.let_time_pass()

    def settled() -> bool:
        with contextlib.suppress(redis.RedisError, OSError):
            seen = observe(servers.inside_url, SALE)
            events = {event.seq for event in seen.events}
            return all(seen.acked.get(group, set()) >= events for group in groups)
        return False

    wait_for("consumers and ledger at the end of the stream", settled, pause_s=0.2)
