"""Replays a sale's events by rules of its own (replay.py) and proves what the engine promises. At
the end the replayed stock, orders and limits must be what Redis holds.

Events that were trimmed come from the ledger, if one is given; an event that is both there and in
the stream must be the same, and none may be in the ledger only that was not trimmed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

import msgspec

from seckill.errors import UnknownSale
from seckill.keys import shard_keys, stream_key
from seckill.order import Order, read_cart, read_order
from seckill.redis import our_errors
from seckill.replay import VIOLATIONS_MAX, Replay, Violation
from seckill.sale import Sale
from seckill.stream import Event, EventKind, decode_event

if TYPE_CHECKING:
    from seckill.engine import Engine
    from seckill.ledger import Ledger

__all__ = ["Replay", "Verdict", "Violation", "verify"]

PATIENCE_S: Final = 600.0
DAMAGE: Final = "damage"
"""The rule that what stands in Redis or the ledger can be read at all."""
_ENTRIES: Final = 500
_QUOTED_MAX: Final = 60


class Verdict(msgspec.Struct, frozen=True):
    """What the replay found. ``violations`` are in order of discovery, at most 100. With
    ``trimmed_before`` nothing could be replayed: the events before that one are not in Redis any
    more, and no ledger was given."""

    sale: str
    events: int
    orders: int
    violations: tuple[Violation, ...]
    trimmed_before: int = 0

    @property
    def ok(self) -> bool:
        """Whether every promise held."""
        return not self.violations and not self.trimmed_before


async def verify(
    engine: Engine,
    sale: str,
    *,
    ledger: Ledger | None = None,
    progress: Callable[[int], None] | None = None,
) -> Verdict:
    """Replays the sale's events and compares the end with what Redis holds.

    May run while the sale sells: the end is then compared as of the moment of one read of all keys.
    ``ledger`` (started) has the events that were trimmed. ``progress`` gets the number of events
    replayed now and then. Raises UnknownSale, LedgerUnavailable.
    """
    async with asyncio.timeout(PATIENCE_S):
        with our_errors():
            return await _verify(engine, sale, ledger, progress)


async def _verify(
    engine: Engine,
    sale: str,
    ledger: Ledger | None,
    progress: Callable[[int], None] | None,
) -> Verdict:
    definition = await engine.sale(sale)
    # Asked first: Redis only ever gets ahead of it.
    ledger_seq = (await ledger.last(sale))[0] if ledger else 0
    state = await _read_state(engine, definition)
    replay, told = Replay(definition), _Told(engine, sale, ledger, state)
    if state.state == "fenced":
        replay.broken(None, "fenced", f"Redis has lost a part of the sale: {state.reason}")
        return Verdict(sale, 0, 0, tuple(replay.violations))
    if ledger_seq > state.seq:
        told.broken(state.seq, "ledger", f"Redis ends there, the ledger at event {ledger_seq}")
    async for event in told.events():
        try:
            replay = _fed(replay, definition, event)
        except (LookupError, ValueError) as error:
            said = f"the {event.kind} says {_quoted(event.detail)}, which can't be read"
            replay.broken(event, DAMAGE, f"{said} ({error!r})")
        if progress and event.seq % 1_000 == 0:
            progress(event.seq)
    if told.trimmed_before:
        return Verdict(sale, 0, 0, (), told.trimmed_before)
    if replay.seq != state.seq:
        replay.broken(None, "seq", f"the stream ends at {replay.seq}, the sale at {state.seq}")
    for text in state.damages:
        replay.broken(None, DAMAGE, text)
    _believe(replay, state)
    replay.compare(state.stock, state.orders, state.purses, state.state)
    return Verdict(sale, replay.events, len(replay.orders), (*told.violations, *replay.violations))


def _fed(replay: Replay, definition: Sale, event: Event) -> Replay:
    """The replay with one more event. Raises LookupError or ValueError for a damaged one."""
    if event.seq == 1 and event.kind is EventKind.SALE_CREATED:
        # By the definition that was published, not by what the sale's hash says today.
        created = Sale.from_definition(event.detail.encode())
        replay = Replay(created)
        if created != definition:
            replay.broken(event, "definition", "the sale's hash holds another definition")
    replay.feed(event)
    return replay


def _believe(replay: Replay, state: _State) -> None:
    """Puts what the events say where Redis holds what can't be read: it was told once already."""
    for order in state.bad_orders & replay.orders.keys():
        state.orders[order] = replay.orders[order]
    for buyer in state.bad_buyers & replay.owned.keys():
        owned = {sku: units for sku, units in replay.owned[buyer].items() if units}
        state.purses[buyer] = (owned, replay.lapsed.get(buyer, 0))
    for sku, units in replay.units.items():
        state.stock[sku] = msgspec.structs.asdict(units) | state.stock.get(sku, {})


