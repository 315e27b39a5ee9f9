"""A proxy between an engine and its server that cuts, holds and delays whole commands.

Each test writes a judge: an async function that sees a command before the server does, may wait as
long as it likes, and says what becomes of it; or answers itself, with the bytes of a reply.
Commands of one connection are judged one by one. A command that has been passed reaches the server
even when its sender has hung up meanwhile: that is what a socket's buffer does, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Any, Self

import hiredis
import msgspec

from seckill.scripts import script

__all__ = ["Command", "Fate", "Judge", "Proxy", "let_pass"]

RESERVE = (script("reserve").sha.encode(), script("reserve").source.encode())


class Fate(Enum):
    """What becomes of a command."""

    PASS = auto()
    CUT_BEFORE = auto()  # The connection breaks and the server sees nothing of it.
    CUT_HALF = auto()  # The connection breaks when half of its bytes are through.
    CUT_AFTER = auto()  # The server has answered, and then the connection breaks.


class Command:
    """One command on its way to the server. ``reply`` is what the server said to it, if it did."""

    def __init__(self, args: list[bytes], link: int) -> None:
        self.args = args
        self.link = link
        self.reply: Any = None
        self.columns: list[list[Any]] | None = None
        if args[0] in (b"EVALSHA", b"EVAL") and args[1] in RESERVE:
            self.columns = msgspec.msgpack.decode(args[-1])

    @property
    def order_ids(self) -> list[str]:
        """The orders of a lane's batch; empty for every other command."""
        return self.columns[1] if self.columns else []

    @property
    def not_after_ms(self) -> list[int]:
        """How long each order of a lane's batch is good for, by the server's clock."""
        return self.columns[0] if self.columns else []

    def raw(self) -> bytes:
        """The command's bytes as the server gets them."""
        parts = [b"*%d\r\n" % len(self.args)]
        parts += [b"$%d\r\n%s\r\n" % (len(arg), arg) for arg in self.args]
        return b"".join(parts)


Judge = Callable[[Command], Awaitable[Fate | bytes]]


async def let_pass(_: Command) -> Fate:
    """The judge who is never in the way."""
    return Fate.PASS


class Proxy:
    """Listens on a unix socket and forwards to the server at the URL ``target``, which may change.

    ``seen`` keeps what came in, ``passed`` what was handed to the server. ``reply_delay_s`` keeps
    every reply back for that long, ``replies_open`` all of them while it is cleared.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.judge: Judge = let_pass
        self.reply_delay_s = 0.0
        self.replies_open = asyncio.Event()
        self.replies_open.set()
        self.seen: list[Command] = []
        self.passed: list[Command] = []
        self.links = 0
        self.failures: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        # A unix socket's path is limited to about 100 bytes, so pytest's tmp_path will not do.
        self._folder = tempfile.mkdtemp(prefix="seckill-proxy-", dir="/tmp")
        self.url = f"unix://{self._folder}/p.sock"
        self._server = await asyncio.start_unix_server(self._accept, f"{self._folder}/p.sock")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        shutil.rmtree(self._folder)
        # A judge that raises must fail its test, not look like one more broken connection.
        for failure in self.failures:
            raise failure

    def batches(self) -> list[list[str]]:
        """The order ids of every lane batch that the server got, in order."""
        return [command.order_ids for command in self.passed if command.columns]

    async def _accept(
        self, from_engine: asyncio.StreamReader, to_engine: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.links += 1
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await _Link(self, self.links, from_engine, to_engine).run()
        to_engine.close()


class _Link:
    """One connection of the engine and its counterpart to the server."""

    def __init__(
        self,
        proxy: Proxy,
        number: int,
        from_engine: asyncio.StreamReader,
        to_engine: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._number = number
        self._from_engine = from_engine
        self._to_engine = to_engine
        self._unanswered: list[Command] = []
        self._answered = asyncio.Event()
        self._cut_after: Command | None = None

    async def run(self) -> None:
        from_server, to_server = await asyncio.open_unix_connection(
            self._proxy.target.removeprefix("unix://")
        )
        try:
            halves = [
                asyncio.ensure_future(self._requests(to_server)),
                asyncio.ensure_future(self._replies(from_server)),
            ]
            try:
                await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for half in halves:
                    half.cancel()
                for result in await asyncio.gather(*halves, return_exceptions=True):
                    if isinstance(result, Exception) and not isinstance(result, OSError):
                        self._proxy.failures.append(result)
        finally:
            to_server.close()

    async def _requests(self, to_server: asyncio.StreamWriter) -> None:
        reader = hiredis.Reader()
        while data := await self._from_engine.read(1 << 16):
            reader.feed(data)
            while (args := reader.gets()) is not False:
                command = Command(args, self._number)
                self._proxy.seen.append(command)
                fate = await self._proxy.judge(command)
                if isinstance(fate, bytes):
                    self._to_engine.write(fate)
                    continue
                if fate is Fate.CUT_BEFORE:
                    return
                raw = command.raw()
                if fate is Fate.CUT_HALF:
                    to_server.write(raw[: len(raw) // 2])
                    await to_server.drain()
                    return
                if fate is Fate.CUT_AFTER:
                    self._cut_after = command
                self._unanswered.append(command)
                self._proxy.passed.append(command)
                to_server.write(raw)
                await to_server.drain()
        while self._unanswered:
            self._answered.clear()
            await self._answered.wait()

    async def _replies(self, from_server: asyncio.StreamReader) -> None:
        reader = hiredis.Reader()
        while data := await from_server.read(1 << 16):
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                command = self._unanswered.pop(0)
                command.reply = reply
                self._answered.set()
                if command is self._cut_after:
                    return
            if self._proxy.reply_delay_s:
                await asyncio.sleep(self._proxy.reply_delay_s)
            await self._proxy.replies_open.wait()
            with contextlib.suppress(OSError):
                self._to_engine.write(data)
                await self._to_engine.drain()
