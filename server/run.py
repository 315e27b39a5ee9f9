"""Serving the intake in this process, on uvloop, until it is told to end. For many cores, and for
settings that change while it runs, see workers.py.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvloop

from seckill.engine import Engine
from seckill.errors import InvalidInput

from .app import create_app
from .caller import Identify
from .connection import Runner
from .listen import address_of, checked_host, is_loopback, listen_tcp, listen_unix
from .settings import Settings

__all__ = ["run"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run(
    engine: Engine,
    host: str = "127.0.0.1",
    port: int = 8080,
    path: str | Path | None = None,
    *,
    settings: Settings | None = None,
    identify: Identify | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves on an address, or on the unix socket ``path``, until SIGTERM or SIGINT.

    Then nobody new is let in, every request that arrives within a second on a connection that is
    open is answered, the engine drains, and this returns; a second signal ends the process at once.
    ``port`` 0 lets the system choose. ``identify`` says who sends a request, instead of the user
    tokens and API keys of the settings. ``on_ready`` is called with the address once requests are
    taken. Only for the main thread.

    Raises InvalidInput for an address that is none, or that others could reach when everybody is
    believed; OSError for one that is in use; and whatever Engine.start raises.
    """
    settings = settings or Settings()
    if path is None:
        if identify is not None and not is_loopback(host):
            raise InvalidInput(
                "host",
                f"{host!r} is not a loopback address, and who asks is not proved by the settings",
                "serve on 127.0.0.1, ::1 or a unix socket",
            )
        host = checked_host(host)
        if type(port) is not int or not 0 <= port <= 65_535:
            raise InvalidInput("port", f"{port!r} is not a port", "pass 0 to 65535")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(engine, host, port, path, settings, identify, on_ready))


async def _serve(
    engine: Engine,
    host: str,
    port: int,
    path: str | Path | None,
    settings: Settings,
    identify: Identify | None,
    on_ready: Callable[[str], None] | None,
) -> None:
    with _until_signal() as ended, _listening(host, port, path) as sock:
        runner = Runner(create_app(engine, settings, identify=identify), [sock], settings.server)
        try:
            await runner.setup()
            if on_ready is not None:
                on_ready(address_of(sock))
            await ended.wait()
        finally:
            await runner.cleanup()


@contextmanager
def _listening(host: str, port: int, path: str | Path | None) -> Iterator[socket.socket]:
    with listen_tcp(host, port) if path is None else listen_unix(path) as sock:
        yield sock
    if path is not None:
        Path(path).unlink(missing_ok=True)


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
