"""Where the state machines live."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.asyncio import Redis as AsyncRedis

T = TypeVar("T")


@dataclass
class World:
    """What all examples share: a server, and one event loop that is run by hand."""

    url: str
    loop: asyncio.AbstractEventLoop
    client: AsyncRedis

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)
