"""The same engine for threads: Django, Flask, scripts. Every call is the one of ``seckill.Engine``
and waits for its outcome; tests hold signatures and docstrings of the two together.

The engine's thread (see loop_thread.py) starts with the first call in a process, so an engine may
be made while a module is imported and used on both sides of a fork (gunicorn --preload, uWSGI):
each process gets a thread of its own. The calls of many threads meet in the same lanes, so they
travel in batches.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Self, TypeVar

from seckill.durability import Durability, fsync_of
from seckill.engine import Engine as AsyncEngine
from seckill.errors import EngineClosed, SeckillError
from seckill.loop_thread import LoopThread
from seckill.sync_queues import Queues

if TYPE_CHECKING:
    from seckill.embedded import EmbeddedServer
    from seckill.lane import Lane
    from seckill.order import Order, Outcome, StockOutcome, Wish
    from seckill.redis import ServerFacts
    from seckill.sale import Sale
    from seckill.snapshot import Snapshot
    from seckill.stream import Event

__all__ = ["Engine"]

# Events that history fetches at once: a call for each would cost more than reading it.
HISTORY_COUNT: Final = 500

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Engine:
    """Sells units and never one too many.

    ``durability="aof"`` demands a server that has every acknowledged order on disk,
    ``"replicas:N"`` waits until N replicas have it, ``"memory"`` accepts that a crash may lose
    some. ``timeout_ms`` is how long a call may take before its outcome is called unknown.
    ``lane_depth`` bounds the orders that wait,
    ``batch_max`` those of one script call. ``sweep_ms`` is the pause between two sweeps of the
    deadlines; 0 leaves sweeping to other processes. ``lease_ms`` is how old "sold out" and "not
    open" may be when a storm is answered from memory; 0 always asks Redis.

    Any thread may use it, as a context manager, with ``start`` and ``stop``, or without either: the
    first call starts it, and it ends with the process. A call that is interrupted (Ctrl-C) goes on
    without its caller, who learns the outcome by the identical call. After ``stop`` every call
    raises EngineClosed, until ``start``.
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
        lease_ms: int = 200,
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
                lease_ms=lease_ms,
            )

        make(url)  # Which checks the arguments.
        self.url = url
        self._make = make
        self._durability = durability
        self._server: EmbeddedServer | None = None
        self._thread: LoopThread | None = None
        self._stopped = False
        self.queue = Queues(self)

    @property
    def started(self) -> bool:
        """Whether it runs in this process: between start, or the first call, and stop."""
        return self._thread is not None and self._thread.serving

    @property
    def facts(self) -> ServerFacts | None:
        """What is known of the server once started."""
        thread = self._thread
        return thread.engine.facts if thread is not None and thread.serving else None

    @classmethod
    def embedded(cls, data_dir: str | Path, **options: Any) -> Self:
        """An engine with a server of its own, whose data lives in ``data_dir``.

        Takes the options of ``Engine``. Needs the extra ``embedded``, or a server named by
        SECKILL_REDIS_SERVER or found on PATH. Raises EmbeddedError at start.
        """
        from seckill.embedded import EmbeddedServer

        engine = cls("", **options)
        engine._server = EmbeddedServer(data_dir, appendfsync=fsync_of(engine._durability))
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
        self._running()

    def stop(self) -> None:
        """Answers what waits, then disconnects and stops an embedded server. Can be repeated."""
        with _lock:
            self._stopped = True
            thread = self._thread
        if thread is not None and not thread.gone:
            thread.stop()

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
        """One consistent picture of a sale. Raises UnknownSale, UpgradeNeeded."""
        return self._call(AsyncEngine.snapshot, sale)

    def add_stock(self, sale: str, sku: str, units: int, *, key: str) -> StockOutcome:
        """Adds units to a SKU, or takes some away when negative, while the sale runs.

        ``key`` names this change, so that repeating it changes nothing. DONE, ALREADY, CONFLICT,
        BELOW_COMMITTED, TOO_MANY_UNITS, UNKNOWN_SKU, CLOSED or UNKNOWN_SALE.
        """
        return self._call(AsyncEngine.add_stock, sale, sku, units, key=key)

    # -- an order's life ----------------------------------------------------------------------

    def reserve(
        self,
        sale: str,
        buyer: str,
        key: str,
        items: Mapping[str, int],
        *,
        attrs: str = "",
        token: str = "",
    ) -> Outcome:
        """Holds units for a buyer until the order's deadline.

        ``buyer`` is the mall's opaque id of the buyer, ``key`` the idempotency key of this wish,
        ``items`` maps SKU to units, ``attrs`` (512 bytes at most) travels in the event untouched.
        ``token`` is the buyer's turn in a sale that has a queue (see ``queue``).
        The identical call may be repeated blindly: it answers EXISTS with the same order.

        Returns CREATED or EXISTS with the order, or a refusal in the precedence of reserve.lua.
        Raises InvalidInput, Overloaded, OutcomeUnknown, RedisUnavailable, ServerFull.
        """
        return self._call(AsyncEngine.reserve, sale, buyer, key, items, attrs=attrs, token=token)

    def reserve_many(self, sale: str, wishes: Sequence[Wish]) -> list[Outcome | SeckillError]:
        """``reserve`` for many buyers at once, an answer each in the same order. What reserve would
        raise for a wish is that wish's answer, and harms no other.

        Raises what concerns them all: RedisUnavailable, EngineClosed, InvalidInput (the sale's id).
        """
        return self._call(AsyncEngine.reserve_many, sale, wishes)

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
        return self._call(
            AsyncEngine.refund,
            sale,
            order,
            refund,
            return_units=return_units,
            return_limit=return_limit,
        )

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
        after_trim: bool = False,
    ) -> Iterator[list[Event]]:
        """Batches of events for one of a consumer group, from the sale's first event on.

        A batch is acknowledged when the next is asked for; leaving the loop before, or dying, hands
        it to another consumer of the group after ``reclaim_ms``, so an event may come twice.
        ``consumer`` must be unique in the group, as host and process id are. ``follow=False`` ends
        when nothing is left; ``after_trim`` lets a new group begin after what was trimmed. Raises
        UnknownSale, EventsTrimmed, and RedisUnavailable: then call again, nothing is lost.
        """
        thread = self._running()
        batches = thread.engine.events(
            sale,
            group,
            consumer=consumer,
            count=count,
            reclaim_ms=reclaim_ms,
            follow=follow,
            after_trim=after_trim,
        )
        return thread.iterate(batches, at_once=1)

    def history(self, sale: str, *, through_seq: int | None = None) -> Iterator[Event]:
        """Every event of a sale from the first, without a group. Raises UnknownSale."""
        thread = self._running()
        events = thread.engine.history(sale, through_seq=through_seq)
        return thread.iterate(events, at_once=HISTORY_COUNT)

    def lanes(self) -> dict[str, Lane]:
        """The lanes that are open here, by sale, for whoever counts."""

        async def look(engine: AsyncEngine) -> dict[str, Lane]:
            return engine.lanes()

        return self._call(look)

    # -- inside -------------------------------------------------------------------------------

    def _call(
        self,
        verb: Callable[Concatenate[AsyncEngine, _P], Coroutine[Any, Any, _T]],
        *args: _P.args,
        **options: _P.kwargs,
    ) -> _T:
        thread = self._thread
        if thread is None or not thread.serving:
            thread = self._running()
        return thread.call(verb(thread.engine, *args, **options))

    def _running(self) -> LoopThread:
        """The thread of this process, started if there is none. All who come while it starts wait
        for the same attempt: on a server that is stuck, the last would else wait for all others."""
        with _lock:
            if self._stopped:
                raise EngineClosed("the engine was stopped; start it again, or make a new one")
            thread = self._thread
            if thread is None or thread.gone:
                # Here and not over there: a child forked in the middle of an import would wait for
                # its end for ever, and whoever forks waits for this lock.
                for module in _IMPORTED:
                    import_module(module)
                thread = self._thread = LoopThread(self.url, self._make, self._server)
        self.url = thread.wait_until_ready()
        return thread


# What an engine imports when it is first used.
_IMPORTED: Final = ("redis.asyncio", "redis.asyncio.retry", "redis.backoff", "redis.exceptions")

# Held for a moment at a time, and by whoever forks, so that a child never finds it taken.
_lock: Final = threading.RLock()
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)
