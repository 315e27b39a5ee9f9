"""Checks of one sale: what its keys hold, and whether it will sell when its time comes.

Everything is read in one MULTI, so a sale that is selling shows one moment; a server at maxmemory
refuses even that. No script is asked: those refuse a damaged key without saying which.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from seckill.doctor.admission import QueueReading, check_admission
from seckill.doctor.finding import Finding, green, red, yellow
from seckill.doctor.readings import Reading
from seckill.errors import InvalidInput
from seckill.fencing import run_id_of
from seckill.keys import NAMES, shard_keys
from seckill.sale import Sale
from seckill.scripts import FORMAT

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["NEAR_MS", "SaleReading", "check_sale", "read_sale"]

NEAR_MS: Final = 3_600_000
"""From an hour before its time on, a sale that would not sell is red."""

_KINDS: Final = ("hash", "hash", "hash", "hash", "list", "list", "stream")
_COUNTS: Final = ("available", "held", "confirmed", "total")
# Of the header, what must be as the definition says.
_COPIES: Final = (
    "opens_ms",
    "ends_ms",
    "hold_ms",
    "pay_ms",
    "limit_per_order",
    "limit_per_buyer",
    "max_lapsed",
)
UPTIME_ERROR_MS: Final = 2_000
_BROKEN: Final = "call a person; if it can't be mended, create the sale under another id"


class SaleReading(msgspec.Struct, frozen=True, kw_only=True):
    """A sale's keys at one moment. ``kinds`` are the types of the seven; what has the wrong type
    reads as empty. ``newest`` is the id of the stream's last entry, ``oldest`` of its first, and
    ``deleted`` how many entries were taken out of it, 0 where the server can't tell (before Redis
    7)."""

    id: str
    now_ms: int
    kinds: tuple[str, ...]
    header: dict[str, str]
    stock: dict[str, str]
    buyers: int
    orders: int
    oldest: str
    newest: str
    deleted: int

    @property
    def exists(self) -> bool:
        """Whether any key of the sale does."""
        return any(kind != "none" for kind in self.kinds)

    def number(self, field: str) -> int:
        """A number of the header, or 0 where there is none."""
        text = self.header.get(field, "")
        return int(text) if text.isdecimal() else 0


async def read_sale(client: Redis, sale: str) -> SaleReading:
    """Reads a sale as it is, damaged or not. Raises what redis-py raises."""
    from redis.exceptions import NoPermissionError, OutOfMemoryError

    try:
        found = await _ask(client, sale, transaction=True)
    except OutOfMemoryError:
        # In a MULTI even a reading command is refused at maxmemory. One pipeline is as good as
        # always one moment, too, because the server reads so short a text at once.
        found = await _ask(client, sale, transaction=False)
    for answer in found:
        # What may not be read is not damaged.
        if isinstance(answer, NoPermissionError):
            raise answer
    kinds, (time, header, stock, buyers, orders, first, stream) = found[:7], found[7:]
    return SaleReading(
        id=sale,
        now_ms=int(time[0]) * 1_000 + int(time[1]) // 1_000,
        kinds=tuple(kind.decode() for kind in kinds),
        header=_texts(header),
        stock=_texts(stock),
        buyers=buyers if isinstance(buyers, int) else 0,
        orders=orders if isinstance(orders, int) else 0,
        oldest=first[0][0].decode() if isinstance(first, list) and first else "",
        newest=stream["last-generated-id"].decode() if isinstance(stream, dict) else "",
        deleted=_deleted(stream) if isinstance(stream, dict) else 0,
    )


def _deleted(stream: dict[str, Any]) -> int:
    """What was ever added and is no longer there."""
    return int(stream.get("entries-added", stream["length"])) - int(stream["length"])


async def _ask(client: Redis, sale: str, *, transaction: bool) -> list[Any]:
    """The answers of the seven types, of TIME, and of what the keys hold."""
    keys = shard_keys(sale)
    async with client.pipeline(transaction=transaction) as pipe:
        for command in (
            *(("TYPE", key) for key in keys),
            ("TIME",),
            ("HGETALL", keys[0]),
            ("HGETALL", keys[1]),
            ("HLEN", keys[2]),
            ("HLEN", keys[3]),
            ("XRANGE", keys[6], "-", "+", "COUNT", 1),
            ("XINFO STREAM", keys[6]),
        ):
            pipe.execute_command(*command)
        return await pipe.execute(raise_on_error=False)


def _texts(reply: Any) -> dict[str, str]:
    if not isinstance(reply, dict):
        return {}
    return {
        name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for name, value in reply.items()
    }


def check_sale(sale: SaleReading, reading: Reading, queue: QueueReading) -> list[Finding]:
    """All findings of a sale's own keys. Where its definition can't be read, most are missing."""
    if not sale.exists:
        remedy = "create it: `seckill sale create FILE.toml --open` (`seckill sale list`)"
        return [red("sale", f"no sale {sale.id!r} on this server", remedy)]
    if sale.header.get("state") == "fenced":
        # What else is wrong with it is what the rebuild mends.
        seen = f"it is fenced: {sale.header.get('reason', '')}"
        return [red("sale", seen, f"`seckill rebuild {sale.id}` (docs/recovery.md)")]
    definition, finding = _definition(sale)
    if definition is None:
        return [finding, _keys(sale)]
    findings = [finding, _keys(sale), _window(sale), _sale_clock(sale)]
    findings.append(check_admission(definition, sale.now_ms, queue))
    if sale.stock:
        findings.append(_stock(sale, definition))
    if reading.is_master:
        findings.append(_home(sale, reading))
    return findings


def _definition(sale: SaleReading) -> tuple[Sale | None, Finding]:
    header = sale.header
    if not header.get("definition"):
        return None, red("sale", "its header is missing or of the wrong type", _BROKEN)
    if header.get("format") != str(FORMAT):
        seen = f"its format is {header.get('format')}, this version reads {FORMAT}"
        return None, red("sale", seen, "examine it with the version that created it")
    try:
        definition = Sale.from_definition(header["definition"].encode())
    except (InvalidInput, ValueError) as error:
        return None, red("sale", f"its definition can't be read: {error}", _BROKEN)
    if definition.definition_id != header.get("definition_id"):
        return None, red("sale", "its definition is not the one it was created with", _BROKEN)
    changed = [name for name in _COPIES if header.get(name) != str(getattr(definition, name))]
    if changed:
        seen = f"{', '.join(changed)} differ from its definition"
        return definition, red("sale", seen, _BROKEN)
    units = sum(item.total for item in definition.items)
    return definition, green("sale", f"{len(definition.items):,} SKUs, {units:,} units")


def _keys(sale: SaleReading) -> Finding:
    """Types, and whether all are there that must be. Empty hashes and lists do not exist."""
    wrong = [
        f"{key} is a {kind}"
        for key, kind, right in zip(shard_keys(sale.id), sale.kinds, _KINDS, strict=True)
        if kind not in (right, "none")
    ]
    if wrong:
        return red("keys", "; ".join(wrong), "find out who wrote there; call a person")
    kinds = dict(zip(NAMES, sale.kinds, strict=True))
    needed = {"sale", "stock", "events"}
    if sale.orders or any(_is_some(sale.stock[name]) for name in _taken(sale)):
        needed |= {"orders", "buyers"}
    missing = sorted(name for name in needed if kinds[name] == "none")
    if missing:
        gone = ", ".join(shard_keys(sale.id)[NAMES.index(name)] for name in missing)
        return red("keys", f"missing: {gone}", "restore the server's data; call a person")
    last = sale.newest.partition("-")[2]
    if last != sale.header.get("seq"):
        seen = f"the stream ends at event {last}, the sale is at {sale.header.get('seq')}"
        return red("keys", seen, "restore the server's data; call a person")
    # It begins with the sale's creation, unless it was trimmed (lua/trim.lua) or made anew.
    trimmed = int(sale.header.get("trimmed_entries", "0"))
    begins = trimmed or "rebuilt_by" in sale.header or sale.oldest.partition("-")[2] == "1"
    if sale.deleted > trimmed or not begins:
        count = f"{sale.deleted:,}" if sale.deleted else "the first"
        seen = f"entries were deleted from the stream: {count}, so their events are lost"
        return red("keys", seen, "find out who did it; restore the server's data; call a person")
    held = any(_is_some(sale.stock[name]) for name in _taken(sale) if name.endswith(":held"))
    if held and kinds["holds"] == kinds["paying"] == "none":
        seen = "units are held and both lists of deadlines are missing: nothing gives them back"
        return red("keys", seen, "restore the server's data; call a person")
    return green("keys", f"all of the right type, {sale.header['seq']} events")


def _taken(sale: SaleReading) -> list[str]:
    return [name for name in sale.stock if name.endswith((":held", ":confirmed"))]


def _is_some(text: str) -> bool:
    return text.isdecimal() and int(text) > 0


def _stock(sale: SaleReading, definition: Sale) -> Finding:
    wrong, units = [], dict.fromkeys(_COUNTS, 0)
    for index, item in enumerate(definition.items):
        texts = [sale.stock.get(f"{index}:{name}", "missing") for name in _COUNTS]
        if not all(text.isdecimal() for text in texts):
            pairs = zip(_COUNTS, texts, strict=True)
            wrong.append(f"SKU {item.sku}: {', '.join(f'{n} {text}' for n, text in pairs)}")
            continue
        available, held, confirmed, total = map(int, texts)
        if available + held + confirmed != total:
            wrong.append(
                f"SKU {item.sku}: {available} available + {held} held + {confirmed} confirmed"
                f" is not {total}"
            )
        elif sale.stock.get(f"{index}:limit") != str(item.limit_per_buyer):
            wrong.append(f"SKU {item.sku}: its limit is not {item.limit_per_buyer}")
        for name, text in zip(_COUNTS, texts, strict=True):
            units[name] += int(text)
    if wrong:
        more = f" and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
        seen = "; ".join(wrong[:3]) + more
        return red("stock", seen, f"do not open; `seckill verify {sale.id}` tells when it broke")
    return green("stock", ", ".join(f"{count:,} {name}" for name, count in units.items()))


def _window(sale: SaleReading) -> Finding:
    """Whether it will sell when its time comes."""
    now_ms, opens_ms, ends_ms = sale.now_ms, sale.number("opens_ms"), sale.number("ends_ms")
    state, reason = sale.header.get("state", ""), sale.header.get("reason", "")
    near = opens_ms - now_ms <= NEAR_MS
    begins = f"it opens at {_clock_text(opens_ms)}, in {_span(opens_ms - now_ms)}"
    if state in ("closed", "settled"):
        return red("window", f"it is {state} for good", "create it anew, under another id")
    if now_ms >= ends_ms:
        seen = f"its time was over {_span(now_ms - ends_ms)} ago"
        return red("window", seen, "create it anew, under another id")
    if now_ms >= opens_ms:
        begins = f"its time began {_span(now_ms - opens_ms)} ago"
    judge = red if near else yellow
    if state == "created":
        remedy = f"run `seckill sale open {sale.id}`"
        return judge("window", f"it is created but not opened; {begins}", remedy)
    if state == "paused":
        why = f" ({reason})" if reason else ""
        remedy = f"settle the reason, then run `seckill sale resume {sale.id}`"
        return judge("window", f"it is paused{why}; {begins}", remedy)
    if state != "open":
        return red("window", f"its state is {state!r}", _BROKEN)
    return green("window", f"it is open; {begins}")


def _sale_clock(sale: SaleReading) -> Finding:
    """The sale's own time never runs back, and distrusts a jump while units are held."""
    gone_ms = sale.now_ms - sale.number("last_ms")
    if gone_ms < -1_000:
        return red(
            "sale-clock",
            f"the server's clock is {_span(-gone_ms)} behind what the sale has seen, which stands "
            "still until then",
            "set the server's clock right (NTP)",
        )
    held = any(sale.stock[name] != "0" for name in _taken(sale) if name.endswith(":held"))
    if held and gone_ms > sale.number("clock_jump_ms"):
        return red(
            "sale-clock",
            f"units are held and nobody has swept for {_span(gone_ms)}: it will pause (clock_jump)",
            f"start the intake, check the clock, then run `seckill sale resume {sale.id}`",
        )
    return green("sale-clock", "runs with the server's")


