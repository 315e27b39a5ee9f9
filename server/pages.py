"""Sale pages from memory: a million buyers look at a sale in the minute before it opens, and Redis
is asked once a second.

    page asked ─▶ fresh? ──────────────────────────────────▶ answered from memory
                    └─ old: one look at Redis for all who ask ─▶ answered, and kept
                         └─ no answer soon, or none at all ─▶ the old page, while it is not too old

What is kept is bounded in bytes. A sale that is not in the list as it was a second ago may be new,
and is looked up; when many such are asked for they are made up, and then the list has to do.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from time import monotonic
from typing import Final, Generic, TypeVar

import msgspec
from aiohttp import web

from seckill.engine import Engine
from seckill.errors import OutcomeUnknown, RedisUnavailable, UnknownSale, UpgradeNeeded
from seckill.sale import check_sale_id
from seckill.snapshot import Snapshot
from seckill.status import Status

from .limits import Limiter
from .problems import ANSWERS, Problem
from .reply import JSON, Reply
from .wire import SaleEntry, SalesDocument, encode, sale_document, sale_entry
from .wire_queue import DrawDocument

__all__ = ["STALE_S", "Page", "Pages", "etag_of", "page_reply"]

PAGE_SALES: Final = 100
FRESH_S: Final = 1.0
# Nothing about a settled sale changes any more.
SETTLED_S: Final = 60.0
STALE_S: Final = 30.0
PATIENCE_S: Final = 0.25
RETRY_S: Final = 1.0
BYTES_MAX: Final = 32 * 1024 * 1024
NEW_PER_S: Final = 50
# What a kept page weighs besides its body, generously.
_OVERHEAD: Final = 1_000


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Something that counts as fresh until ``fresh_until_s`` by our monotonic clock."""

    fresh_until_s: float

    @property
    def weight(self) -> int:
        """About how many bytes it takes."""
        return _OVERHEAD


class Names(Kept, frozen=True, kw_only=True):
    """The ids of all sales, sorted. It may name one that was never made, and misses none."""

    names: list[str]


class Page(Kept, frozen=True, kw_only=True):
    """A page as it is sent. ``ahead_ms`` is how far the sales' clock is ahead of our monotonic one,
    where that is known."""

    body: bytes
    etag: str
    ahead_ms: float | None = None

    @property
    def weight(self) -> int:
        """About how many bytes it takes."""
        return _OVERHEAD + len(self.body)


class SalePage(Page, frozen=True, kw_only=True):
    """A sale's page, with the sale's line in the list."""

    entry: SaleEntry


_K = TypeVar("_K", bound=Kept)


class _Attempt(msgspec.Struct, Generic[_K]):
    """One look under way, or one that failed not long ago."""

    task: asyncio.Task[_K]
    began_s: float


class Memory(Generic[_K]):
    """Keeps what ``look`` finds, the most recent up to ``BYTES_MAX``. At most one look for a key is
    under way, and after one that failed there is a pause."""

    def __init__(self, look: Callable[[str], Awaitable[_K]]) -> None:
        self._look = look
        self._kept: dict[str, _K] = {}
        self._bytes = 0
        self._attempts: dict[str, _Attempt[_K]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    async def get(self, key: str) -> _K:
        """What is known under this key. Raises whatever ``look`` raises, UnknownSale always, and
        other errors only when there is nothing that could be shown instead."""
        kept, now_s = self._kept.get(key), monotonic()
        if kept is not None and now_s < kept.fresh_until_s:
            return kept
        attempt = self._attempts.get(key)
        if attempt is None or (attempt.task.done() and now_s >= attempt.began_s + RETRY_S):
            attempt = self._begin(key, now_s)
        if kept is None or now_s >= kept.fresh_until_s + STALE_S:
            # Shielded, because the others who wait for the same answer outlive this caller.
            return await asyncio.shield(attempt.task)
        patience_s = attempt.began_s + PATIENCE_S - now_s
        if not attempt.task.done() and patience_s > 0:
            await asyncio.wait([attempt.task], timeout=patience_s)
        if attempt.task.done():
            try:
                return attempt.task.result()
            except (RedisUnavailable, OutcomeUnknown):
                pass
        return kept

    def outdate(self) -> None:
        """Something has changed: whoever asks next waits for a new look. One under way may have
        seen what was before."""
        self._attempts.clear()
        for key, kept in self._kept.items():
            self._kept[key] = msgspec.structs.replace(kept, fresh_until_s=0.0)

    def _begin(self, key: str, now_s: float) -> _Attempt[_K]:
        async def look() -> _K:
            return await self._look(key)

        def ended(task: asyncio.Task[_K]) -> None:
            if task.cancelled():
                return
            error = task.exception()
            if self._attempts.get(key) is not attempt:
                return
            if error is None:
                self._keep(key, task.result())
            elif isinstance(error, UnknownSale):
                self._drop(key)
            else:
                return
            del self._attempts[key]

        attempt = _Attempt(asyncio.create_task(look()), now_s)
        attempt.task.add_done_callback(ended)
        self._attempts[key] = attempt
        return attempt

    def _keep(self, key: str, found: _K) -> None:
        self._drop(key)
        self._kept[key] = found
        self._bytes += found.weight
        while self._bytes > BYTES_MAX and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: str) -> None:
        if key in self._kept:
            self._bytes -= self._kept.pop(key).weight


