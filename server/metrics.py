"""What the intake counts. docs/observability.md lists it for whoever reads it.

An answer costs its request one look into a dict and one bucket; once a second all of it becomes
samples (samples.py). No label ever holds what a client or a buyer chose: verbs and codes are ours,
and a scrape shows a bounded number of sales.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import CollectorRegistry

from seckill.engine import Engine
from seckill.errors import SeckillError, UnknownSale, UpgradeNeeded
from seckill.groups import GroupState, groups_of
from seckill.lane import SIZE_BOUNDS, TRIP_BOUNDS_S, Lane
from seckill.queue import View
from seckill.snapshot import Snapshot
from seckill.tally import Histogram

from . import families
from .etas import EtaErrors
from .problems import ANSWERS as KINDS
from .problems import BUSY, GATE_UNAVAILABLE, KEYS_UNAVAILABLE, LEDGER_UNAVAILABLE, RAISED
from .samples import Alone, Sample, Shared, Store, as_metrics
from .socket_end import ENDS

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

FLUSH_S: Final = 1.0
READY_S: Final = 1.0
# A mall's own gate may invent codes. More series than this become "other".
SERIES_MAX: Final = 500
OTHER: Final = "other"
# The verb whose answers are the answers to orders.
RESERVE: Final = "reserve"
# Verbs whose answers are counted by themselves as well.
_COUNTED: Final = {"join": families.JOINS, "place": families.PLACES}
# Sales that one scrape shows, and how many it looks at to find them.
SALES_MAX: Final = 20
LOOKS_MAX: Final = 100
LOOK_S: Final = 1.0

ANSWER_BOUNDS_S: Final = tuple(
    ms / 1000 for ms in (0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000)
)

# Prometheus does not see the first of a series that begins with it, so what alerts and graphs look
# for begins at 0.
_OURS: Final = (BUSY, GATE_UNAVAILABLE, KEYS_UNAVAILABLE, LEDGER_UNAVAILABLE)
_KINDS: Final = (*KINDS.values(), *RAISED.values(), *_OURS)
_FAILED: Final = tuple(sorted({kind.code for kind in _KINDS if kind.http >= 500}))
_ORDERED: Final = ("created", "sold_out")

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_STATM: Final = Path("/proc/self/statm")

_log = logging.getLogger("seckill.server")


class _Answers:
    """The answers of one verb with one code."""

    __slots__ = ("count", "seconds")

    def __init__(self, seconds: Histogram) -> None:
        self.count = 0
        self.seconds = seconds


class _Seen(NamedTuple):
    """What was read of a lane's histogram before."""

    counts: tuple[int, ...]
    sum: float


