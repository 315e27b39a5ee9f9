"""The buyers of benchmarks/compare.py: each operation, as bursts that always meet the intake alike.

How dear an order is depends on how many come with it, and that is chance. So the intake is stopped
(SIGSTOP) while a burst is written into its sockets. When it goes on it finds all of them at once,
in the same order each time, and its lane makes the same batches of them.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from math import ceil
from time import time
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
import msgspec

from benchmarks.socket_client import Buyer as Talk

__all__ = ["SECRET", "TIMEOUT_S", "Buyers", "Failed", "Operation", "buyer_names"]

SECRET: Final = "compare" * 10
TIMEOUT_S: Final = 120
_READ: Final = 1 << 18
_DAY_S: Final = 86_400
# Where there is no lane their number does not matter, and few are done before something else comes.
_FEW: Final = 16
# Twice as many refusals as make an intake take notice.
_STORM: Final = 64

_BODY: Final = b'{"items":[{"sku":"tea","quantity":1}]}'
_MESSAGE: Final = b'{"op":"buy","id":%d,"key":"s%d","items":[{"sku":"tea","quantity":1}]}'
# Whole messages of a WebSocket.
_TEXT: Final = 0x81
_PING: Final = 0x89
_PONG: Final = 0x8A
_LENGTH: Final = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.IGNORECASE)


class Failed(Exception):
    """A tree that cannot be measured, and why, in a line."""


class Operation(msgspec.Struct, frozen=True):
    """``burst`` lets ``size`` buyers do it once, and reads all answers. ``from_memory`` says that
    Redis has no part in it, as long as the intake knows enough; ``before`` sees to that."""

    name: str
    size: int
    burst: Callable[[], None]
    from_memory: bool = False
    before: Callable[[], None] | None = None


def buyer_names(count: int, first: int = 0) -> list[str]:
    """Ids of 24 characters, as the canonical workload has them."""
    return [f"b{number:023}" for number in range(first, first + count)]


class Buyers:
    """All of them, with their connections. ``ask`` sends a line to the intake's standard input and
    returns what it answers."""

    def __init__(
        self,
        names: Sequence[str],
        tickets: Sequence[str],
        pid: int,
        url: str,
        ask: Callable[[str], dict[str, Any]],
    ) -> None:
        at = urlsplit(url)
        self._pid = pid
        self._ask = ask
        self._numbers = count(10_000_000)
        self._strangers = count(len(names), len(names))
        # Of the same length in every run, and good for all of it.
        self._expires_s = int(time()) + _DAY_S
        self._bearers = [self._bearer(buyer) for buyer in names]
        self._tickets = [ticket.encode() for ticket in tickets]
        address = (at.hostname or "", at.port or 0)
        self._lines = [socket.create_connection(address, timeout=TIMEOUT_S) for _ in names]
        for line in self._lines:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._talk_url = f"{url}/v1/sales/stock/socket"
        self._talks: list[Talk] = []

    def operations(self) -> Iterator[Operation]:
        """What they do. Asking for places comes last: from then on the intake keeps an eye on the
        queue."""
        size = len(self._bearers)
        yield Operation("order in stock", size, self._buy)
        yield Operation("order in stock, user token never seen", size, self._buy_as_strangers)
        yield Operation("order sold out, from memory", _FEW, self._buy_in_vain, True, self._storm)
        # Only now: the intake asks sockets that are silent whether anybody is there.
        for bearer in self._bearers:
            self._talks.append(Talk(self._talk_url, bearer.decode()))
            self._talks[-1].socket.settimeout(TIMEOUT_S)
        yield Operation("order by socket", size, self._say_buy)
        self._hang_up()
        yield Operation("Engine.reserve, no HTTP", size, self._reserve)
        yield Operation("place in the queue", _FEW, self._ask_places, True)

    def _storm(self) -> None:
        """So many are refused that the intake begins to answer from memory."""
        self._reserved("gone", "SOLD_OUT", ceil(_STORM / len(self._bearers)))

    def close(self) -> None:
        """Hangs up."""
        self._hang_up()
        for line in self._lines:
            line.close()

    # -- what they do ---------------------------------------------------------------------------

    def _buy(self) -> None:
        self._exchange([self._order("stock", bearer) for bearer in self._bearers], b"201")

    def _buy_as_strangers(self) -> None:
        names = buyer_names(len(self._bearers), first=next(self._strangers))
        bearers = [self._bearer(buyer) for buyer in names]
        self._exchange([self._order("stock", bearer) for bearer in bearers], b"201")

    def _buy_in_vain(self) -> None:
        few = self._bearers[:_FEW]
        self._exchange([self._order("gone", bearer) for bearer in few], b"409")

    def _ask_places(self) -> None:
        self._exchange(
            [
                b"GET /v1/sales/line/tickets/me HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"Authorization: Bearer %b\r\nSeckill-Ticket: %b\r\n\r\n" % pair
                for pair in zip(self._bearers[:_FEW], self._tickets[:_FEW], strict=True)
            ],
            b"200",
        )

    def _reserve(self) -> None:
        self._reserved("stock", "CREATED")

    def _say_buy(self) -> None:
        frames = []
        for _ in self._talks:
            number = next(self._numbers)
            message = _MESSAGE % (number, number)
            frames.append(struct.pack(">BBI", _TEXT, 0x80 | len(message), 0) + message)
        self._write([talk.socket for talk in self._talks], frames)
        for talk in self._talks:
            answer = _frame(talk)
            if b'"status":201' not in answer:
                raise Failed(f"the socket answered {answer[:200]!r}")

    def _hang_up(self) -> None:
        for talk in self._talks:
            talk.socket.close()
        self._talks.clear()

    # -- how ------------------------------------------------------------------------------------

    def _bearer(self, buyer: str) -> bytes:
        claims = {"sub": buyer, "iat": self._expires_s - _DAY_S, "exp": self._expires_s}
        return jwt.encode(claims, SECRET, algorithm="HS256").encode()

    def _order(self, sale: str, bearer: bytes) -> bytes:
        return (
            b"POST /v1/sales/%b/orders HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\n"
            b"Content-Type: application/json\r\nIdempotency-Key: k%d\r\nContent-Length: %d\r\n\r\n"
            % (sale.encode(), bearer, next(self._numbers), len(_BODY))
        ) + _BODY

    def _reserved(self, sale: str, status: str, times: int = 1) -> None:
        found = self._ask(f"reserve {sale} e{next(self._numbers)} {times}")["statuses"]
        if found != {status: times * len(self._bearers)}:
            raise Failed(f"Engine.reserve answered {found}")

    def _exchange(self, requests: list[bytes], status: bytes) -> None:
        lines = self._lines[: len(requests)]
        self._write(lines, requests)
        for line in lines:
            answer = _answer(line)
            if not answer.startswith(b"HTTP/1.1 " + status):
                raise Failed(f"the intake answered {answer[:400].decode('utf-8', 'replace')!r}")

    def _write(self, lines: Sequence[socket.socket], texts: Sequence[bytes]) -> None:
        os.kill(self._pid, signal.SIGSTOP)
        try:
            # A signal needs a moment to arrive. Left where it is: who waits for the end sees it.
            os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            for line, text in zip(lines, texts, strict=True):
                line.sendall(text)
        finally:
            os.kill(self._pid, signal.SIGCONT)


def _answer(line: socket.socket) -> bytes:
    received = b""
    while True:
        head, found, body = received.partition(b"\r\n\r\n")
        if found:
            length = _LENGTH.search(head + b"\r\n")
            if length is not None and len(body) >= int(length[1]):
                return received
        received += _more(line)


def _frame(talk: Talk) -> bytes:
    """The next message, pings answered."""
    while True:
        received = talk.received
        if len(received) >= 4:
            size, start = received[1], 2
            if size == 126:
                size, start = int.from_bytes(received[2:4], "big"), 4
            if len(received) >= start + size:
                talk.received = received[start + size :]
                if received[0] == _TEXT:
                    return received[start : start + size]
                if received[0] == _PING:
                    talk.socket.sendall(struct.pack(">BBI", _PONG, 0x80, 0))
                continue
        talk.received += _more(talk.socket)


def _more(line: socket.socket) -> bytes:
    try:
        data = line.recv(_READ)
    except TimeoutError:
        raise Failed(f"no answer came within {TIMEOUT_S} s") from None
    if not data:
        raise Failed("the intake hung up")
    return data
