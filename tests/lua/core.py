"""One sale on the real server, driven script by script, with none of the engine in between."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import redis

from seckill.keys import queue_keys, shard_keys
from seckill.scripts import FORMAT, script
from seckill.status import Status
from tests.support import Dump, dump, new_sale_id, rewind

LUA = Path(__file__).parents[2] / "lua"

NEVER_MS = 2**52
"""A not_after that no clock reaches."""

HOLD_MS = 100_000
PAY_MS = 200_000
CLOCK_JUMP_MS = 600_000
DEFINITION_ID = "0123456789abcdef"


class Wish(NamedTuple):
    """One line of a reserve batch. ``cart`` as in lua/lib/units.lua. ``turn``, in a sale with a
    queue: the step that called the buyer, the ms at which the token lapses, the ticket's number."""

    id: str
    buyer: str = "ann"
    cart: str = "0"
    attrs: str = ""
    print6: str = "------"
    not_after: int = NEVER_MS
    turn: tuple[int, int, int] | None = None


class Reply(NamedTuple):
    """The answer of a verb on an order."""

    status: Status
    now_ms: int
    record: str

    @property
    def state(self) -> str:
        return self.record[:1]

    @property
    def version(self) -> int:
        return int(self.record[1], 36)


class Swept(NamedTuple):
    """The answer of expire."""

    status: Status
    now_ms: int
    expired: int
    more: int
    next_ms: int


class Event(NamedTuple):
    """One field of a stream entry, with the seq that is its own."""

    seq: int
    at_ms: int
    subject: str
    text: str

    @property
    def kind(self) -> str:
        return self.text.partition("|")[0]


