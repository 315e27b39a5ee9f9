"""A process of a chaos run: a load, a consumer or the ledger's keeper, sound or broken on purpose.

    python -m tests.faults.chaos_worker load|consume ARGUMENTS     see load.py, consume.py
    python -m tests.faults.chaos_worker keep URL LEDGER_URL DURABILITY

SECKILL_CHAOS_BROKEN names a variant of chaos_broken.py. Each ends when its stdin ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import runpy
import sys
from typing import Any

from tests.faults.chaos_broken import BROKEN_ENV, break_engine

__all__: list[str] = []

RECLAIM_MS = 300


async def keep(url: str, ledger_url: str, durability: Any) -> None:
    """Keeps the ledger until stdin ends."""
    # Not above: a load is run as a program, and must not be there before.
    from seckill.ledger.keep import Keeper
    from tests.faults.load import connected

    async with connected(url, durability, sweep_ms=0) as engine:
        keeper = Keeper(engine, ledger_url, patient=True)
        # What a killed one had taken would come to the next one after half a minute.
        keeper._runner._reclaim_ms = RECLAIM_MS
        task = asyncio.ensure_future(keeper.run())
        stdin = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin
        )
        told = asyncio.ensure_future(stdin.read())
        await asyncio.wait({told, task}, return_when=asyncio.FIRST_COMPLETED)
        keeper.stop()
        await task


def main() -> None:
    """Becomes the process that is asked for."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    break_engine(os.environ.get(BROKEN_ENV, ""))
    role, *arguments = sys.argv[1:]
    if role == "keep":
        asyncio.run(keep(*arguments))
        return
    sys.argv = [role, *arguments]
    runpy.run_module(f"tests.faults.{role}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
