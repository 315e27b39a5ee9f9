"""One worker: a process with an engine and an application of its own, kept by workers.py."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from aiohttp.worker import GunicornUVLoopWebWorker

from seckill.engine import Engine
from seckill.errors import SeckillError

from . import settings
from .app import create_app
from .connection import Runner

__all__ = ["BOOT_ERROR", "Worker", "bug_line", "engine_on"]

_log = logging.getLogger("seckill.server")

BOOT_ERROR: Final = 3
"""The exit code by which gunicorn knows that a worker could not start."""
RETRY_S: Final = 0.5


def engine_on(url: str, redis: settings.Redis, **options: Any) -> Engine:
    """An engine on that server, which is not started yet."""
    return Engine(
        url,
        durability=redis.durability,
        allow_unverified=redis.allow_unverified,
        timeout_ms=redis.timeout_ms,
        **options,
    )


class Worker(GunicornUVLoopWebWorker):
    """A process that takes requests. ``age`` counts the workers there ever were."""

    sockets: list[Any]
    _told = False

    def load_wsgi(self) -> None:
        """Part of gunicorn's Worker: how the application is made, once there is an event loop."""

        async def make() -> web.AppRunner:
            return await self._make()

        self.wsgi = make

    def notify(self) -> None:
        """Part of gunicorn's Worker: its heartbeat."""
        super().notify()
        if self.booted and not self._told:
            self._told = True
            self.app.say_ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Part of gunicorn's Worker: SIGTERM, without waiting for the next heartbeat."""
        self.handle_quit(sig, frame)

    def run(self) -> None:
        """Part of gunicorn's Worker."""
        try:
            super().run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent decides what follows
            self._fail(str(error) if isinstance(error, SeckillError) else bug_line(error))

    async def _make(self) -> web.AppRunner:
        service = self.app
        engine = engine_on(service.url, service.settings.redis)
        await self._start(engine)
        app = create_app(engine, service.settings)

        async def close(app: web.Application) -> None:
            await engine.aclose()

        app.on_cleanup.append(close)
        # gunicorn's wrappers are of no use to uvloop; and the runner listens, with our backlog.
        sockets = [each.sock for each in self.sockets]
        self.sockets.clear()
        return Runner(app, sockets, service.settings.server)

    async def _start(self, engine: Engine) -> None:
        """Starts the engine. A worker that replaces another waits for the server of sales."""
        complained = False
        while True:
            try:
                await engine.start()
                return
            except SeckillError as error:
                if self._is_first:
                    raise
                if not complained:
                    _log.error("a new worker waits: %s", error)
                    complained = True
            self.notify()
            await asyncio.sleep(RETRY_S)
            if not self.alive or self.ppid != os.getppid():
                sys.exit(0)

    @property
    def _is_first(self) -> bool:
        return bool(self.age <= self.app.first_workers)

    def _fail(self, reason: str) -> None:
        if self._is_first and not self.booted:
            self.app.say_why(reason)
            sys.exit(BOOT_ERROR)
        _log.error("a worker failed: %s", reason)
        # Whatever is wrong, the next one would meet it at once.
        time.sleep(RETRY_S)
        sys.exit(1)


def bug_line(error: BaseException | None) -> str:
    """One line for what should not have happened."""
    frames = traceback.extract_tb(error.__traceback__) if error else []
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"a bug, please report it: {error!r}{where}"
