"""Engines that answer roll calls of one sale, on a clock and a server that only the test moves.

A server is a run_id and what it has of the sale: losing something is putting an earlier picture
back. The clock is queue_core's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import redis

from seckill.fencing import name_of, run_id_of
from seckill.keys import crew_key, removed_key
from seckill.status import Status
from tests.lua.core import Core, Wish
from tests.lua.queue_core import timed

WAIT_MS = 2_000
LAPSE_MS = 5_000
STEP_MS = WAIT_MS // 4
LEDGER = "1ed9e400000000ff"


class Called(NamedTuple):
    """The answer to a roll call."""

    status: Status
    seq: int
    made: str
    beat: int
    why: str


class Picture(NamedTuple):
    """All that a server has of a sale at some moment."""

    values: tuple[bytes | None, ...]


class Engine:
    """What one process was told of the sale. Its connections break with the server they lead to, so
    it always knows by its run_id which one it asks."""

    def __init__(self, crew: Crew, name: str) -> None:
        self.crew = crew
        self.name = name
        self.seq = self.beat = self.orders = self.passed_ms = 0
        self.made = self.teller = self.server = ""

    def call(self, *, needs_ledger: bool = False) -> Called:
        """Answers the roll call."""
        called = self.crew.call(
            *(self.name, self.made, self.seq),
            *(WAIT_MS, LAPSE_MS, "engine", int(needs_ledger), self.beat, self.passed_ms),
            self.teller,
        )
        if called.status is Status.DONE:
            if called.made != self.made:
                self.seq = 0  # Another sale under the same id, or the first that it hears of.
            self.beat, self.made = max(self.beat, called.beat), called.made
            # It has been told of no event, only what this server is called.
            self.server = self.crew.named
            if self.teller == self.crew.run_id:
                self.teller = self.server
        return called

    def order(self) -> Status:
        """Takes one order."""
        self.orders += 1
        wish = Wish(f"{self.name}-{self.orders}", f"{self.name}-{self.orders}")
        is_known = run_id_of(self.server) == self.crew.run_id
        told = (self.server if is_known else self.crew.run_id, self.seq)
        self.crew.told = told if self.teller in ("", told[0]) else (*told, self.teller)
        _, _, (answer,), seq = self.crew.reserve_raw(wish)
        self.hear(seq)
        return Status(answer)

    def hear(self, seq: int) -> None:
        """It is told of events up to this one."""
        if seq > self.seq:
            is_known = run_id_of(self.server) == self.crew.run_id
            self.seq, self.teller = seq, self.server if is_known else self.crew.run_id


class Crew(Core):
    """A sale, the server that has it (``run_id``; ``named`` is what it was called last in an answer
    to a roll call), and what time it is there (``now_ms``)."""

    def __init__(self, client: redis.Redis, sale: str = "") -> None:
        super().__init__(client, sale)
        self.run_id = "first"
        self.named = ""
        self.clock = f"{self.keys[0]}:clock"
        self.key = crew_key(self.sale)
        self.removed = removed_key(self.sale)
        self.now_ms = 0
        self.jump(super().server_ms())

    def _eval(self, verb: str, keys: tuple[str, ...], *args: Any) -> Any:
        return self.client.eval(timed(verb), len(keys), *keys, self.caller, *args)

    def server_ms(self) -> int:
        """What the scripts take for TIME."""
        return self.now_ms

    def jump(self, now_ms: int) -> None:
        """Sets the server's clock."""
        self.now_ms = now_ms
        self.client.set(self.clock, now_ms, px=3_600_000)

    def wait(self, ms: int) -> None:
        self.jump(self.now_ms + ms)

    def started(self) -> Crew:
        """The sale, open, on the server that made it."""
        self.told = None
        self.begin((1_000_000, 0), clock_jump_ms=10**12, ends_ms=self.now_ms + 10**12)
        self.set_header(server=name_of(self.run_id), made=f"{self.run_id}:{self.now_ms}")
        return self

    def engine(self, name: str) -> Engine:
        """A process that has just started; ``name`` is a hex digit."""
        return Engine(self, name * 16)

    def crew(self, names: str) -> list[Engine]:
        """Engines that have answered one roll call each, and sold an order each."""
        engines = [self.engine(name) for name in names]
        for engine in engines:
            assert engine.call().status is Status.DONE
        for engine in engines:
            assert engine.order() is Status.CREATED
        return engines

    def call(self, *args: Any) -> Called:
        self.told = (self.run_id, 0)
        status, seq, made, beat, why, server = self._eval(
            "roll_call", (*self.keys, self.key, self.removed), *args
        )
        self.named = server.decode()
        return Called(Status(status), seq, made.decode(), beat, why.decode())

    def ledger(self, seq: int, made: str = "") -> Called:
        """Who speaks for the ledger answers, with what the ledger has."""
        words = (made or self.made, seq, WAIT_MS, LAPSE_MS, "ledger", 1, 0, 0, "")
        return self.call(LEDGER, *words)

    @property
    def made(self) -> str:
        return self.header("made")

    @property
    def seq(self) -> int:
        return int(self.header("seq"))

    def members(self) -> dict[str, str]:
        found: Any = self.client.hgetall(self.key)
        return {name.decode(): value.decode() for name, value in found.items()}

    def picture(self) -> Picture:
        """As a snapshot, an AOF or a replica would have it."""
        keys = (*self.keys, self.key)
        return Picture(tuple(self.client.dump(key) for key in keys))  # type: ignore[misc]

    def restart(self, run_id: str, picture: Picture | None = None) -> None:
        """Another server takes over, with what it has of the sale; by default all."""
        self.run_id = run_id
        if picture is not None:
            for key, value in zip((*self.keys, self.key), picture.values, strict=True):
                self.client.delete(key)
                if value is not None:
                    self.client.restore(key, 0, value)