class _Told:
    """A sale's events as stream and ledger tell them, through the seq of ``state``."""

    def __init__(self, engine: Engine, sale: str, ledger: Ledger | None, state: _State) -> None:
        self._engine = engine
        self._sale = sale
        self._ledger = ledger
        self._state = state
        self._trimmed_seq = state.trimmed_seq
        self._damaged: set[int] = set()
        self.violations: list[Violation] = []
        self.trimmed_before = 0

    def broken(self, seq: int, rule: str, text: str) -> None:
        """Notes a broken promise."""
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(seq, rule, text))

    async def events(self) -> AsyncIterator[Event]:
        """The events in order. Ends early, with ``trimmed_before``, where some are not there."""
        seq, book = 0, self._book()
        theirs = await anext(book, None)
        async for event in self._stream():
            missing = event.seq > seq + 1 and await self._is_trimmed(event.seq - 1)
            if missing and self._ledger is None:
                self.trimmed_before = event.seq
                return
            while theirs is not None and theirs.seq < event.seq:
                if missing or theirs.seq in self._damaged:
                    yield theirs
                else:
                    self._only_there(theirs)
                theirs = await anext(book, None)
            if theirs is not None and theirs.seq == event.seq:
                if theirs != event:
                    self.broken(event.seq, "ledger", "the ledger has it with another content")
                theirs = await anext(book, None)
            yield event
            seq = event.seq
        missing = seq < self._state.seq and await self._is_trimmed(self._state.seq)
        if missing and self._ledger is None:
            self.trimmed_before = self._state.seq + 1
        while theirs is not None and theirs.seq <= self._state.seq:
            if missing or theirs.seq in self._damaged:
                yield theirs
            else:
                self._only_there(theirs)
            theirs = await anext(book, None)

    async def _stream(self) -> AsyncIterator[Event]:
        """What the stream has. An event that can't be read is a broken promise, and the others
        follow."""
        seq = 0
        try:
            async for event in self._engine.history(self._sale, through_seq=self._state.seq):
                seq = event.seq
                yield event
            return
        except UnknownSale:
            raise
        except (LookupError, ValueError):
            pass  # Each event by itself from here on, to tell which one it is.
        async for event in self._readable():
            if event.seq > self._state.seq:
                return
            if event.seq > seq:
                yield event

    async def _readable(self) -> AsyncIterator[Event]:
        """The stream's events without those that can't be read, which are noted."""
        shard, client, start = (
            await self._engine._shard(self._sale),
            self._engine._calls.client_of(stream_key(self._sale)),
            "-",
        )
        while True:
            entries = await client.execute_command(
                "XRANGE", stream_key(self._sale), start, "+", "COUNT", _ENTRIES
            )
            for entry_id, fields in entries:
                at, _, last = entry_id.decode().partition("-")
                first = int(last) - len(fields) // 2 + 1
                pairs = zip(fields[::2], fields[1::2], strict=True)
                for seq, (subject, value) in enumerate(pairs, first):
                    try:
                        named = (seq, subject.decode(), value.decode())
                        yield decode_event(shard.sale, shard.origin_ms, int(at), *named)
                    except (LookupError, ValueError):
                        self._damaged.add(seq)
                        where = f"entry {entry_id.decode()} of {stream_key(self._sale)}"
                        said = f"{_quoted(subject)} {_quoted(value)}"
                        self.broken(seq, DAMAGE, f"{where} can't be read: {said}")
                start = "(" + entry_id.decode()
            if len(entries) < _ENTRIES:
                return

    def _only_there(self, event: Event) -> None:
        self.broken(event.seq, "ledger", "the ledger has this event, the stream never lost it")

    async def _book(self) -> AsyncIterator[Event]:
        """What the ledger has."""
        if self._ledger is None:
            return
        from seckill.ledger.rows import decode

        try:
            known = await self._ledger.known(self._sale)
        except UnknownSale:
            return  # Nobody has written it there yet.
        async for part in self._ledger.events(self._sale):
            for raw in part:
                try:
                    event = decode(known, raw)
                except (LookupError, ValueError):
                    said = f"{_quoted(raw.subject)} {_quoted(raw.value)}"
                    self.broken(raw.seq, DAMAGE, f"the ledger's event can't be read: {said}")
                    continue
                yield event

    async def _is_trimmed(self, seq: int) -> bool:
        """Whether this event was taken out of the stream on purpose, perhaps only just now."""
        if self._trimmed_seq < seq:
            key = shard_keys(self._sale)[0]
            client = self._engine._calls.client_of(key)
            found = await self._engine._calls.attempt(lambda: client.hget(key, "trimmed_seq"))
            self._trimmed_seq = int(found or 0)
        return self._trimmed_seq >= seq


