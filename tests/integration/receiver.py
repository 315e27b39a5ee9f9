"""A mall's endpoint that misbehaves as it is told, and remembers what it was sent.

It speaks HTTP by hand over real sockets, so that it can break it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
import struct
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

from seckill.engine import Engine
from seckill.relay import Endpoint, Pace
from seckill.stream import Event

__all__ = ["QUICK", "SECRET", "Receiver", "endpoint", "receiving", "subject_of"]

SECRET = b"a secret of thirty-two bytes or so"
QUICK = Pace(first_s=0.02, longest_s=0.1, retry_after_max_s=0.3, probe_s=0.05)
"""Waits short enough for a test."""
OK = b"HTTP/1.1 204 No Content\r\n\r\n"

Behave = Callable[[dict[str, Any], int], str]


def subject_of(event: Event) -> str:
    return event.order.id if event.order else "sale"


class Receiver:
    """``behave(body, attempt)`` names what to do with a delivery: a status, or a misdeed below.
    ``attempt`` counts the deliveries of that event from 1."""

    def __init__(self) -> None:
        self.behave: Behave = lambda body, attempt: "204"
        self.port = 0
        self.path = "/hook"
        self.taken: list[str] = []
        """The ids of the events that were answered 2xx, each time."""
        self.faults: list[str] = []
        """What should not have come: a bad signature, or an event before its turn."""
        self.attempts: Counter[str] = Counter()
        self.poured = 0
        """Bytes of endless answers that somebody has read."""
        self.busy = 0
        self.busy_max = 0
        self.headers: dict[str, str] = {}
        self.bodies: dict[str, dict[str, Any]] = {}
        self.moments: dict[str, list[float]] = defaultdict(list)
        """When each attempt came, on this process's clock, and when it was signed, in Unix time."""
        self.signed: dict[str, list[int]] = defaultdict(list)
        self._open: dict[str, list[int]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.excused: set[int] = set()
        """The seqs of events that became dead letters and were dropped."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    async def expect(self, engine: Engine, sale: str) -> int:
        """Learns what must come, in which order; the number of events."""
        events = [event async for event in engine.history(sale)]
        for event in events:
            self._open.setdefault(f"{sale}/{subject_of(event)}", []).append(event.seq)
        self._open = {name: sorted(set(seqs)) for name, seqs in self._open.items()}
        return len(events)

    def unseen(self) -> dict[str, list[int]]:
        """The events that should have come and were never answered 2xx."""
        done = set(self.taken)
        missing = {
            name: [
                seq
                for seq in seqs
                if f"{name.partition('/')[0]}:{seq}" not in done and seq not in self.excused
            ]
            for name, seqs in self._open.items()
        }
        return {name: seqs for name, seqs in missing.items() if seqs}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.busy += 1
        self.busy_max = max(self.busy, self.busy_max)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            self.busy -= 1
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        if lines[0] != f"POST {self.path} HTTP/1.1":
            self.faults.append(lines[0])
            return
        pairs = (line.partition(":") for line in lines[1:] if line)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        text = await reader.readexactly(int(self.headers["content-length"]))
        body = json.loads(text)
        self._check(body, text)
        name = body["id"]
        self.attempts[name] += 1
        self.moments[name].append(time.monotonic())
        self.bodies[name] = body
        await self._misbehave(self.behave(body, self.attempts[name]), name, writer)

    def _check(self, body: dict[str, Any], text: bytes) -> None:
        at, mark = self.headers["seckill-signature"].split(",")
        signed = f"{at[2:]}.".encode() + text
        if mark != "v1=" + hmac.new(SECRET, signed, hashlib.sha256).hexdigest():
            self.faults.append(f"signature of {body['id']}")
        self.signed[body["id"]].append(int(at[2:]))
        if abs(time.time() - int(at[2:])) > 60 or body["id"] != self.headers["seckill-event-id"]:
            self.faults.append(f"headers of {body['id']}")
        line = f"{body['sale']}/{body['order']['id'] if body['order'] else 'sale'}"
        done = set(self.taken)
        for seq in self._open.get(line, ()):
            before = f"{body['sale']}:{seq}"
            if seq < body["seq"] and before not in done and seq not in self.excused:
                self.faults.append(f"{body['id']} came before {before}")

    async def _misbehave(self, how: str, name: str, writer: asyncio.StreamWriter) -> None:
        match how:
            case "hang":
                await asyncio.sleep(60)
            case "reset":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, linger)
            case "close":
                pass
            case "slow":
                await asyncio.sleep(0.4)
                self.taken.append(name)
                writer.write(OK)
            case "garbage":
                writer.write(b"\x00\xff nonsense \r\n\r\n")
            case "twice" | "twice late":
                # The late one comes when a client that keeps its connections has sent the next.
                self.taken.append(name)
                writer.write(OK if how == "twice late" else OK + OK)
                await writer.drain()
                await asyncio.sleep(0.02)
                writer.write(OK)
                await writer.drain()
                await asyncio.sleep(0.2)
            case "trickle":
                for byte in OK:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.1)
            case "endless":
                self.taken.append(name)
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    writer.write(b"x" * 100_000)
                    await writer.drain()
                    self.poured += 100_000
            case "redirect":
                writer.write(b"HTTP/1.1 307 T\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")
            case _:
                status, _, more = how.partition(" ")
                if status.startswith("2"):
                    self.taken.append(name)
                length = "" if status == "204" else "Content-Length: 0\r\n"
                extra = f"{more}\r\n" if more else ""
                writer.write(f"HTTP/1.1 {status} X\r\n{length}{extra}\r\n".encode())
        await writer.drain()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        await receiver.stop()
        await server.wait_closed()


def endpoint(receiver: Receiver, **options: Any) -> Endpoint:
    """With the patience of production, because an answer that a busy machine gives too late makes
    an event come twice, and its order wait with those that can't be delivered. A test whose
    endpoint hangs on purpose names a ``timeout_s``."""
    return Endpoint(url=receiver.url, secrets=(SECRET,), **options)