class Core:
    """Every method named after a verb runs that script once."""

    def __init__(self, client: redis.Redis, sale: str = "") -> None:
        self.client = client
        self.sale = sale or new_sale_id()
        self.keys = shard_keys(self.sale)
        self.queue_keys = queue_keys(self.sale)
        self.format = FORMAT
        self.told: tuple[str, int] | tuple[str, int, str] | None = None
        self.definition_id = DEFINITION_ID

    def run(self, verb: str, *args: Any) -> Any:
        return self._eval(verb, self.keys, *args)

    def run_with_queue(self, verb: str, *args: Any) -> Any:
        """The same for a script that knows the queue's keys as well."""
        return self._eval(verb, (*self.keys, *self.queue_keys), *args)

    def _eval(self, verb: str, keys: tuple[str, ...], *args: Any) -> Any:
        return self.client.eval(script(verb).source, len(keys), *keys, self.caller, *args)

    @property
    def caller(self) -> str:
        """What every call says first: the format, and ``told`` (the server's name or run_id, the
        highest seq, who told it if it was another) once that is set."""
        if self.told is None:
            return str(self.format)
        run_id, seq, *teller = self.told
        return " ".join((str(self.format), run_id, str(seq), *teller))

    def elsewhere(self) -> Self:
        """From now on the server that is asked is another one than the sale was made on."""
        self.told = ("elsewhere", 0)
        return self

    # -- the sale -----------------------------------------------------------------------------

    def create(self, *items: tuple[int, int], **fields: int) -> Status:
        """``items``: total and limit per buyer of each. The sale has been on for a second."""
        now_ms = self.server_ms()
        header = {
            "opens_ms": now_ms - 1_000,
            "ends_ms": now_ms + 3_600_000,
            "hold_ms": HOLD_MS,
            "pay_ms": PAY_MS,
            "limit_per_order": 0,
            "limit_per_buyer": 0,
            "max_lapsed": 0,
            "clock_jump_ms": CLOCK_JUMP_MS,
        }
        assert fields.keys() <= header.keys()
        header |= fields
        flat = [part for item in items or ((10, 0), (10, 0)) for part in item]
        numbers = [*header.values(), *flat]
        return Status(self.run("create", self.definition_id, '{"title":"x"}', "run", *numbers)[0])

    def begin(self, *items: tuple[int, int], **fields: int) -> Core:
        """A sale created and opened, the place from which most tests start."""
        assert self.create(*items, **fields) is Status.CREATED
        assert self.open() is Status.DONE
        return self

    def open(self) -> Status:
        return Status(self.run("open")[0])

    def pause(self, reason: str = "") -> Status:
        return Status(self.run("pause", reason)[0])

    def resume(self) -> Status:
        return Status(self.run("resume")[0])

    def close(self) -> Status:
        return Status(self.run("close")[0])

    def add_stock(self, index: int, units: int, key: str = "k") -> tuple[Status, int, int]:
        status, _, available, total = self.run("add_stock", self.definition_id, index, units, key)
        return Status(status), available, total

    # -- orders -------------------------------------------------------------------------------

    def reserve_raw(self, *wishes: Wish) -> list[Any]:
        columns = [
            [wish.not_after for wish in wishes],
            [wish.id for wish in wishes],
            [wish.buyer for wish in wishes],
            [wish.cart for wish in wishes],
            [wish.print6 for wish in wishes],
            [wish.attrs for wish in wishes],
        ]
        run, turns = self.run, [wish.turn for wish in wishes if wish.turn is not None]
        if turns:
            # All orders of a sale with a queue have a turn, or none has.
            columns += [list(column) for column in zip(*turns, strict=True)]
            run = self.run_with_queue
        return run("reserve", self.definition_id, msgspec.msgpack.encode(columns))  # type: ignore[no-any-return]

    def reserve(self, *wishes: Wish) -> list[Status | str]:
        """A status for each order, or the record of one that exists."""
        return [
            answer.decode() if isinstance(answer, bytes) else Status(answer)
            for answer in self.reserve_raw(*wishes)[2]
        ]

    def hold(self, id: str = "o1", buyer: str = "ann", cart: str = "0") -> str:  # noqa: A002
        """An accepted order's id."""
        assert self.reserve(Wish(id, buyer, cart)) == [Status.CREATED]
        return id

    def paid(self, id: str = "o1", buyer: str = "ann", cart: str = "0") -> str:  # noqa: A002
        """The id of an order that payment p1 has confirmed."""
        assert self.confirm(self.hold(id, buyer, cart), "p1").status is Status.DONE
        return id

    def lapse(self, id: str = "o1", buyer: str = "ann", cart: str = "0") -> str:  # noqa: A002
        """The id of an order that has expired."""
        self.hold(id, buyer, cart)
        self.travel(HOLD_MS)
        assert self.expire().expired == 1
        return id

    def begin_payment(self, order: str, buyer: str = "") -> Reply:
        return self._on_order("begin_payment", order, buyer)

    def confirm(self, order: str, payment: str) -> Reply:
        return self._on_order("confirm", order, payment)

    def release(self, order: str, buyer: str = "") -> Reply:
        return self._on_order("release", order, buyer)

    def refund(self, order: str, refund: str = "r1", units: int = 1, limit: int = 1) -> Reply:
        return self._on_order("refund", order, refund, units, limit)

    def expire(self, look_at: int = 100) -> Swept:
        status, *rest = self.run("expire", look_at)
        return Swept(Status(status), *rest)

    def _on_order(self, verb: str, order: str, *args: Any) -> Reply:
        status, now_ms, record = self.run(verb, order, *args)
        return Reply(Status(status), now_ms, record.decode())

    # -- what Redis holds ---------------------------------------------------------------------

    def server_ms(self) -> int:
        seconds, micros = self.client.time()  # type: ignore[misc]
        return int(seconds) * 1000 + int(micros) // 1000

    def header(self, field: str) -> str:
        value = self.client.hget(self.keys[0], field)
        assert value is not None, field
        return value.decode()  # type: ignore[union-attr]

    def set_header(self, **fields: str | int) -> None:
        self.client.hset(self.keys[0], mapping=fields)

    def stock(self, index: int = 0) -> tuple[int, int, int, int]:
        """Available, held, confirmed, total."""
        names = [f"{index}:{name}" for name in ("available", "held", "confirmed", "total")]
        available, held, confirmed, total = map(int, self.client.hmget(self.keys[1], names))  # type: ignore[arg-type]
        return available, held, confirmed, total

    def purse(self, buyer: str = "ann") -> str | None:
        value = self.client.hget(self.keys[2], buyer)
        return None if value is None else value.decode()  # type: ignore[union-attr]

    def record(self, order: str) -> str:
        value = self.client.hget(self.keys[3], order)
        assert value is not None, order
        return value.decode()  # type: ignore[union-attr]

    def queue(self, name: str) -> list[str]:
        key = {"holds": self.keys[4], "paying": self.keys[5]}[name]
        return [entry.decode() for entry in self.client.lrange(key, 0, -1)]  # type: ignore[union-attr]

    def events(self) -> list[Event]:
        """All events; the numbering of an entry with many is asserted to be dense."""
        found: list[Event] = []
        for entry_id, fields in self.client.xrange(self.keys[6]):  # type: ignore[union-attr]
            at, last = map(int, entry_id.decode().split("-"))
            pairs = list(fields.items())
            for offset, (subject, text) in enumerate(pairs, last - len(pairs) + 1):
                found.append(Event(offset, at, subject.decode(), text.decode()))
        assert [event.seq for event in found] == list(range(1, len(found) + 1))
        return found

    def kinds(self, since: int = 2) -> list[str]:
        """Subject and kind of each event, by default after created and opened."""
        return [f"{event.subject} {event.kind}" for event in self.events()[since:]]

    def dump(self) -> Dump:
        return dump(self.client, self.sale)

    # -- time ---------------------------------------------------------------------------------

    def travel(self, ms: int) -> None:
        """Makes ``ms`` pass in this sale, see tests.support.shift."""
        for field in ("origin_ms", "opens_ms", "ends_ms"):
            self.client.hincrby(self.keys[0], field, -ms)

    def rewind(self, ms: int) -> None:
        rewind(self.client, self.sale, ms)


# -- what the scripts say of themselves ---------------------------------------------------------


def header_text(verb: str) -> str:
    """The comment a script opens with."""
    match = re.match(r"--\[\[\n(.*?)\n\]\]\n", (LUA / f"{verb}.lua").read_text("utf-8"), re.DOTALL)
    assert match is not None, f"{verb}.lua does not open with its promise"
    return match[1]


def header_answers(verb: str) -> set[Status]:
    """The statuses that the header names as answers."""
    _, mark, answers = header_text(verb).rpartition("nswer")
    assert mark, f"{verb}.lua names no answers"
    # What stands in brackets explains an answer and may name others in passing.
    plain = re.sub(r"\([^)]*\)", "", answers)
    return {Status[name] for name in re.findall(r"\b[A-Z][A-Z_]{3,}\b", plain)}
