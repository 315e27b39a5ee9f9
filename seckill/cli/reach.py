"""For the commands that must work on any server, also on one that an engine refuses: those that
look for what is wrong with it, and the one that stops the sales when it is.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from seckill.cli.command import DATA_ENV, REDIS_ENV, Target

__all__ = ["is_named", "reach"]


def is_named(target: Target) -> bool:
    """Whether an option or the environment names a server."""
    named = target.redis, target.embedded, os.environ.get(REDIS_ENV), os.environ.get(DATA_ENV)
    return any(named)


@asynccontextmanager
async def reach(target: Target) -> AsyncIterator[str]:
    """The URL of the server that the options name. One of our own that does not run is started for
    as long as this lasts. Raises InvalidInput, EmbeddedError; a server elsewhere is not asked.
    """
    engine = target.engine(sweep_ms=0)
    if engine.url:
        yield engine.url
        return
    async with engine:
        yield engine.url
