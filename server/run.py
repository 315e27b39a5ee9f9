"""Serving the intake: one process on uvloop, until it is told to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import uvloop
from aiohttp import web

from seckill.engine import Engine
from seckill.errors import InvalidInput

from .app import create_app

__all__ = ["run"]

# How long answers may take after the end was asked for. It is longer than an engine's timeout, so
# only a client that never finishes its request is cut off.
DRAIN_S: float = 8.0
# A sale begins with everybody connecting in the same second.
BACKLOG: Final = 4096
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run(
    engine: Engine,
    host: str = "127.0.0.1",
    port: int = 8080,
    path: str | Path | None = None,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves on a loopback address, or on the unix socket ``path``, until SIGTERM or SIGINT.

    Then nobody new is let in, every order under way gets its answer, the engine drains, and this
    returns; a second signal ends the process at once. ``port`` 0 lets the system choose.
    ``on_ready`` is called with the address once requests are taken. Only for the main thread.

    Raises InvalidInput for an address that others could reach, OSError for one that is in use, and
    whatever Engine.start raises.
    """
    if path is None:
        host = _loopback(host)
        if type(port) is not int or not 0 <= port <= 65_535:
            raise InvalidInput("port", f"{port!r} is not a port", "pass 0 to 65535")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(engine, host, port, path, on_ready))


async def _serve(
    engine: Engine,
    host: str,
    port: int,
    path: str | Path | None,
    on_ready: Callable[[str], None] | None,
) -> None:
    with _until_signal() as ended:
        runner = web.AppRunner(create_app(engine), access_log=None, shutdown_timeout=DRAIN_S)
        try:
            await runner.setup()
            site: web.BaseSite
            if path is None:
                site = web.TCPSite(runner, host, port, backlog=BACKLOG)
            else:
                site = web.UnixSite(runner, path, backlog=BACKLOG)
            await site.start()
            if on_ready is not None:
                on_ready(site.name if path is None else f"unix:{path}")
            await ended.wait()
        finally:
            await runner.cleanup()


def _loopback(host: str) -> str:
    """The address to bind. Until requests carry proof of who sends them, whoever can connect can
    act as the mall's backend, so this must not be reachable from outside."""
    try:
        if ip_address("127.0.0.1" if host == "localhost" else host).is_loopback:
            return "127.0.0.1" if host == "localhost" else host
    except ValueError:
        pass
    raise InvalidInput(
        "host",
        f"{host!r} is not a loopback address, and this intake trusts whoever can connect"
        " (it has no authentication yet)",
        "serve on 127.0.0.1, ::1 or a unix socket and let the mall's backend forward to it",
    )


@contextmanager
def _until_signal() -> Iterator[asyncio.Event]:
    """An event that the first signal sets. After it the signals do what they do by default."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ended = asyncio.Event()

    def end() -> None:
        ended.set()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in _SIGNALS:
        loop.add_signal_handler(number, end)
    try:
        yield ended
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
