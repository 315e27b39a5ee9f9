"""Our intake, as `seckill serve` runs one worker: user tokens, rate limits and metrics on."""

from __future__ import annotations

from functools import partial

from benchmarks.references.start import given, settings_of
from seckill.engine import Engine
from seckill.server import run

if __name__ == "__main__":
    start = given()
    run(
        Engine(start.url, durability=start.durability),
        port=0,
        settings=settings_of(start),
        on_ready=partial(print, flush=True),
    )
