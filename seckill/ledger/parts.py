"""Reading, making and sending at the same time, a part each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

__all__ = ["Parts", "ahead"]


class Parts:
    """Sends parts one after the other, each while the next one is made."""

    def __init__(self, put: Callable[[int, list[list[str]]], Coroutine[Any, Any, None]]) -> None:
        self._put = put
        self._number = 0
        self._sending: asyncio.Task[None] | None = None

    async def send(self, part: list[list[str]]) -> None:
        """Sends a part, once the one before is there. Raises what became of that one."""
        await self.flush()
        self._sending = asyncio.create_task(self._put(self._number, part))
        self._number += 1

    async def flush(self) -> None:
        """Waits until all parts are there."""
        if self._sending is not None:
            await self._sending

    async def stop(self) -> None:
        """Leaves nothing under way behind."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)


async def ahead(parts: AsyncIterator[Sequence[Any]]) -> AsyncIterator[Sequence[Any]]:
    """The same, each part asked for while the one before is being used."""
    coming = asyncio.ensure_future(anext(parts, None))
    try:
        while (part := await coming) is not None:
            coming = asyncio.ensure_future(anext(parts, None))
            yield part
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
