"""The same engine for threads: Django, Flask, scripts.

    caller threads ──inbox──▶ one loop thread, with one async engine ──▶ lanes ──▶ Redis
          ▲                          │
          └──── value or error ──────┘

The thread starts with the first call in a process, so an engine may be made while a module is
imported and used on both sides of a fork (gunicorn --preload, uWSGI): each process gets a thread of
its own. Calls of many threads meet in the same lanes, so they travel in batches.

Handing a call over by an inbox, with one wake for all that wait there, takes a third less time than
asyncio.run_coroutine_threadsafe; uvloop made no difference that could be measured.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import selectors
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
)
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

from seckill.engine import Engine as AsyncEngine
from seckill.engine import StockOutcome
from seckill.errors import EngineClosed

if TYPE_CHECKING:
    from seckill.embedded import EmbeddedServer
    from seckill.order import Order, Outcome
    from seckill.redis import Durability, ServerFacts
    from seckill.sale import Sale
    from seckill.snapshot import Snapshot
    from seckill.stream import Event

__all__ = ["Engine"]

HISTORY_COUNT: Final = 500

_log = logging.getLogger("seckill.sync")
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Engine:
    """Sells units and never one too many.

    ``durability="aof"`` demands a server that has every acknowledged order on disk;
    ``"memory"`` accepts that a crash may lose acknowledged orders. ``timeout_ms`` is how long a
    call may take before its outcome is called unknown. ``lane_depth`` bounds the orders that wait,
    ``batch_max`` those of one script call. ``sweep_ms`` is the pause between two sweeps of the
    deadlines; 0 leaves sweeping to other processes.

    Any thread may call it; the first call starts it. It ends with ``stop``, at the end of a
    ``with`` block, or with the process. A call that is interrupted (Ctrl-C) goes on without its
    caller, who learns the outcome by the identical call. Every call raises EngineClosed after
    ``stop``, and RuntimeError inside the engine's own thread, where waiting would never end.
    """

    def __init__(
        self,
        url: str,
        *,
        durability: Durability = "aof",
        allow_unverified: bool = False,
        timeout_ms: int = 3_000,
        lane_depth: int = 10_000,
        batch_max: int = 256,
        sweep_ms: int = 500,
    ) -> None:
        def make(url: str) -> AsyncEngine:
            return AsyncEngine(
                url,
                durability=durability,
                allow_unverified=allow_unverified,
                timeout_ms=timeout_ms,
                lane_depth=lane_depth,
                batch_max=batch_max,
                sweep_ms=sweep_ms,
            )

        make(url)  # It checks the arguments now, and not at the first call.
        self.url = url
        self._make = make
        self._durability = durability
        self._server: EmbeddedServer | None = None
        self._home: _Home | None = None
        self._stopped = False

    @property
    def started(self) -> bool:
        """Whether it runs in this process: between start or the first call, and stop."""
        home = self._home
        return home is not None and home.serving

    @property
    def facts(self) -> ServerFacts | None:
        """What is known of the server, once started."""
        home = self._home
        return home.engine.facts if home is not None and home.serving else None

    @classmethod
    def embedded(cls, data_dir: str | Path, **options: Any) -> Self:
        """An engine with a server of its own, whose data lives in ``data_dir``.

        Takes the options of ``Engine``. Needs the extra ``embedded``, or a server named by
        SECKILL_REDIS_SERVER or found on PATH. Raises EmbeddedError at start.
        """
        from seckill.embedded import EmbeddedServer

        engine = cls("", **options)
        fsync = "always" if engine._durability == "aof" else "everysec"
        engine._server = EmbeddedServer(data_dir, appendfsync=fsync)
        return engine

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Connects and checks the server.

        Raises UnsuitableServer, RedisUnavailable, EmbeddedError or InvalidInput (the URL).
        """
        self._stopped = False
        self._here()

    def stop(self) -> None:
        """Answers what waits, then disconnects and stops an embedded server. Can be repeated."""
        with _shared.lock:
            self._stopped = True
            home = self._home
        if home is not None and not home.abandoned:
            home.stop()
        self._home = None

    # -- a sale's life ------------------------------------------------------------------------

    def create(self, sale: Sale) -> Outcome:
        """Writes a sale. CREATED, EXISTS (the same definition), CONFLICT (another one)."""
        return self._call(AsyncEngine.create, sale)

    def open(self, sale: str) -> Outcome:
        """Lets a created sale sell from its opens_at on. DONE, ALREADY, PAUSED or CLOSED."""
        return self._call(AsyncEngine.open, sale)

    def pause(self, sale: str, reason: str = "") -> Outcome:
        """Stops new orders; held ones can still be paid. DONE, ALREADY, NOT_OPEN or CLOSED."""
        return self._call(AsyncEngine.pause, sale, reason)

    def resume(self, sale: str) -> Outcome:
        """Lets a paused sale sell again. DONE, ALREADY, NOT_OPEN or CLOSED."""
        return self._call(AsyncEngine.resume, sale)

    def close(self, sale: str) -> Outcome:
        """Ends a sale for good; it is settled once no unit is held. DONE or ALREADY."""
        return self._call(AsyncEngine.close, sale)

    def sales(self) -> list[str]:
        """The ids of all sales on this server, sorted."""
        return self._call(AsyncEngine.sales)

    def sale(self, sale: str) -> Sale:
        """A sale's definition. Raises UnknownSale."""
        return self._call(AsyncEngine.sale, sale)

    def now_ms(self) -> int:
        """The server's clock, in Unix milliseconds. All times of a sale are on this clock."""
        return self._call(AsyncEngine.now_ms)

    def snapshot(self, sale: str) -> Snapshot:
        """One consistent picture of a sale. Raises UnknownSale."""
        return self._call(AsyncEngine.snapshot, sale)

    def add_stock(self, sale: str, sku: str, units: int, *, key: str) -> StockOutcome:
        """Adds units to a SKU, or takes some away when negative, while the sale runs.

        ``key`` names this change, so that repeating it changes nothing. DONE, ALREADY, CONFLICT,
        BELOW_COMMITTED, TOO_MANY_UNITS, UNKNOWN_SKU, CLOSED or UNKNOWN_SALE.
        """
        return self._call(AsyncEngine.add_stock, sale, sku, units, key=key)

    # -- an order's life ----------------------------------------------------------------------

    def reserve(
        self, sale: str, buyer: str, key: str, items: Mapping[str, int], *, attrs: str = ""
    ) -> Outcome:
        """Holds units for a buyer until the order's deadline.

        ``buyer`` is the mall's opaque id of the buyer, ``key`` the idempotency key of this wish,
        ``items`` maps SKU to units, ``attrs`` (512 bytes at most) travels in the event untouched.
        The identical call may be repeated blindly: it answers EXISTS with the same order.

        Returns CREATED or EXISTS with the order, or a refusal in the precedence of reserve.lua.
        Raises InvalidInput, Overloaded, OutcomeUnknown, RedisUnavailable, ServerFull.
        """
        return self._call(AsyncEngine.reserve, sale, buyer, key, items, attrs=attrs)

    def begin_payment(self, sale: str, order: str, *, buyer: str = "") -> Outcome:
        """The buyer is on the way to the cashier: held becomes paying, with a new deadline.

        With ``buyer``, only that buyer's order is found. DONE, ALREADY, EXPIRED, RELEASED,
        CONFIRMED, REFUNDED, UNKNOWN_ORDER or UNKNOWN_SALE.
        """
        return self._call(AsyncEngine.begin_payment, sale, order, buyer=buyer)

    def confirm(self, sale: str, order: str, payment: str) -> Outcome:
        """Money has arrived. ``payment`` is the payment's own id, so a repeat is recognised.

        DONE, ALREADY, CONFIRMED_LATE, LATE and DUPLICATE_PAYMENT (both: money is due back, see the
        refund_due event), REFUNDED, TOO_MANY_PAYMENTS, UNKNOWN_ORDER or UNKNOWN_SALE.
        """
        return self._call(AsyncEngine.confirm, sale, order, payment)

    def release(self, sale: str, order: str, *, buyer: str = "") -> Outcome:
        """Gives a held or paying order up; its units go back on sale.

        DONE, ALREADY, EXPIRED, CONFIRMED, REFUNDED, UNKNOWN_ORDER or UNKNOWN_SALE.
        """
        return self._call(AsyncEngine.release, sale, order, buyer=buyer)

    def refund(
        self, sale: str, order: str, refund: str, *, return_units: bool, return_limit: bool
    ) -> Outcome:
        """A confirmed order's money goes back. ``return_units`` puts its units on sale again (else
        the total falls), ``return_limit`` lets the buyer buy as many again.

        DONE, ALREADY, CONFLICT, REFUNDED (by another refund), NOT_CONFIRMED, UNKNOWN_ORDER or
        UNKNOWN_SALE.
        """
        choices = {"return_units": return_units, "return_limit": return_limit}
        return self._call(AsyncEngine.refund, sale, order, refund, **choices)

    def order(self, sale: str, order: str, *, buyer: str = "") -> Order | None:
        """An order as it is now, or None. With ``buyer``, only that buyer's order is found.

        Raises UnknownSale.
        """
        return self._call(AsyncEngine.order, sale, order, buyer=buyer)

    # -- events -------------------------------------------------------------------------------

    def events(
        self,
        sale: str,
        group: str,
        *,
        consumer: str = "",
        count: int = 100,
        reclaim_ms: int = 60_000,
        follow: bool = True,
    ) -> Iterator[list[Event]]:
        """Batches of events for one of a consumer group, from the sale's first event on.

        A batch is acknowledged when the next is asked for; leaving the loop before, or dying, hands
        it to another consumer of the group after ``reclaim_ms``, so an event may come twice.
        ``consumer`` must be unique in the group and defaults to host and process id.
        ``follow=False`` ends when nothing is left. Raises UnknownSale, and
        RedisUnavailable when the server goes away: call again, nothing is lost.
        """
        home = self._here()
        batches = home.engine.events(
            sale,
            group,
            consumer=consumer,
            count=count,
            reclaim_ms=reclaim_ms,
            follow=follow,
        )
        return home.iterate(batches, at_once=1)

    def history(self, sale: str, *, through_seq: int | None = None) -> Iterator[Event]:
        """Every event of a sale from the first, without a group. Raises UnknownSale."""
        home = self._here()
        events = home.engine.history(sale, through_seq=through_seq)
        return home.iterate(events, at_once=HISTORY_COUNT)

    # -- inside -------------------------------------------------------------------------------

    def _call(
        self,
        verb: Callable[Concatenate[AsyncEngine, _P], Coroutine[Any, Any, _T]],
        *args: _P.args,
        **options: _P.kwargs,
    ) -> _T:
        home = self._home
        if home is None or not home.serving:
            home = self._here()
        return home.call(verb(home.engine, *args, **options))

    def _here(self) -> _Home:
        """The thread of this process, started if there is none. All who come while it starts wait
        for the same attempt: on a server that is stuck, the last would else wait for all others."""
        with _shared.lock:
            if self._stopped:
                raise EngineClosed("the engine was stopped; start it again, or make a new one")
            home = self._home
            if home is None or home.abandoned:
                home = self._home = _Home(self.url, self._make, self._server)
        home.refuse_own_thread()
        try:
            self.url = home.ready.result()
        except BaseException:
            with _shared.lock:
                # Interrupted while it starts, it goes on starting, and the next call finds it.
                if home.ready.done() and self._home is home:
                    self._home = None
            raise
        return home


