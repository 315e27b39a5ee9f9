"""Dead letters of the ledger: events that the database will not have, kept in the sale's Redis with
those of the other groups (``seckill dead … --group ledger``)."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from seckill.dead import DEAD_MAX, Letter
from seckill.errors import LedgerForked, LedgerRefused, SeckillError
from seckill.keys import LEDGER_GROUP as GROUP
from seckill.keys import group_keys
from seckill.ledger.database import RowRefused
from seckill.ledger.ledger import Ledger
from seckill.ledger.rows import Known, Raw
from seckill.stream import ORDER_KINDS, SALE_KINDS, SALE_SUBJECT

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["GROUP", "Letters", "LettersFull"]

_CAUSE_MAX: Final = 300
_WORD: Final = re.compile(r"[a-z_]{1,20}").fullmatch

_log = logging.getLogger("seckill.ledger")


class LettersFull(LedgerRefused):
    """A sale has as many dead letters as it may have; what follows waits in the stream."""


class Letters:
    """The dead letters of one sale in the ledger's group. Raises redis-py's exceptions."""

    def __init__(self, client: Redis, ledger: Ledger, known: Known) -> None:
        self._client: Any = client
        self._ledger = ledger
        self._known = known
        self._keys = group_keys(known.sale.id, GROUP)

    async def keep(self, raw: Raw, error: Exception) -> None:
        """Keeps an event with what was said of it. Keeping it again changes only that. Raises
        LettersFull."""
        sale, cause, now_ms = self._known.sale.id, _cause(raw, error), int(time.time() * 1000)
        letter = Letter(raw.seq, raw.at_ms, raw.subject, raw.value, False, cause, 1, now_ms)
        is_full = await self._client.hlen(self._keys.dead) >= DEAD_MAX
        if is_full and not await self._client.hexists(self._keys.dead, letter.field):
            raise LettersFull(
                f"sale {sale!r} has {DEAD_MAX:,} dead letters, and its event {raw.seq} would be"
                f" one more: {cause}; see seckill dead list {sale} --group {GROUP}"
            )
        _log.error("event %s:%d is a dead letter of the ledger: %s", sale, raw.seq, cause)
        await self._client.hset(self._keys.dead, letter.field, msgspec.json.encode(letter))

    async def send_again(self) -> int:
        """Writes those that somebody wants to be tried again; how many went in."""
        wished = await self._client.smembers(self._keys.again)
        if not wished:
            return 0
        written = 0
        fields = await self._client.hkeys(self._keys.dead)
        for name in wished:
            subject = name.removesuffix(b"\n")
            for field in fields:
                if field.partition(b":")[2] == subject:
                    written += await self._send(field)
            # One at a time: a wish that is made while others are being dealt with is not lost.
            await self._client.srem(self._keys.again, name)
        return written

    async def _send(self, field: bytes) -> int:
        text = await self._client.hget(self._keys.dead, field)
        if text is None:
            return 0
        letter = msgspec.json.decode(text, type=Letter)
        raw = Raw(letter.seq, letter.at_ms, letter.subject, letter.value)
        try:
            await self._ledger.write([(self._known, [raw])])
        except (LookupError, ValueError, RowRefused, LedgerForked) as error:
            again = msgspec.structs.replace(
                letter, attempts=letter.attempts + 1, cause=_cause(raw, error)
            )
            await self._client.hset(self._keys.dead, field, msgspec.json.encode(again))
            return 0
        await self._client.hdel(self._keys.dead, field)
        return 1


def _cause(raw: Raw, error: Exception) -> str:
    """What is wrong with an event, without anything of its record, which may be personal."""
    if isinstance(error, SeckillError):
        return f"{type(error).__name__}: {error}"[:_CAUSE_MAX]
    word, bar, _ = raw.value.partition("|")
    kinds = SALE_KINDS if raw.subject == SALE_SUBJECT else ORDER_KINDS
    if bar and word not in kinds and _WORD(word):
        return f"this version does not know events of the kind {word!r}"
    return f"its record can't be read ({type(error).__name__})"
