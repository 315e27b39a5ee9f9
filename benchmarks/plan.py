"""What one run of the benchmarks is asked to do."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable

import msgspec

from benchmarks.servers import Server
from benchmarks.stolen import Stolen

__all__ = ["Plan", "loop_name"]


def loop_name() -> str:
    """The event loop that everybody runs on."""
    return "uvloop" if importlib.util.find_spec("uvloop") else "asyncio (uvloop is not installed)"


class Plan(msgspec.Struct, frozen=True):
    """``quick`` asks for tiny counts, which show that a benchmark runs and nothing else; ``full``
    for more rounds, and for every reference on every server. ``stolen`` takes slices again that
    the machine's host has disturbed."""

    servers: tuple[Server, ...]
    quick: bool = False
    full: bool = False
    stolen: Stolen = msgspec.field(default_factory=Stolen)

    @property
    def rounds(self) -> int:
        """How often those that are compared take their turns."""
        return 1 if self.quick else 9 if self.full else 5

    def runner(self) -> asyncio.Runner:
        """A fresh event loop: uvloop's where it is installed."""
        factory: Callable[[], asyncio.AbstractEventLoop] | None = None
        if importlib.util.find_spec("uvloop"):
            import uvloop

            factory = uvloop.new_event_loop
        return asyncio.Runner(loop_factory=factory)

    def say(self, text: str) -> None:
        """Progress for somebody who watches."""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
