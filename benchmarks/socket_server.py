"""Our intake as references/intake_server.py, for buyers who order all the time: the limiter counts
each order, and lets all through."""

from __future__ import annotations

from functools import partial

from benchmarks.references.start import given, settings_of
from seckill.engine import Engine
from seckill.server import run
from seckill.server.settings import Limits

if __name__ == "__main__":
    start = given()
    limits = Limits(buyer_per_s=10_000, buyer_burst=10_000)
    run(
        Engine(start.url, durability=start.durability),
        port=0,
        settings=settings_of(start).model_copy(update={"limits": limits}),
        on_ready=partial(print, flush=True),
    )
