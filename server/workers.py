"""The intake on many cores: gunicorn keeps the workers, and this is what it keeps.

    seckill serve ── listens, owns an embedded server, reads the settings
      └─ Parent (gunicorn's arbiter) ── starts workers, replaces those that die
           └─ Worker × N (aiohttp's, on uvloop) ── an engine and an application each

- SIGTERM, SIGINT: the workers take nobody new and answer what is under way, then the embedded
  server is stopped. A second signal ends everything at once.
- SIGHUP: the settings are read again. If they and the sales' server are in order, new workers take
  over with them and the old ones end as above; if not, the log says why and nothing changes.
- A worker that dies is replaced. The listening socket is the parent's, so whoever was connecting to
  the dead one is taken by another.
- A first worker that can't start ends the whole. One that comes later waits until it can, because
  the others may still be selling.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.errors import HaltServer  # type: ignore[import-untyped]
from gunicorn.glogging import Logger  # type: ignore[import-untyped]

from seckill.durability import fsync_of
from seckill.embedded import EmbeddedServer, running_url
from seckill.errors import InvalidInput, SeckillError
from seckill.redis import ServerFacts

from . import log, settings
from .ledger import check_owner
from .listen import BACKLOG, address_of, listen_tcp, listen_unix
from .settings import Settings
from .worker import BOOT_ERROR, Worker, bug_line, engine_on

__all__ = ["Running", "serve"]

_log = logging.getLogger("seckill.server")

# How long the parent waits for a worker beyond ``drain_s``: it still has to close its engine.
CLOSE_S: Final = 5.0
# A worker whose event loop stood still for so long is killed and replaced.
STILL_S: Final = 30
MESSAGE_BYTES_MAX: Final = 4_000
_TOLD: Final = ("Reason: %s", "Shutting down: %s")
_ENDS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Running(msgspec.Struct, frozen=True):
    """What takes orders now: where, and on which server of sales."""

    address: str
    url: str
    facts: ServerFacts
    settings: Settings


def serve(read: Callable[[], Settings], on_ready: Callable[[Running], None]) -> None:
    """Serves until SIGTERM or SIGINT. Only for the main thread of a process of its own.

    ``read`` gives the settings, now and at each SIGHUP. ``on_ready`` is called once all workers
    take requests. Raises what ``read`` raises, InvalidInput for settings that nobody could get in
    with, and SeckillError when the address can't be had, the server of sales is not fit, or a
    worker can't start.
    """
    current = read()
    check_proof(current)
    log.configure(current.log)
    with contextlib.ExitStack() as stack:
        # The workers share their numbers, and so do those before and after a SIGHUP.
        numbers = stack.enter_context(tempfile.TemporaryDirectory(prefix="seckill-metrics-"))
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = numbers
        sock = _listen(current.server)
        stack.callback(sock.close)
        url = stack.enter_context(_sales_server(current.redis))
        facts = _check(url, current)
        running = Running(address_of(sock), url, facts, current)
        Service(read, current, url, sock.detach(), lambda: on_ready(running)).run()


def check_proof(current: Settings) -> None:
    """Raises InvalidInput when nobody could prove to this intake who they are."""
    users = current.users
    if not (current.keys or users.secrets or users.key_files or users.jwks_url):
        raise InvalidInput(
            "keys, users",
            "are not set, so nobody could prove who they are",
            "make a key with `seckill key new` and put it into the settings,"
            " or try things out with `seckill serve --dev`",
        )


def _listen(server: settings.Server) -> socket.socket:
    try:
        return listen_unix(server.unix) if server.unix else listen_tcp(server.host, server.port)
    except OSError as error:
        where = server.unix or f"{server.host}:{server.port}"
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SeckillError(f"cannot listen on {where}: {reason}{_way_out(error, server)}") from None


def _way_out(error: OSError, server: settings.Server) -> str:
    """What to do where we could not listen, as far as that is known."""
    if error.errno == errno.EADDRINUSE:
        if server.unix:
            return "; another server runs there: stop it, or choose another path with --unix"
        return "; choose another port with --port N (0 takes a free one)"
    if error.errno == errno.ENOENT and server.unix:
        return f"; create the directory {os.path.dirname(server.unix)}"  # noqa: PTH120 - bind's text
    return ""


@contextlib.contextmanager
def _sales_server(redis: settings.Redis) -> Iterator[str]:
    """The URL of the server that holds the sales; one of our own lives as long as this."""
    if redis.url:
        yield redis.url
    elif not redis.data:
        raise InvalidInput(
            "server",
            "is not named",
            "give --redis URL or --embedded DIR, set SECKILL_REDIS or SECKILL_DATA,"
            " or write redis.url into the settings",
        )
    elif running := running_url(redis.data):
        # Somebody else's, who ends it.
        yield running
    else:
        with EmbeddedServer(redis.data, appendfsync=fsync_of(redis.durability)) as server:
            yield server.url


def _check(url: str, current: Settings) -> ServerFacts:
    """What that server is, asked once for all workers. Raises SeckillError if it is not fit, or
    belongs to another ledger."""

    async def ask() -> ServerFacts | None:
        async with engine_on(url, current.redis, sweep_ms=0) as engine:
            await check_owner(engine, current.ledger)
            return engine.facts

    facts = asyncio.run(ask())
    if facts is None:
        raise SeckillError("the server of sales said nothing of itself")
    return facts


class Service(BaseApplication):  # type: ignore[misc] # gunicorn has no annotations
    """What gunicorn is told, and what a worker is made from."""

    def __init__(
        self,
        read: Callable[[], Settings],
        current: Settings,
        url: str,
        descriptor: int,
        on_ready: Callable[[], None],
    ) -> None:
        self.settings = current
        self.url = url
        self.first_workers = current.server.workers
        # A worker says in one that it is ready, or in the other why it is not.
        self._ready, self._ready_end = _pipe()
        self._reason, self._reason_end = _pipe()
        self._waiting = self.first_workers
        self._on_ready = on_ready
        self._read = read
        self._descriptor = descriptor
        super().__init__()

    def load_config(self) -> None:
        """Part of BaseApplication: at the start and at each reload."""
        server = self.settings.server
        options = {
            "bind": [f"fd://{self._descriptor}"],
            "backlog": BACKLOG,
            "workers": server.workers,
            "worker_class": Worker,
            "logger_class": Log,
            "graceful_timeout": int(server.drain_s + CLOSE_S) + 1,
            "timeout": max(STILL_S, int(server.drain_s + CLOSE_S) + 1),
            # Beating on a file of a slow disk could look like standing still.
            "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else None,  # noqa: S108
            "control_socket_disable": True,
        }
        for name, value in options.items():
            # The control socket is newer than the oldest gunicorn that will do.
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> None:
        """Part of BaseApplication; a worker makes its application itself."""

    def run(self) -> None:
        """Until the end. Raises SeckillError when the workers could not start."""
        try:
            Parent(self).run()
        except SystemExit as end:
            if end.code:
                raise SeckillError(self._why()) from None

    def reread(self) -> bool:
        """Reads the settings again; whether they are in order and new workers may have them."""
        before = self.settings
        try:
            now = self._read()
            check_proof(now)
            # A server of our own stays the one it is.
            url = now.redis.url or self.url
            _check(url, now)
        except (SeckillError, OSError) as error:
            _log.error("SIGHUP changes nothing: %s", error)
            return False
        for name in ("host", "port", "unix"):
            if getattr(now.server, name) != getattr(before.server, name):
                _log.warning("server.%s changes with a restart only", name)
        if now.redis.data != before.redis.data:
            _log.warning("redis.data changes with a restart only")
        self.settings, self.url = now, url
        log.configure(now.log)
        _log.info("settings read again, for %d new workers", now.server.workers)
        return True

    def say_ready(self) -> None:
        """In a worker: it takes requests. The parent looks around when a child has news."""
        os.write(self._ready_end, b"\0")
        os.kill(os.getppid(), signal.SIGCHLD)

    def say_why(self, reason: str) -> None:
        """In a worker: it can't."""
        os.write(self._reason_end, reason.encode()[:MESSAGE_BYTES_MAX] + b"\0")

    def look(self) -> None:
        """In the parent: tells once that all workers are ready."""
        if self._waiting > 0:
            self._waiting -= len(_available(self._ready))
            if self._waiting <= 0:
                self._on_ready()

    def _why(self) -> str:
        reason = _available(self._reason).decode("utf-8", "replace").partition("\0")[0]
        return reason or "a worker could not start; the log may know more"


