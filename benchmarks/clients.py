"""What wrk/*.lua does, for machines without wrk: `python -m benchmarks.clients URL SCRIPT FILE
CONNECTIONS SECONDS`. Prints the same line as wrk/summary.lua.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import msgspec
import uvloop

from benchmarks.load import Load

BODY = b'{"items":[{"sku":"tea","quantity":1}]}'
BATCH = 200
ORDER = '{"buyer":"b%023d","key":"k1","items":[{"sku":"tea","quantity":1}]}'
LENGTH = b"\r\nContent-Length: "


def orders(path: str, host: str, lines: list[str]) -> Iterator[bytes]:
    """See wrk/orders.lua."""
    heads = [
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nIdempotency-Key: k".encode()
        for token in lines
    ]
    tail = b"%s%d\r\n\r\n%s" % (LENGTH, len(BODY), BODY)
    for number, head in zip(count(1), cycle(heads), strict=False):
        yield b"%s%d%s" % (head, number, tail)


def batches(path: str, host: str, lines: list[str]) -> Iterator[bytes]:
    """See wrk/batch.lua."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {lines[0]}\r\n"
        "Content-Type: application/json"
    ).encode()
    for first in count(1, BATCH):
        many = ",".join(ORDER % number for number in range(first, first + BATCH))
        body = f'{{"orders":[{many}]}}'.encode()
        yield b"%s%s%d\r\n\r\n%s" % (head, LENGTH, len(body), body)


class Buyer(asyncio.Protocol):
    """One connection: sends a request, waits for the whole answer, sends the next."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.transport: asyncio.Transport | None = None
        self.received = b""
        self.sent_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one without being derived from it.
        self.transport = cast("asyncio.Transport", transport)
        self.send()

    def send(self) -> None:
        assert self.transport is not None
        self.sent_s = perf_counter()
        self.transport.write(next(self.crowd.requests))

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(LENGTH.lower())[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self.received = b""
        self.crowd.answered(int(head[9:12]), perf_counter() - self.sent_s)
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.failed += not self.crowd.over


class Crowd:
    """All of them."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self.requests = requests
        self.took_s: list[float] = []
        self.refused = 0
        self.failed = 0
        self.over = False

    def answered(self, http: int, took_s: float) -> None:
        self.took_s.append(took_s)
        self.refused += http >= 400

    async def buy(self, host: str, port: int, connections: int, seconds: int) -> Load:
        loop = asyncio.get_running_loop()
        began = perf_counter()
        made = [
            await loop.create_connection(lambda: Buyer(self), host, port)
            for _ in range(connections)
        ]
        await asyncio.sleep(seconds)
        self.over = True
        took_s = perf_counter() - began
        cuts = quantiles(self.took_s, n=100)
        load = Load(
            len(self.took_s), took_s, self.refused, self.failed, cuts[49] * 1e3, cuts[98] * 1e3
        )
        for transport, _ in made:
            transport.abort()
        return load


def main() -> None:
    """Reads its arguments, buys, prints."""
    url, script, file, connections, seconds = sys.argv[1:]
    at = urlsplit(url)
    assert at.hostname is not None
    assert at.port is not None
    lines = Path(file).read_text(encoding="ascii").split()
    make = orders if script == "orders" else batches
    crowd = Crowd(make(at.path, at.netloc, lines))
    buying = crowd.buy(at.hostname, at.port, int(connections), int(seconds))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(msgspec.json.encode(runner.run(buying)).decode())


if __name__ == "__main__":
    main()