class _State(msgspec.Struct):
    seq: int
    state: str
    stock: dict[str, dict[str, int]]
    orders: dict[str, Order]
    purses: dict[str, tuple[dict[str, int], int]]
    reason: str = ""
    trimmed_seq: int = 0
    damages: list[str] = msgspec.field(default_factory=list)
    bad_orders: set[str] = msgspec.field(default_factory=set)
    bad_buyers: set[str] = msgspec.field(default_factory=set)


async def _read_state(engine: Engine, sale: Sale) -> _State:
    """Header, stock, orders and buyers in one MULTI: hundreds of thousands of orders stall the
    server for tens of milliseconds, which is the price of a picture without a seam."""
    client = engine._calls.client_of(stream_key(sale.id))
    origin_ms = (await engine._shard(sale.id)).origin_ms
    keys = shard_keys(sale.id)
    async with client.pipeline(transaction=True) as pipe:
        for command in (
            ("HMGET", keys[0], "seq", "state", "reason", "trimmed_seq"),
            ("HGETALL", keys[1]),
            ("HGETALL", keys[3]),
            ("HGETALL", keys[2]),
        ):
            pipe.execute_command(*command)
        header, stock, orders, purses = await pipe.execute()
    if header[0] is None:
        raise UnknownSale(sale.id)
    reason, trimmed_seq = (header[2] or b"").decode(), int(header[3] or 0)
    if header[1] == b"fenced":
        # It may have no stock.
        return _State(int(header[0]), "fenced", {}, {}, {}, reason)
    state = _State(int(header[0]), header[1].decode(), {}, {}, {}, reason, trimmed_seq)
    _read_stock(state, sale, stock, keys[1])
    _read_orders(state, sale, origin_ms, orders, keys[3])
    _read_purses(state, sale, purses, keys[2])
    return state


def _read_stock(state: _State, sale: Sale, stock: dict[bytes, bytes], key: str) -> None:
    for index, sku in enumerate(item.sku for item in sale.items):
        units = state.stock[sku] = {}
        for name in ("available", "held", "confirmed", "total"):
            found = stock.get(f"{index}:{name}".encode())
            try:
                units[name] = int(found or b"")
            except ValueError:
                said = "is missing" if found is None else f"is {_quoted(found)}, which is no number"
                state.damages.append(f"field {index}:{name} of {key} (SKU {sku}) {said}")


def _read_orders(
    state: _State, sale: Sale, origin_ms: int, orders: dict[bytes, bytes], key: str
) -> None:
    for field, record in orders.items():
        order = field.decode(errors="replace")
        try:
            state.orders[order] = read_order(sale, origin_ms, order, record.decode())
        except (LookupError, ValueError):
            state.bad_orders.add(order)
            said = f"is {_quoted(record)}, which is no order's record"
            state.damages.append(f"order {order} of {key} {said}")


def _read_purses(state: _State, sale: Sale, purses: dict[bytes, bytes], key: str) -> None:
    for field, text in purses.items():
        buyer = field.decode(errors="replace")
        try:
            body, _, lapsed = text.decode().partition("!")
            owned = {sale.items[index].sku: units for index, units in read_cart(body).items()}
            state.purses[buyer] = (owned, int(lapsed or 0))
        except (LookupError, ValueError):
            state.bad_buyers.add(buyer)
            said = f"is {_quoted(text)}, which is no count of units"
            state.damages.append(f"buyer {buyer} of {key} {said}")


def _quoted(value: bytes | str) -> str:
    text = value if isinstance(value, str) else value.decode(errors="replace")
    return repr(text if len(text) <= _QUOTED_MAX else text[: _QUOTED_MAX - 1] + "…")