class Pages:
    """The pages of one intake."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._names = Memory(self._look_names)
        self._sales = Memory(self._look_sale)
        self._lists = Memory(self._look_list)
        self._draws = Memory(self._look_draw)
        self._new = Limiter(NEW_PER_S, NEW_PER_S)

    async def sale(self, sale: str) -> Page:
        """A sale's page. Raises UnknownSale, InvalidInput, or what keeps Redis from answering."""
        if sale not in self._sales:
            check_sale_id(sale, "sale")
            names = (await self._names.get("")).names
            if not _is_in(names, sale) and self._new.take("", monotonic()):
                raise UnknownSale(sale)
        return await self._sales.get(sale)

    async def draw(self, sale: str) -> Page:
        """What is published of a sale's draw. Raises as ``sale``, and Problem for a sale that has
        none."""
        if sale not in self._draws:
            await self.sale(sale)
        return await self._draws.get(sale)

    async def list(self, after: str) -> Page:
        """A page of the list, with the sales whose ids come after this text."""
        names = (await self._names.get("")).names
        start = bisect_right(names, after)
        # Under the last id before it, so that it does not matter what text somebody makes up.
        return await self._lists.get(names[start - 1] if start else "")

    def changed(self) -> None:
        """A verb has changed a sale through this intake, whose next page must show it."""
        for memory in (self._names, self._sales, self._lists, self._draws):
            memory.outdate()

    async def _look_names(self, key: str) -> Names:
        names = await self._engine.sales()
        return Names(fresh_until_s=monotonic() + FRESH_S, names=names)

    async def _look_sale(self, sale: str) -> SalePage:
        definition, now = await self._engine.sale(sale), await self._engine.snapshot(sale)
        read_s, body = monotonic(), encode(sale_document(definition, now))
        return SalePage(
            fresh_until_s=read_s + _fresh_s(now),
            body=body,
            etag=etag_of(body),
            ahead_ms=now.at_ms - read_s * 1000,
            entry=sale_entry(definition, now),
        )

    async def _look_list(self, key: str) -> Page:
        known = await self._names.get("")
        start = bisect_right(known.names, key)
        names = known.names[start : start + PAGE_SALES]
        found = await asyncio.gather(*(self._page_of(name) for name in names))
        pages = [page for page in found if page is not None]
        after = names[-1] if len(known.names) > start + PAGE_SALES else None
        body = encode(SalesDocument([page.entry for page in pages], after))
        return Page(
            # As old as the oldest of its parts.
            fresh_until_s=min([known.fresh_until_s, *(page.fresh_until_s for page in pages)]),
            body=body,
            etag=etag_of(body),
            ahead_ms=max((page.ahead_ms for page in pages if page.ahead_ms), default=None),
        )

    async def _look_draw(self, key: str) -> Page:
        queue = self._engine.queue
        commitment = await queue.commitment(key)
        if commitment is Status.NO_QUEUE:
            raise Problem(ANSWERS[commitment], "the tickets of this sale are not drawn")
        if isinstance(commitment, Status):
            raise Problem(ANSWERS[commitment])
        sale, record = await self._engine.sale(key), await queue.record(key)
        document = DrawDocument(
            sale=sale.id,
            definition_id=sale.definition_id,
            definition=sale.definition().decode(),
            commitment=commitment,
        )
        body = encode(document) if record is None else record.encode()
        fresh_s = SETTLED_S if record is not None and record.seed else FRESH_S
        return Page(fresh_until_s=monotonic() + fresh_s, body=body, etag=etag_of(body))

    async def _page_of(self, sale: str) -> SalePage | None:
        try:
            return await self._sales.get(sale)
        except (UnknownSale, UpgradeNeeded):
            # The list may name a sale whose creation was cut short, or that is another version's.
            return None


def page_reply(request: web.Request, page: Page, max_age_s: int, media: str = JSON) -> Reply:
    """A page for everybody, or 304 to whoever has it already. ``Age`` says how old a page is that
    is only shown because Redis does not answer."""
    now_s = monotonic()
    headers = {
        "Cache-Control": f"public, max-age={max_age_s}, stale-if-error={int(STALE_S)}",
        "ETag": f'"{page.etag}"',
        "Server": "seckill",
    }
    if page.ahead_ms is not None:
        headers["Seckill-Time-Ms"] = str(int(now_s * 1000 + page.ahead_ms))
    if now_s > page.fresh_until_s:
        headers["Age"] = str(int(now_s - page.fresh_until_s) + max_age_s)
    known = request.if_none_match
    if known and any(tag.value in (page.etag, "*") for tag in known):
        return Reply(status=304, headers=headers)
    headers["Content-Type"] = media
    return Reply(body=page.body, headers=headers)


def etag_of(body: bytes) -> str:
    """The entity tag of a body, without quotes."""
    return blake2b(body, digest_size=8).hexdigest()


def _is_in(names: list[str], name: str) -> bool:
    after = bisect_right(names, name)
    return after > 0 and names[after - 1] == name


def _fresh_s(now: Snapshot) -> float:
    """How long a picture of a sale counts as fresh: not beyond the moment at which it opens or
    ends by itself."""
    if now.state == "settled":
        return SETTLED_S
    ahead_s = [(at_ms - now.at_ms) / 1000 for at_ms in (now.opens_ms, now.ends_ms)]
    return min([FRESH_S, *(s for s in ahead_s if s > 0)])
