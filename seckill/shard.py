"""What a process knows of one sale: its definition, which never changes, and its lane."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from seckill.errors import EngineClosed
from seckill.keys import shard_keys
from seckill.lane import Lane
from seckill.order import Order, read_order
from seckill.sale import Sale

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

__all__ = ["LaneOptions", "Shard"]


class LaneOptions(msgspec.Struct, frozen=True):
    """The engine's options that its lanes need."""

    timeout_ms: int
    depth_max: int
    batch_max: int


class Shard:
    """One sale, as far as this process knows it."""

    def __init__(self, sale: Sale, origin_ms: int) -> None:
        self.sale = sale
        self.origin_ms = origin_ms
        self.keys = shard_keys(sale.id)
        self.lane: Lane | None = None
        self._opening: asyncio.Task[Lane] | None = None
        self._closed = False

    def decode(self, order: str, record: bytes) -> Order:
        """The order that a record describes."""
        return read_order(self.sale, self.origin_ms, order, record.decode())

    async def open_lane(
        self, connect: Callable[[], AbstractConnection], options: LaneOptions
    ) -> Lane:
        """The lane, opened when it is first asked for. Raises RedisUnavailable, EngineClosed."""
        if self.lane is not None:
            return self.lane
        # One attempt for all who wait: on a server that is stuck, a queue of attempts would let the
        # last caller wait for the time-outs of all the others.
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(connect, options))
        return await asyncio.shield(self._opening)

    async def _open(self, connect: Callable[[], AbstractConnection], options: LaneOptions) -> Lane:
        try:
            lane = Lane(
                connect,
                self.keys,
                self.sale.definition_id,
                timeout_ms=options.timeout_ms,
                depth_max=options.depth_max,
                batch_max=options.batch_max,
            )
            await lane.start()
            if self._closed:
                await lane.aclose()
                raise EngineClosed("the engine is shutting down")
            self.lane = lane
            return lane
        finally:
            self._opening = None

    async def aclose(self) -> None:
        """Answers what waits in the lane, also in one that is only being opened, and closes it."""
        self._closed = True
        if self._opening is not None:
            await asyncio.gather(self._opening, return_exceptions=True)
        if self.lane is not None:
            await self.lane.aclose()