def _home(sale: SaleReading, reading: Reading) -> Finding:
    """Whether this is the server that the sale trusts: the one that it was created on, or the last
    one that was adopted (docs/durability.md, fencing)."""
    run_id = reading.info.get("run_id")
    if not run_id or not sale.header.get("server"):
        return yellow("home", "the server does not tell its run_id", "ask its operator")
    if run_id_of(sale.header["server"]) == run_id:
        return green("home", "the server that it was sold on last")
    created_ms = int(sale.oldest.partition("-")[0] or 0)
    started_ms = sale.now_ms - int(reading.info.get("uptime_in_seconds", 0)) * 1_000
    was_replica = str(reading.info.get("master_replid2", "0")).strip("0") != ""
    # Uptime comes in whole seconds, and a sale may be made just before its server is restarted.
    if was_replica or started_ms < created_ms - UPTIME_ERROR_MS:
        how = "a replica that was promoted" if was_replica else "another one, and no restart of it"
        return red(
            "home",
            f"not the server that it was sold on last: {how}, and no engine has adopted it yet",
            "start the intake: it adopts the server, or fences the sale if what it or the ledger "
            "was told is missing; without a ledger compare with the mall's own orders "
            f"(`seckill verify {sale.id}`)",
        )
    seen = f"its server was started anew {_span(sale.now_ms - started_ms)} ago"
    if reading.embedded:
        return green("home", f"{seen}, from the same directory")
    return yellow("home", seen, "make sure that it was on the same data")


def _clock_text(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms // 1_000, UTC).astimezone():%H:%M:%S}"


def _span(ms: int) -> str:
    """``3 d``, ``2 h 05 min``, ``4 min 10 s`` or ``1.5 s``."""
    seconds = ms // 1_000
    if seconds >= 2 * 86_400:
        return f"{seconds // 86_400} d"
    if seconds >= 3_600:
        return f"{seconds // 3_600} h {seconds % 3_600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{ms / 1_000:.1f} s"
