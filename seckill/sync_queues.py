"""The queues of an engine for threads: the words of ``seckill.queues.Queues``, which wait here."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from seckill.engine import Engine as AsyncEngine
from seckill.queues import Queues as AsyncQueues

if TYPE_CHECKING:
    from seckill.lane import Lane
    from seckill.queue import View
    from seckill.sync import Engine

__all__ = ["Queues"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _waiting(
    verb: Callable[Concatenate[AsyncQueues, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[Queues, _P], _T]:
    """The same verb for a thread: it waits, and returns or raises what the other does."""

    @wraps(verb)
    def call(self: Queues, /, *args: _P.args, **options: _P.kwargs) -> _T:
        async def ask(engine: AsyncEngine) -> _T:
            return await verb(engine.queue, *args, **options)

        return self._engine._call(ask)

    return call


class Queues:
    """The part of an engine that knows its sales' queues."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    join = _waiting(AsyncQueues.join)
    place = _waiting(AsyncQueues.place)
    leave = _waiting(AsyncQueues.leave)
    look = _waiting(AsyncQueues.look)
    draw = _waiting(AsyncQueues.draw)
    name_value = _waiting(AsyncQueues.name_value)
    commitment = _waiting(AsyncQueues.commitment)
    record = _waiting(AsyncQueues.record)
    rotate = _waiting(AsyncQueues.rotate)

    def tickets(self, sale: str) -> Iterator[bytes]:
        """The lines of a draw's closed list (tickets.txt), many at once; nothing before it is
        closed. Raises UnknownSale for a sale that has none."""
        thread = self._engine._running()
        return thread.iterate(thread.engine.queue.tickets(sale), at_once=1)

    def views(self) -> dict[str, View]:
        """The queues that were looked at here, by sale, for whoever counts."""

        async def look(engine: AsyncEngine) -> dict[str, View]:
            return engine.queue.views()

        return self._engine._call(look)

    def lanes(self) -> dict[str, Lane]:
        """The lanes of those who join that are open here, by sale, for whoever counts."""

        async def look(engine: AsyncEngine) -> dict[str, Lane]:
            return engine.queue.lanes()

        return self._engine._call(look)
