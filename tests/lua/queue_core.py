"""A sale with a queue on the real server, on a clock that only the test moves.

Where the scripts ask for TIME, this sale's read a key: the one change that is made to them. So
every figure is exact, and the clock can be set back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import redis

from seckill.keys import QUEUE_NAMES
from seckill.scripts import script
from seckill.status import Status
from tests.lua.core import NEVER_MS, Core, Wish
from tests.support import Dump, _dump_key

_CLOCK = """
local function time_of_the_test()
  local ms = redis.call('GET', KEYS[1] .. ':clock')
  return { math.floor(ms / 1000), ms % 1000 * 1000 }
end
"""

LIFE_MS = 100_000
PAUSE_MS = 400
"""Longer than two steps of a queue of LIFE_MS are apart."""
DAY_MS = 86_400_000
NO_RANK = 2**32 - 1
QUEUE_VERBS = frozenset(
    {"queue", "join", "leave", "admit", "list", "name_value", "draw", "reserve"}
)


def timed(verb: str) -> str:
    """A script that takes for TIME what stands in the sale's clock."""
    return _CLOCK + script(verb).source.replace("redis.call('TIME')", "time_of_the_test()")


class Step(NamedTuple):
    """Positions that were called together, ``start`` to ``stop`` - 1."""

    number: int
    start: int
    stop: int
    at_ms: int


class Look(NamedTuple):
    """The answer of admit."""

    status: Status
    raw_ms: int
    now_ms: int
    turn_ms: int
    refusal: int
    head: int
    tail: int
    lapsed: int
    waiting: int
    available: int
    held: int
    reach: int
    next: int
    closed: int
    ranked: int
    lapses: int
    live: int
    called: int
    room: int
    keys: str
    steps: list[Step]


class Ticket(NamedTuple):
    """An answer of join that is no refusal."""

    number: int
    known: bool


