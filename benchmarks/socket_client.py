"""The buyers of benchmarks/socket.py, in a process of their own: ``python -m
benchmarks.socket_client URL FILE SOCKETS IN_FLIGHT SECONDS``. Prints a Load.

Each opens a socket with a user token of its own, a line of the file, and orders as fast as it is
answered, with so many messages under way. It must cost less than the server, so there is no event
loop, and frames are written by hand, with a mask of zeros, which the server undoes like any other.
"""

from __future__ import annotations

import socket
import sys
from itertools import count, islice
from pathlib import Path
from select import EPOLLIN, epoll
from statistics import quantiles
from time import perf_counter
from urllib.parse import urlsplit

import msgspec

from benchmarks.load import Load

__all__ = ["Buyer", "Crowd"]

FIRST = 1_000_000_000
MESSAGE = b'{"op":"buy","id":%d,"key":"k%d","items":[{"sku":"tea","quantity":1}]}'
SIZE = len(MESSAGE % (FIRST, FIRST))
assert SIZE < 126
# A whole text message, masked with zeros.
FRAME = bytes([0x81, 0x80 | SIZE, 0, 0, 0, 0]) + MESSAGE
READ = 65_536
HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class Buyer:
    """One socket."""

    def __init__(self, url: str, token: str) -> None:
        at = urlsplit(url)
        self.socket = socket.create_connection((at.hostname, at.port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handshake = HANDSHAKE.format(path=at.path, host=at.netloc, token=token)
        self.socket.sendall(handshake.encode())
        head = b""
        while b"\r\n\r\n" not in head:
            more = self.socket.recv(READ)
            assert more, "a handshake was cut"
            head += more
        assert head.startswith(b"HTTP/1.1 101"), head
        self.received = b""


class Crowd:
    """All of them."""

    def __init__(self, url: str, tokens: list[str]) -> None:
        self.buyers = {}
        self.waiting = epoll()
        for token in tokens:
            buyer = Buyer(url, token)
            self.buyers[buyer.socket.fileno()] = buyer
            self.waiting.register(buyer.socket, EPOLLIN)
        self.numbers = count(FIRST)
        # By number: when it was sent, and how long it took.
        self.sent_s: list[float] = []
        self.took_s: list[float] = []
        self.refused = 0
        self.failed = 0

    def buy(self, in_flight: int, seconds: float) -> Load:
        """Lets them all order."""
        began = now = perf_counter()
        for buyer in self.buyers.values():
            self.send(buyer, in_flight, now)
        while now < began + seconds:
            for fd, _ in self.waiting.poll(1):
                buyer = self.buyers[fd]
                data = buyer.socket.recv(READ)
                now = perf_counter()
                if not data:
                    self.failed += 1
                    self.waiting.unregister(fd)
                elif answered := self.hear(buyer, data, now):
                    self.send(buyer, answered, now)
            now = perf_counter()
        cuts = quantiles(self.took_s, n=100)
        return Load(
            len(self.took_s), now - began, self.refused, self.failed, cuts[49] * 1e3, cuts[98] * 1e3
        )

    def send(self, buyer: Buyer, times: int, now: float) -> None:
        self.sent_s += [now] * times
        numbers = self.numbers
        frames = [FRAME % (number, number) for number in islice(numbers, times)]
        buyer.socket.sendall(b"".join(frames))

    def hear(self, buyer: Buyer, data: bytes, now: float) -> int:
        """How many answers are in this."""
        received, at, answered = buyer.received + data, 0, 0
        while at + 4 <= len(received):
            size, start = received[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(received[at + 2 : at + 4], "big"), at + 4
            if start + size > len(received):
                break
            if received[at] == 0x81:
                # {"id":1000000000,"status":201,…
                number = int(received[start + 6 : start + 16]) - FIRST
                self.took_s.append(now - self.sent_s[number])
                self.refused += received[start + 26] != 0x32  # Not 2…
                answered += 1
            at = start + size
        buyer.received = received[at:]
        return answered


def main() -> None:
    """Reads its arguments, buys, prints."""
    url, file, sockets, in_flight, seconds = sys.argv[1:]
    tokens = Path(file).read_text(encoding="ascii").split()[: int(sockets)]
    load = Crowd(url, tokens).buy(int(in_flight), float(seconds))
    print(msgspec.json.encode(load).decode())


if __name__ == "__main__":
    main()
