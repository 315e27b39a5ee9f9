"""The process behind arrivals.py: reads an Ask from standard input, prints Answers.

One thread, epoll and plain sockets, because every layer above them would take from what it can
offer. It sleeps until the next moment or until an answer comes: who never sleeps is sent to the end
of the line by the kernel just when the others have work, and is late by that; and on a core of its
own it would still slow down the one that shares a physical core with it, as rented ones often do.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic, thread_time
from typing import Final
from urllib.parse import urlsplit

import msgspec

from benchmarks.arrivals import Answers, Ask, Came, Phase, Times, moments

BODY: Final = b'{"items":[{"sku":"tea","quantity":1}]}'
# Arrivals that are due are sent in so small parts that answers are not looked at late for them.
PART: Final = 16
CONNECT_S: Final = 10.0
READ: Final = 1 << 16

UNSENT, LOST, ACCEPTED, REFUSED, WRONG = range(5)
_REFUSALS: Final = (b"503", b"429")


class Connection:
    """One connection. ``arrival`` is the number of the one that waits for its answer, or -1."""

    __slots__ = ("arrival", "received", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.arrival = -1
        self.received = b""


class Client:
    """All connections, and what became of each arrival, by its number."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.deadline_s = ask.deadline_ms / 1000
        self.heads = heads(ask)
        self.tail = b"\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
        self.poll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.idle: deque[Connection] = deque()
        self.waiting: deque[int] = deque()
        self.in_flight = 0
        # Of each arrival: its moment, how late we were with it, what became of it, and when.
        self.due_s: list[float] = []
        self.late_s: list[float] = []
        self.kind = bytearray()
        self.done_s: list[float] = []
        self.odd: dict[int, str] = {}
        self.closed = False
        for _ in range(ask.connections):
            self.connect()

    # -- connections --------------------------------------------------------------------------

    def connect(self) -> None:
        """Opens one more, idle."""
        at = urlsplit(self.ask.url)
        sock = socket.create_connection((at.hostname or "", at.port or 80), CONNECT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        connection = Connection(sock)
        self.connections[sock.fileno()] = connection
        self.poll.register(sock, select.EPOLLIN)
        self.idle.append(connection)

    def broken(self, connection: Connection) -> None:
        """The server has closed it. What waits for its answer there is lost."""
        del self.connections[connection.sock.fileno()]
        self.poll.unregister(connection.sock)
        connection.sock.close()
        if connection.arrival >= 0:
            self.in_flight -= 1
            connection.arrival = -1
        else:
            self.idle.remove(connection)
        self.connect()

    # -- arrivals -----------------------------------------------------------------------------

    def arrive(self, due_s: float, now_s: float) -> None:
        """Somebody who was due at that moment is here."""
        arrival = len(self.due_s)
        self.due_s.append(due_s)
        self.late_s.append(now_s - due_s)
        self.kind.append(UNSENT)
        self.done_s.append(0.0)
        if self.idle:
            self.send(self.idle.popleft(), arrival)
        elif self.ask.waits:
            self.waiting.append(arrival)

    def send(self, connection: Connection, arrival: int) -> None:
        """Sends a request. It is small, so it always fits into the socket's buffer."""
        head = self.heads[arrival % len(self.heads)]
        connection.arrival = arrival
        self.kind[arrival] = LOST  # Until there is an answer.
        self.in_flight += 1
        try:
            connection.sock.send(b"%s%d%s" % (head, arrival, self.tail))
        except OSError:
            self.broken(connection)

    def read(self, connection: Connection) -> None:
        """Reads what is there; at the end of an answer the connection is free for the next."""
        if connection.arrival < 0:
            self.broken(connection)  # Nobody has asked for anything.
            return
        try:
            data = connection.sock.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.broken(connection)
            return
        if connection.received:
            data = connection.received + data
        end = data.find(b"\r\n\r\n")
        if end < 0 or len(data) < end + 4 + length_of(data, end):
            connection.received = data
            return
        connection.received = b""
        self.answered(connection.arrival, data, end)
        connection.arrival = -1
        self.in_flight -= 1
        self.next_for(connection)

    def answered(self, arrival: int, data: bytes, end: int) -> None:
        """Notes an answer."""
        self.done_s[arrival] = monotonic()
        status = data[9:12]
        if status[:1] == b"2":
            self.kind[arrival] = ACCEPTED
        elif status in _REFUSALS and data.find(b"\r\nRetry-After: ", 0, end) > 0:
            self.kind[arrival] = REFUSED
        else:
            self.kind[arrival] = WRONG
            self.odd[arrival] = status.decode("ascii", "replace")

    def next_for(self, connection: Connection) -> None:
        """Gives a free connection to whoever waits for one and has not given up."""
        waiting = self.waiting
        while waiting:
            arrival = waiting.popleft()
            if monotonic() - self.due_s[arrival] < self.deadline_s:
                self.send(connection, arrival)
                return
        if self.closed:
            now_s = monotonic()
            self.idle.appendleft(connection)
            self.arrive(now_s, now_s)
        else:
            self.idle.append(connection)

    # -- time ---------------------------------------------------------------------------------

    def look(self, wait_s: float) -> int:
        """Reads all that has come; how much that was."""
        events = self.poll.poll(wait_s, len(self.connections))
        for number, _ in events:
            # One that broke in this very round is gone already.
            connection = self.connections.get(number)
            if connection is not None:
                self.read(connection)
        return len(events)

    def run(self, began_s: float, schedule: Sequence[float]) -> None:
        """Lets everybody arrive at their moment."""
        number, total = 0, len(schedule)
        while number < total:
            now_s = monotonic()
            for _ in range(PART):
                if number >= total or (due_s := began_s + schedule[number]) > now_s:
                    break
                self.arrive(due_s, now_s)
                number += 1
            left_s = began_s + schedule[number] - now_s if number < total else 0.0
            if left_s > 0.0:
                self.sleep(left_s)
            self.look(0.0)

    def sleep(self, most_s: float) -> None:
        """Until an answer comes, but no longer than that."""
        # epoll itself counts in whole milliseconds, and an order does not take much more.
        select.select([self.poll], (), (), most_s)

    def run_closed(self, seconds: float) -> None:
        """Keeps every connection asking."""
        self.closed = True
        end_s = monotonic() + seconds
        for _ in range(len(self.idle)):
            now_s = monotonic()
            self.arrive(now_s, now_s)
        while monotonic() < end_s:
            self.look(0.1)
        self.closed = False

    def drain(self) -> None:
        """Waits for what is under way, twice as long as its buyers would: what comes then is
        overdue, and what does not is lost."""
        end_s = monotonic() + 2 * self.deadline_s
        while (self.in_flight or self.waiting) and monotonic() < end_s:
            self.look(0.05)


def heads(ask: Ask) -> list[bytes]:
    """The requests up to the number in their idempotency key."""
    at = urlsplit(ask.url)
    return [
        f"POST {at.path} HTTP/1.1\r\nHost: {at.netloc}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\n"
        # Keys of an earlier client, with the same buyers and the same sale, are not ours.
        f"Idempotency-Key: {os.getpid()}-".encode()
        for token in Path(ask.file).read_text(encoding="ascii").split()
    ]


def length_of(data: bytes, end: int) -> int:
    """The length of the body that follows this head."""
    at = data.find(b"\r\nContent-Length: ", 0, end)
    if at < 0:
        at = data[:end].lower().find(b"\r\ncontent-length: ")
        if at < 0:
            return 0
    return int(data[at + 18 : data.find(b"\r\n", at + 18)])


def came(client: Client, phase: Phase, began_s: float, first: int, last: int) -> Came:
    """What became of the arrivals from ``first`` up to, and not with, ``last``."""
    counts: Counter[str] = Counter()
    took: dict[int, list[float]] = {ACCEPTED: [], REFUSED: [], WRONG: []}
    punctual: list[float] = []
    odd: Counter[str] = Counter()
    names = {ACCEPTED: "accepted", REFUSED: "refused", WRONG: "wrong"}
    for arrival in range(first, last):
        kind = client.kind[arrival]
        if kind in (UNSENT, LOST):
            counts["unsent" if kind == UNSENT else "lost"] += 1
            continue
        took_s = client.done_s[arrival] - client.due_s[arrival]
        took[kind].append(took_s)
        if kind == ACCEPTED:
            punctual.append(took_s - client.late_s[arrival])
        if kind == WRONG:
            odd[client.odd[arrival]] += 1
        counts["overdue" if took_s > client.deadline_s else names[kind]] += 1
    kinds = ("accepted", "refused", "wrong", "overdue", "lost", "unsent")
    return Came(
        offered=last - first,
        **{name: counts[name] for name in kinds},
        odd=dict(odd),
        times=Times.of(took[ACCEPTED]),
        punctual_times=Times.of(punctual),
        refused_times=Times.of(took[REFUSED]),
        late=Times.of(client.late_s[first:last]),
        began_s=began_s,
        seconds=phase.seconds,
        done=tuple(done_in(client, began_s, phase.seconds)),
    )


def done_in(client: Client, began_s: float, seconds: float) -> Iterator[int]:
    """Accepted answers in each tenth of a second."""
    tenths = Counter(
        int(10 * (done_s - began_s))
        for done_s, kind in zip(client.done_s, client.kind, strict=True)
        if kind == ACCEPTED and done_s >= began_s
    )
    yield from (tenths[tenth] for tenth in range(max(1, round(10 * seconds))))


def answers(ask: Ask) -> Answers:
    """Runs all phases, one right after the other."""
    client = Client(ask)
    spans: list[tuple[Phase, float, int, int]] = []
    # Schedules are made before the clock starts.
    plans = [list(moments(phase, ask.seed)) if phase.per_s else None for phase in ask.phases]
    gc.collect()
    gc.disable()
    began_s, at_s = thread_time(), monotonic()
    for phase, plan in zip(ask.phases, plans, strict=True):
        first = len(client.due_s)
        if plan is None:
            client.run_closed(phase.seconds)
        else:
            client.run(at_s, plan)
        spans.append((phase, at_s, first, len(client.due_s)))
        at_s = max(at_s + phase.seconds, monotonic() if plan is None else 0.0)
    client.drain()
    return Answers(tuple(came(client, *span) for span in spans), thread_time() - began_s)


def main() -> None:
    """Reads, offers, prints."""
    ask = msgspec.json.decode(sys.stdin.buffer.read(), type=Ask)
    if ask.core is not None:
        os.sched_setaffinity(0, {ask.core})
    sys.stdout.buffer.write(msgspec.json.encode(answers(ask)))


if __name__ == "__main__":
    main()