class QueueCore(Core):
    """Every method named after a verb runs that script once."""

    def __init__(self, client: redis.Redis, sale: str = "") -> None:
        super().__init__(client, sale)
        self.clock = f"{self.keys[0]}:clock"
        self.now_ms = 0
        self.jump(super().server_ms())

    def run(self, verb: str, *args: Any) -> Any:
        return self.run_with_queue(verb, *args) if verb in QUEUE_VERBS else super().run(verb, *args)

    def _eval(self, verb: str, keys: tuple[str, ...], *args: Any) -> Any:
        return self.client.eval(timed(verb), len(keys), *keys, self.caller, *args)

    def server_ms(self) -> int:
        """What the scripts take for TIME."""
        return self.now_ms

    def begin_queue(
        self,
        mode: str = "queue",
        stock: int | Sequence[int] = 10,
        *,
        rate: int = 0,
        overbook: int = 20,
        life_ms: int = LIFE_MS,
        draw_in_ms: int = 0,
        opens_in_ms: int = 0,
        joins_in_ms: int = 0,
        **fields: int,
    ) -> QueueCore:
        """An open sale and its queue. Times count from the sale's own moment, ``now_ms``."""
        fields.setdefault("ends_ms", self.now_ms + 10 * DAY_MS)
        totals = [stock] if isinstance(stock, int) else stock
        items = [(total, 0) for total in totals]
        assert self.create(*items, opens_ms=self.now_ms + opens_in_ms, **fields) is Status.CREATED
        assert self.open() is Status.DONE
        draw_ms = "" if mode == "queue" else self.now_ms + draw_in_ms
        status = self.open_queue(mode, self.now_ms + joins_in_ms, draw_ms, life_ms, rate, overbook)
        assert status is Status.CREATED
        self.admit()  # From now on time passes in the queue.
        return self

    def open_queue(self, mode: str, *numbers: Any) -> Status:
        """``numbers``: joins ms, draw ms, life ms, rate, overbook max."""
        words = ("5eed", "c0ffee", "secret", "k1,k2", 1)
        return Status(self.run("queue", self.definition_id, mode, *numbers, *words)[0])

    # -- the queue ----------------------------------------------------------------------------

    def join_raw(
        self, buyers: Sequence[str], weights: Sequence[int] = (), not_after: int = NEVER_MS
    ) -> list[Any]:
        columns = [[not_after] * len(buyers), list(buyers), list(weights) or [1] * len(buyers)]
        packed = msgspec.msgpack.encode(columns)
        return self.run("join", self.definition_id, packed)  # type: ignore[no-any-return]

    def join(self, *buyers: str, **options: Any) -> list[Ticket | Status]:
        return [
            Status(-answer) if answer < 0 else Ticket(answer // 2, answer % 2 == 1)
            for answer in self.join_raw(buyers, **options)[2]
        ]

    def crowd(self, count: int, prefix: str = "b") -> list[str]:
        """So many new buyers, each with a ticket."""
        buyers = [f"{prefix}{i}" for i in range(count)]
        for at in range(0, count, 1_000):
            part = self.join(*buyers[at : at + 1_000])
            assert not any(isinstance(ticket, Status) or ticket.known for ticket in part)
        return buyers

    def leave(self, buyer: str) -> Status:
        return Status(self.run("leave", self.definition_id, buyer)[0])

    def admit_raw(self, known: int = 0) -> list[Any]:
        return self.run("admit", self.definition_id, known)  # type: ignore[no-any-return]

    def admit(self, known: int = 0) -> Look:
        status, *numbers, keys, news = self.admit_raw(known)
        steps = [Step(*news[at : at + 4]) for at in range(0, len(news), 4)]
        return Look(Status(status), *numbers, keys.decode(), steps)

    def list_tickets(self, digest: str = "d16e57", count: int = 0) -> Status:
        return Status(self.run("list", self.definition_id, digest, count)[0])

    def name_value(self, value: str) -> Status:
        return Status(self.run("name_value", self.definition_id, value)[0])

    def draw(self, digest: str = "d16e57", value: str = "", ranked: int = 0) -> Status:
        return Status(self.run("draw", self.definition_id, digest, value, ranked)[0])

    def put_ranks(self, ranks: Sequence[int]) -> None:
        """What Python writes before it calls draw: the rank of each number."""
        raw = b"".join(rank.to_bytes(4, "little") for rank in ranks)
        self.client.set(self.queue_keys[4], raw)

    def rank(self, order: Sequence[int], closed: int) -> None:
        """List and draw: ``order`` is the numbers as they will be called, of ``closed`` given."""
        ranks = [NO_RANK] * closed
        for rank, number in enumerate(order):
            ranks[number] = rank
        assert self.list_tickets(count=len(order)) is Status.DONE
        self.put_ranks(ranks)
        assert self.draw(ranked=len(order)) is Status.DONE

    # -- orders -------------------------------------------------------------------------------

    def turn(self, buyer: str, step: Step) -> tuple[int, int, int]:
        """What the token says that this step gave the buyer; the ticket is the one there is now."""
        text = self.client.hget(self.queue_keys[1], buyer) or b"-1"
        number = int(text.decode().partition(":")[0])  # type: ignore[union-attr]
        return step.number, step.at_ms + int(self.queue_field("life_ms")), number

    def buy(self, buyer: str, step: Step, *, order: str = "", cart: str = "0") -> Status | str:
        """An order with a token of this step: its answer, or the record of one that exists."""
        wish = Wish(order or f"o-{buyer}", buyer, cart, turn=self.turn(buyer, step))
        return self.reserve(wish)[0]

    # -- what Redis holds ---------------------------------------------------------------------

    def queue_field(self, field: str) -> str:
        value = self.client.hget(self.queue_keys[0], field)
        assert value is not None, field
        return value.decode()  # type: ignore[union-attr]

    def step_text(self, field: str | int) -> str | None:
        value = self.client.hget(self.queue_keys[2], str(field))
        return None if value is None else value.decode()  # type: ignore[union-attr]

    def left(self) -> list[int]:
        return [int(member) for member in self.client.zrange(self.queue_keys[3], 0, -1)]  # type: ignore[union-attr]

    def dump(self) -> Dump:
        more = zip(QUEUE_NAMES, self.queue_keys, strict=True)
        return super().dump() | {name: self._dump_of(key) for name, key in more}

    def _dump_of(self, key: str) -> Any:
        if self.client.type(key) == b"zset":
            return self.client.zrange(key, 0, -1, withscores=True)
        return _dump_key(self.client, key)

    # -- time ---------------------------------------------------------------------------------

    def travel(self, ms: int) -> None:
        """So much time passes, in which somebody looks all the while, and finds nothing to do."""
        self.jump(ms)
        if self.client.hget(self.queue_keys[0], "sells") == b"1":
            for field in ("clock_ms", "seen_ms"):
                self.client.hincrby(self.queue_keys[0], field, ms)

    def jump(self, ms: int) -> None:
        """The server's clock goes on by so much, or back, and nobody has looked."""
        self.now_ms += ms
        self.client.set(self.clock, self.now_ms)

    rewind = jump
