"""A group whose events go to an async function of the mall's own."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from inspect import iscoroutinefunction
from typing import Final

from seckill.consumer.line import Answer
from seckill.consumer.pace import Pace
from seckill.consumer.runner import LEASE_MS, Runner
from seckill.engine import Engine
from seckill.errors import InvalidInput, Refused
from seckill.sale import Sale, show
from seckill.stream import Event

__all__ = ["Consumer", "Handle"]

Handle = Callable[[Event], Awaitable[None]]

CAUSE_MAX: Final = 200
IN_FLIGHT_MAX: Final = 1_000


class Consumer(Runner):
    """Hands every event of all sales, or of ``sales``, to ``handle``, at least once, and those of
    one order (or of a sale itself) one after the other in their order. Orders do not wait for each
    other: up to ``in_flight`` calls run at once.

    ``await handle(event)`` that returns means: done. An exception, or more than ``timeout_s``
    without an end, means: not done, and it is called again after longer and longer waits. An event
    for which it raises ``Refused``, or fails for ``give_up_s`` from its first failure on, becomes a
    dead letter with the exception's text, and later events of its order wait behind it
    (`seckill dead`).

    Of all processes that run this group one is active for each sale; another one takes over within
    seconds. ``once`` ends when nothing is left. A group that is new begins at a sale's first event;
    ``after_trim`` lets it begin at the first that was not trimmed. The engine must be started; it
    belongs to the caller. Raises InvalidInput.
    """

    def __init__(
        self,
        engine: Engine,
        group: str,
        handle: Handle,
        *,
        sales: Sequence[str] = (),
        once: bool = False,
        in_flight: int = 32,
        timeout_s: float = 60.0,
        give_up_s: float = 86_400.0,
        after_trim: bool = False,
        pace: Pace | None = None,
        lease_ms: int = LEASE_MS,
    ) -> None:
        _check(handle, sales, in_flight, timeout_s, give_up_s)
        self._handle = handle
        self._timeout_s = timeout_s
        super().__init__(
            engine,
            group,
            self._attempt,
            sales=sales,
            once=once,
            in_flight=in_flight,
            give_up_s=give_up_s,
            after_trim=after_trim,
            pace=pace,
            lease_ms=lease_ms,
        )

    async def _attempt(self, sale: Sale, event: Event) -> Answer:
        try:
            async with asyncio.timeout(self._timeout_s) as patience:
                await self._handle(event)
        except Refused as error:
            return Answer(False, _text(error) or "refused", gone=True)
        except TimeoutError as error:
            late = f"no end within {self._timeout_s:g} s"
            return Answer(False, late if patience.expired() else _cause(error))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return Answer(False, _cause(error))  # The handler's own, of something that it awaited.
        except Exception as error:  # noqa: BLE001 - whatever it is, the event is not done
            return Answer(False, _cause(error))
        return Answer(True)


def _check(
    handle: Handle, sales: Sequence[str], in_flight: int, timeout_s: float, give_up_s: float
) -> None:
    # A plain function would do its work and then fail, for every event.
    if not iscoroutinefunction(handle) and not iscoroutinefunction(
        getattr(handle, "__call__", None)  # noqa: B004 - not whether, but how it is called
    ):
        raise InvalidInput("handle", "is not an async function", "pass `async def handle(event)`")
    if isinstance(sales, str):
        raise InvalidInput("sales", "is one text", f"pass the ids in a tuple: ({sales!r},)")
    if type(in_flight) is not int or not 1 <= in_flight <= IN_FLIGHT_MAX:
        raise InvalidInput(
            "in_flight", f"{show(in_flight)} is out of range", f"pass 1 to {IN_FLIGHT_MAX}"
        )
    for name, value in (("timeout_s", timeout_s), ("give_up_s", give_up_s)):
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise InvalidInput(name, f"{show(value)} is no time", "pass seconds above 0")


def _cause(error: BaseException) -> str:
    """Class and message, for a line in a table; no traceback, which would fill Redis."""
    text = _text(error)
    name = type(error).__name__
    return f"{name}: {text}"[:CAUSE_MAX] if text else name


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - somebody else's __str__ must not lose the event
        return ""
    plain = "".join(mark if mark.isprintable() else " " for mark in text[: 4 * CAUSE_MAX])
    return " ".join(plain.split())[:CAUSE_MAX]