class Metrics:
    """The numbers of one intake in one process. It belongs to one event loop. ``hot_orders`` and
    ``hot_places`` are what hot_route.py has answered; it counts them itself, as sockets.py does
    with ``open_sockets``, ``feed_frames`` and ``socket_ends`` (by reason)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._answers: dict[tuple[str, str], _Answers] = {}
        self._seconds: dict[str, Histogram] = {}
        self._orders: Counter[str] = Counter()
        self.hot_orders = self.hot_places = 0
        self.open_sockets = self.feed_frames = 0
        self.socket_ends: Counter[str] = Counter(dict.fromkeys(ENDS, 0))
        self._socket_verbs = {("buy", code): 0 for code in _ORDERED}
        self.etas = EtaErrors(engine)
        self._batch_orders = Histogram(SIZE_BOUNDS)
        self._script_s = Histogram(TRIP_BOUNDS_S)
        self._seen: WeakKeyDictionary[Lane, tuple[_Seen, _Seen]] = WeakKeyDictionary()
        self._loop_lag_s = Histogram(ANSWER_BOUNDS_S)
        self._in_flight: Callable[[], int] = int
        self._ready: Callable[[], Awaitable[object]] = engine.now_ms
        self._is_ready = False
        self._ended = False
        self._store: Store = Alone()
        self._sales = _Sales(engine)
        self._task: asyncio.Task[None] | None = None
        self._probe: asyncio.Task[None] | None = None

    def answered(self, verb: str, code: str, seconds: float) -> None:
        """A request was answered. ``verb`` is what was asked (a handler's name), ``code`` the
        stable code of the answer."""
        answers = self._answers.get((verb, code)) or self._first(verb, code)
        answers.count += 1
        answers.seconds.add(seconds)

    def ordered(self, codes: Iterable[str]) -> None:
        """The orders of one batch were answered, one code each. An order that is a request of its
        own needs no more than ``answered``."""
        self._orders.update(codes)

    def socket_answered(self, op: str, code: str) -> None:
        """A message of a socket was answered, besides being a request that was."""
        verbs, labels = self._socket_verbs, (op, code)
        if labels not in verbs:
            if len(verbs) >= SERIES_MAX:
                labels = (OTHER, OTHER)
            verbs.setdefault(labels, 0)
        verbs[labels] += 1

    async def start(
        self, in_flight: Callable[[], int], ready: Callable[[], Awaitable[object]]
    ) -> None:
        """Begins to put numbers where a scrape finds them. ``in_flight`` counts requests under way;
        ``ready`` raises SeckillError unless this process can take orders.

        With PROMETHEUS_MULTIPROC_DIR set, workers that share it answer a scrape for each other.
        Raises OSError when that directory can't be written to.
        """
        self._in_flight, self._ready = in_flight, ready
        if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            self._store = Shared(Path(folder) / "seckill")
        await self._look_ready()
        self._store.write(self._samples())
        self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Puts down the last numbers. Can be repeated."""
        tasks = [task for task in (self._task, self._probe) if task is not None]
        self._task = self._probe = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
            self._ended = True
            self._store.write(self._samples())
            self._store.close()

    async def render(self) -> bytes:
        """The numbers of all workers in Prometheus's text format, see CONTENT_TYPE. Those of other
        workers are up to a second old."""
        self._store.write(self._samples())
        sales = await self._sales.look()
        # Many workers have many files to read, and this one has orders to answer meanwhile.
        return await asyncio.to_thread(_text, self._store, sales)

    def _first(self, verb: str, code: str) -> _Answers:
        if len(self._answers) >= SERIES_MAX:
            verb = code = OTHER
        if verb not in self._seconds:
            self._seconds[verb] = Histogram(ANSWER_BOUNDS_S)
        return self._answers.setdefault((verb, code), _Answers(self._seconds[verb]))

    async def _run(self) -> None:
        while True:
            slept_s = monotonic()
            await asyncio.sleep(FLUSH_S)
            self._loop_lag_s.add(max(0.0, monotonic() - slept_s - FLUSH_S))
            try:
                self._store.write(self._samples())
            except Exception:  # noqa: BLE001 - a full disk must end neither this nor the intake
                _log.exception("metrics could not be written")
            # By itself, because while Redis hangs the others still read our numbers.
            if self._probe is None or self._probe.done():
                self._probe = asyncio.create_task(self._look_ready())

    async def _look_ready(self) -> None:
        try:
            async with asyncio.timeout(READY_S):
                await self._ready()
        except (SeckillError, TimeoutError):
            self._is_ready = False
        except Exception:  # noqa: BLE001 - whatever it is, nobody should be sent here
            self._is_ready = False
            _log.exception("readiness could not be told")
        else:
            self._is_ready = True

    def _samples(self) -> Iterator[Sample]:
        orders = Counter(dict.fromkeys(_ORDERED, 0))
        orders.update(self._orders)
        failed = Counter({code: self._orders[code] for code in _FAILED})
        for (verb, code), answers in self._answers.items():
            yield Sample(families.ANSWERS, (verb, code), answers.count)
            if verb == RESERVE:
                orders[code] += answers.count
            elif verb in _COUNTED:
                yield Sample(_COUNTED[verb], (code,), answers.count)
            if code in failed:
                failed[code] += answers.count
        for verb, seconds in self._seconds.items():
            yield Sample(families.ANSWER_SECONDS, (verb,), seconds)
        for code, count in orders.items():
            yield Sample(families.ORDERS, (code,), count)
        yield Sample(families.HOT_ORDERS, (), self.hot_orders)
        yield Sample(families.HOT_PLACES, (), self.hot_places)
        yield Sample(families.SOCKETS, (), self.open_sockets)
        for labels, count in self._socket_verbs.items():
            yield Sample(families.SOCKET_VERBS, labels, count)
        yield Sample(families.SOCKET_FRAMES, (), self.feed_frames)
        for reason, count in self.socket_ends.items():
            yield Sample(families.SOCKET_ENDS, (reason,), count)
        self.etas.look()
        yield Sample(families.ETA_ERROR, (), self.etas.seconds)
        for code, count in failed.items():
            yield Sample(families.FAILURES, (code,), count)
        lanes = list(self._engine.lanes().values())
        self._read(lanes)
        yield Sample(families.BATCH_ORDERS, (), self._batch_orders)
        yield Sample(families.SCRIPT_SECONDS, (), self._script_s)
        lanes = [*lanes, *self._engine.queue.lanes().values()]
        yield Sample(families.LANE_DEPTH, (), sum(lane.depth for lane in lanes))
        yield Sample(
            families.LANE_FILL, (), max((lane.depth / lane.depth_max for lane in lanes), default=0)
        )
        yield Sample(families.IN_FLIGHT, (), self._in_flight())
        yield Sample(families.READY, (), self._is_ready)
        yield Sample(families.WORKERS, (), 1)
        yield Sample(families.WORKER_STARTS, (), 1)
        yield Sample(families.WORKER_ENDS, (), self._ended)
        yield Sample(families.LOOP_LAG, (), self._loop_lag_s)
        yield Sample(families.CPU, (), time.process_time())
        if _STATM.exists():
            yield Sample(families.MEMORY, (), int(_STATM.read_text().split()[1]) * _PAGE_BYTES)

    def _read(self, lanes: Iterable[Lane]) -> None:
        """Adds what the lanes counted since the last time. A lane goes when its sale is made anew,
        and what it counted must stay."""
        for lane in lanes:
            before = self._seen.get(lane, (None, None))
            self._seen[lane] = (
                _grown(self._batch_orders, lane.sizes, before[0]),
                _grown(self._script_s, lane.trip_s, before[1]),
            )


class _Look(NamedTuple):
    """A sale, those who read its events, and its queue if it has one."""

    sale: Snapshot
    groups: list[GroupState]
    queue: View | None


class _Sales:
    """The sales of a scrape, looked at for it and at most once a second."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._settled: set[str] = set()
        self._fresh_until_s = 0.0
        self._looking = asyncio.Lock()
        self._found: list[Metric] = []

    async def look(self) -> list[Metric]:
        """Up to SALES_MAX sales: those that sell first, then the next ones. None when Redis does
        not answer in a second."""
        async with self._looking:
            if monotonic() >= self._fresh_until_s:
                try:
                    async with asyncio.timeout(LOOK_S):
                        found = await self._looks()
                except (SeckillError, TimeoutError):
                    found = []
                self._found = as_metrics(_sale_samples(found))
                self._fresh_until_s = monotonic() + LOOK_S
        return self._found

    async def _looks(self) -> list[_Look]:
        running = []
        names = [name for name in await self._engine.sales() if name not in self._settled]
        for name in names[:LOOKS_MAX]:
            try:
                look = _Look(
                    await self._engine.snapshot(name),
                    await self._groups(name),
                    await self._queue(name),
                )
            except (UnknownSale, UpgradeNeeded):
                continue  # Its creation was cut short, or another version made it.
            if look.sale.state == "settled" and not any(map(_owes, look.groups)):
                self._settled.add(name)
            else:
                running.append(look)
        running.sort(key=_by_interest)
        return running[:SALES_MAX]

    async def _groups(self, sale: str) -> list[GroupState]:
        try:
            return await groups_of(self._engine, sale)
        except UnknownSale:
            return []  # It is fenced, and Redis has lost its events.

    async def _queue(self, sale: str) -> View | None:
        found = await self._engine.queue.look(sale)
        return found if isinstance(found, View) else None


def _owes(group: GroupState) -> bool:
    """Whether its consumers have something to do."""
    return bool(group.unread or group.pending or group.letters)


def _by_interest(look: _Look) -> tuple[bool, bool, int]:
    now = look.sale
    return now.phase != "selling", now.ends_ms <= now.at_ms, now.opens_ms


def _sale_samples(looks: Iterable[_Look]) -> Iterator[Sample]:
    for now, groups, queue in looks:
        for state in ("available", "held", "confirmed"):
            units = sum(getattr(stock, state) for stock in now.stock.values())
            yield Sample(families.SALE_UNITS, (now.sale, state), units)
        yield Sample(families.SALE_ORDERS, (now.sale,), now.orders)
        yield Sample(families.SALE_PHASE, (now.sale, now.phase.replace(" ", "_")), 1)
        if queue is not None:
            yield Sample(families.QUEUE_WAITING, (now.sale,), queue.waiting)
            yield Sample(families.QUEUE_CALLED, (now.sale,), queue.called)
            yield Sample(families.QUEUE_LAPSED, (now.sale,), queue.lapses)
            yield Sample(families.QUEUE_LIVE, (now.sale,), queue.live)
        for group in groups:
            labels = (now.sale, group.name)
            yield Sample(families.GROUP_UNREAD, labels, group.unread)
            yield Sample(families.GROUP_AGE, labels, group.age_ms / 1000)
            yield Sample(families.DEAD_LETTERS, labels, group.letters or 0)


def _grown(into: Histogram, source: Histogram, before: _Seen | None) -> _Seen:
    now = _Seen(tuple(source.counts), source.sum)
    if before is None:
        into.grow(now.counts, now.sum)
    elif now != before:
        counts = [new - old for new, old in zip(now.counts, before.counts, strict=True)]
        into.grow(counts, now.sum - before.sum)
    return now


class _Scrape:
    """What prometheus_client asks for metrics."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _text(store: Store, sales: list[Metric]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape([*store.collect(), *sales]))
    text: bytes = generate_latest(registry)
    return text