class Log(Logger):  # type: ignore[misc] # as above
    """gunicorn's log as part of ours; what it tells of every day's business is for debugging."""

    def setup(self, cfg: Any) -> None:
        """Part of Logger: no handlers and no formats of its own."""
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log = self.access_log = _log

    def info(self, msg: str, *args: Any, **options: Any) -> None:
        """Part of Logger."""
        _log.debug(msg, *args, **options)

    def error(self, msg: str, *args: Any, **options: Any) -> None:
        """Part of Logger."""
        # That a worker could not start is told once, and in our words.
        if msg not in _TOLD and args[-1:] != (BOOT_ERROR,):
            _log.error(msg, *args, **options)

    def exception(self, msg: str, *args: Any, **options: Any) -> None:
        """Part of Logger: without the traceback."""
        _log.error("%s: %s", msg % args if args else msg, bug_line(sys.exc_info()[1]))


class Parent(Arbiter):  # type: ignore[misc] # as above
    """The process that keeps the workers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ending = False
        self._halting = False
        super().__init__(service)

    def signal(self, sig: int, frame: Any) -> None:
        """Part of Arbiter: a signal has come."""
        if sig in _ENDS:
            if self._ending:
                for pid in list(self.WORKERS):
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                # An embedded server ends in good order when we do.
                signal.signal(sig, signal.SIG_DFL)
                os.kill(os.getpid(), sig)
            self._ending = True
        super().signal(sig, frame)

    def handle_int(self) -> None:
        """Part of Arbiter: Ctrl-C drains, as SIGTERM does."""
        raise StopIteration

    handle_quit = handle_int

    def handle_hup(self) -> None:
        """Part of Arbiter."""
        if self._service.reread():
            super().handle_hup()

    def handle_usr2(self) -> None:
        """Part of Arbiter: it would start a second parent, for the same embedded server."""
        _log.warning("SIGUSR2 does nothing; start another intake and stop this one")

    def spawn_worker(self) -> int:
        """Part of Arbiter. A worker ends here: what follows on its stack is the parent's."""
        try:
            pid: int = super().spawn_worker()
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        return pid

    def manage_workers(self) -> None:
        """Part of Arbiter: after each signal, and once a second."""
        super().manage_workers()
        self._service.look()

    def reap_workers(self) -> None:
        """Part of Arbiter: raises HaltServer for the first worker that could not start, once."""
        try:
            super().reap_workers()
        except HaltServer:
            if not self._halting:
                self._halting = True
                raise


def _pipe() -> tuple[int, int]:
    """A pipe whose reader does not wait. Both ends are inherited by forks only."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    return reader, writer


def _available(reader: int) -> bytes:
    try:
        return os.read(reader, 2 * MESSAGE_BYTES_MAX)
    except BlockingIOError:
        return b""
