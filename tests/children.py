"""Processes that a test starts: they end with it, and nothing of theirs stays open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

__all__ = ["child"]

# What a killed process has started itself may keep its pipes open for as long as it lives on.
ENDED_S = 60.0


@asynccontextmanager
async def child(*command: object, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that is killed at the end of the block if it has not ended, and its pipes, read to
    their end.

    A process that has ended may have left its pipes open, to whatever it had started itself. What
    is open when the loop ends, the garbage collector closes, with a warning in whatever test runs
    by then.
    """
    process = await asyncio.create_subprocess_exec(*map(str, command), **options)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        async with asyncio.timeout(ENDED_S):
            await process.communicate()