class _Call(Generic[_T]):
    """A call on its way. ``answered`` is a lock that its caller waits for: a Future costs more."""

    __slots__ = ("answered", "coroutine", "error", "value")

    value: _T

    def __init__(self, coroutine: Coroutine[Any, Any, _T]) -> None:
        self.coroutine = coroutine
        self.error: BaseException | None = None
        self.answered = threading.Lock()
        self.answered.acquire()

    async def run(self) -> None:
        try:
            self.value = await self.coroutine
        except asyncio.CancelledError:
            self.error = EngineClosed("the engine was stopped before the call was answered")
        except BaseException as error:  # noqa: BLE001 - it is the caller's, in its own thread
            self.error = error
        finally:
            self.answered.release()

    def refuse(self) -> None:
        self.coroutine.close()
        self.error = EngineClosed("the engine was stopped; the call was never made")
        self.answered.release()

    def result(self) -> _T:
        self.answered.acquire()
        if self.error is None:
            return self.value
        try:
            raise self.error
        finally:
            del self  # The error knows this frame, and nothing should keep both alive.


class _Home:
    """One thread with an event loop and the engine that lives there. It is used once.

    ``ready`` gives the server's URL once the engine has started, or why it did not. ``abandoned``
    says that it can't be used any more: its thread has ended, or belongs to the parent process.
    """

    def __init__(
        self, url: str, make: Callable[[str], AsyncEngine], server: EmbeddedServer | None
    ) -> None:
        self.engine = make(url)
        self.ready: Future[str] = Future()
        self.serving = False
        self.abandoned = False
        self._make = make
        self._server = server
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        # Re-entrant, because an abandoned iterator is closed by the garbage collector, which may
        # come between any two lines of the thread that holds this lock.
        self._lock = threading.RLock()
        self._inbox: deque[_Call[Any]] = deque()
        self._woken = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._readers: set[_Reader[Any]] = set()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="seckill", daemon=True)
        _shared.homes.add(self)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Runs the coroutine over there, waits, and returns or raises what it does."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            self.refuse_own_thread()
        call = _Call(coroutine)
        self._send(call)
        return call.result()

    def iterate(self, source: AsyncIterator[_T], *, at_once: int) -> Iterator[_T]:
        """What the source gives, fetched ``at_once`` at a time."""
        reader = _Reader(source)
        try:
            while items := self.call(reader.take(at_once, self._readers)):
                yield from items
        finally:
            # Nobody waits: it may be the garbage collector that leaves the loop, in any thread.
            self._send(_Call(reader.close()))

    def stop(self) -> None:
        """Answers what waits and ends the thread. Raises what ending the engine raises."""
        self.refuse_own_thread()
        with self._lock:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def leave(self) -> None:
        """In a forked child: the thread stayed with the parent. Its loop and connections must be
        left alone; but closing them, as the garbage collector may, would take them out of the
        epoll set that both processes share, unless our way to it is closed before."""
        self.abandoned, self.serving = True, False
        self._selector.close()

    def refuse_own_thread(self) -> None:
        """Raises RuntimeError in the loop's thread, which would wait for itself for ever."""
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "seckill.sync was called in its own thread; there, use seckill.Engine"
            )

    # -- in the caller's thread, or in the loop's -------------------------------------------------

    def _send(self, call: _Call[Any]) -> None:
        with self._lock:
            if not self.serving:
                call.refuse()
                return
            self._inbox.append(call)
            if not self._woken:
                # Whoever comes before the loop has looked needs no wake of its own.
                self._woken = True
                self._loop.call_soon_threadsafe(self._collect)

    # -- in the loop's thread ---------------------------------------------------------------------

    def _collect(self) -> None:
        with self._lock:
            calls, self._inbox = self._inbox, deque()
            self._woken = False
        for call in calls:
            task = self._loop.create_task(call.run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:  # noqa: BLE001 - it reaches whoever starts the engine
            if not self.ready.done():
                self.ready.set_exception(error)
            else:
                _log.exception("the engine did not end in good order")
        finally:
            self._close()

    async def _live(self) -> None:
        url = self.engine.url
        if self._server is not None:
            # It blocks, and may: nobody else uses this loop yet.
            url = self._server.start()
            self.engine = self._make(url)
        await self.engine.start()
        self.serving = True
        self.ready.set_result(url)
        try:
            await self._ending.wait()
        finally:
            with self._lock:
                self.serving = False
            self._collect()
            for reader in self._readers:
                reader.cancel()
            # Everything but a reader ends by itself, by the timeout of its own call.
            while self._tasks:
                await asyncio.wait(self._tasks)
            await self.engine.aclose()

    def _close(self) -> None:
        self.abandoned, self.serving = True, False
        try:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            with self._lock:
                self._loop.close()
            if self._server is not None:
                self._server.stop()
            _shared.homes.discard(self)


class _Reader(Generic[_T]):
    """Takes from an asynchronous iterator step by step. A step may wait for ever."""

    def __init__(self, source: AsyncIterator[_T]) -> None:
        self._source = source
        self._step: asyncio.Task[Any] | None = None

    async def take(self, at_once: int, readers: set[_Reader[Any]]) -> list[_T]:
        self._step = asyncio.current_task()
        readers.add(self)
        items: list[_T] = []
        try:
            async for item in self._source:
                items.append(item)
                if len(items) == at_once:
                    break
        finally:
            readers.discard(self)
            self._step = None
        return items

    def cancel(self) -> None:
        if self._step is not None:
            self._step.cancel()

    async def close(self) -> None:
        # A step is still there if its caller was interrupted.
        if self._step is not None:
            self._step.cancel()
            await asyncio.wait({self._step})
        if isinstance(self._source, AsyncGenerator):
            await self._source.aclose()


class _Shared:
    """What all engines of this process share. A forked child begins anew."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.homes: set[_Home] = set()

    def forked(self) -> None:
        self.lock = threading.Lock()
        for home in self.homes:
            home.leave()
            _inherited.append(home)
        self.homes = set()

    def exit(self) -> None:
        for home in list(self.homes):
            home.stop()


_inherited: list[_Home] = []
_shared: Final = _Shared()
os.register_at_fork(after_in_child=_shared.forked)
# Daemon threads are not waited for, so this is where orders under way get their answers.
atexit.register(_shared.exit)
