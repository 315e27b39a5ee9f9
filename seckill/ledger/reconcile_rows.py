"""An order's row against what events or a record make of it, and how a record is shown."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from seckill.ledger.drift import Drift, DriftKind
from seckill.ledger.rows import Known, Raw, newest_orders, order_row, raw_event
from seckill.ledger.tables import ORDERS
from seckill.order import STATES

__all__ = ["Sides", "drift_of", "is_row_of_record", "made_of", "record_row", "row_differs"]

Row = dict[str, Any]

# What a row says of the order itself, beside when it was reserved and with which attrs.
_COLUMNS: Final = tuple(
    column.name for column in ORDERS.columns if column.name not in ("held_ms", "attrs")
)

# Those of which no short form tells the difference.
_QUOTED: Final = (
    *(DriftKind.ORDER_DIFFERS, DriftKind.ORDER_FORGED, DriftKind.ORDER_UNREADABLE),
    DriftKind.EVENT_DIFFERS,
)


class Sides(NamedTuple):
    """What there is of an order: Redis' record before and after, its row, and what its ``events``
    make of it, the last of which was ``seq`` and the one of the highest version ``newest``."""

    order: str
    before: str | None
    now: str | None
    row: Row | None
    said: Row | None
    seq: int
    newest: int


def row_differs(said: Row, row: Row | None) -> bool:
    """Whether an order's row is not what some of its events say; ``said`` is made of those. A row
    of a higher version may be."""
    if row is None or row["version"] < said["version"]:
        return True
    if said["held_ms"] and (said["held_ms"], said["attrs"]) != (row["held_ms"], row["attrs"]):
        return True
    if row["version"] > said["version"]:
        # Only the number was changed.
        return bool(row["record"] == said["record"])
    return any(row[name] != said[name] for name in _COLUMNS)


def record_row(known: Known, order: str, record: str) -> Row:
    """An order's row as far as its record alone tells it: not when it was reserved or changed, nor
    its attrs. Raises LookupError or ValueError for a damaged one."""
    # Any word but "held" lets a whole record follow.
    return order_row(known, Raw(0, 0, order, f"record||{record}"), {})


def is_row_of_record(known: Known, row: Row) -> bool:
    """Whether a row says what its own record does."""
    try:
        right = record_row(known, row["id"], row["record"])
    except (LookupError, ValueError):
        return False
    return all(row[name] == right[name] for name in _COLUMNS if name != "changed_ms")


def made_of(known: Known, history: dict[str, list[Row]]) -> dict[str, tuple[Row, int, int]]:
    """The orders' rows as the ledger's own events would have them, the last of those and the
    one of the highest version."""
    said: dict[str, tuple[Row, int, int]] = {}
    for order, rows in history.items():
        raws, newest = [], (0, 0)
        for row in rows:
            try:
                raw = raw_event(*(row[n] for n in ("seq", "at_ms", "kind", "subject", "body")))
                version = order_row(known, raw, {})["version"]
            except (LookupError, ValueError):
                continue  # Named by the comparison of the events.
            raws.append(raw)
            newest = max(newest, (version, -raw.seq))
        if raws:
            [right] = newest_orders(known, raws)
            said[order] = right, raws[-1].seq, -newest[1]
    return said


def drift_of(kind: DriftKind, sides: Sides) -> Drift:
    """A drift of this kind, with what either side says."""
    order, _, now, row, said, _, _ = sides
    show = _quoted if kind in _QUOTED else _shown
    if kind is DriftKind.ORDER_ROW_DIFFERS and row and said:
        names = [name for name in said if row[name] != said[name]]
        text = f"its events say {_shown(said['record'])}; the row differs in "
        text += ", ".join(names)
    elif said is not None:
        ledger = "its row too" if row is not None and row["record"] == now else "not so its row"
        text = f"Redis: {show(now)}; its events: {show(said['record'])}"
        text += f" ({ledger})" if kind in _QUOTED else ""
    else:
        text = f"Redis: {show(now)}; ledger: {show(row['record'] if row else None)}"
    return Drift(kind, text, order)


def _shown(record: str | None) -> str:
    """What a record says, in short; the whole of it when it is none."""
    if record is None or record[:1] not in STATES or not record[1:2].isalnum():
        return _quoted(record)
    return f"{STATES[record[0]]} (version {int(record[1], 36)})"


def _quoted(record: str | None) -> str:
    """A record itself, as far as there is room for it."""
    return "nothing" if record is None else repr(record if len(record) <= 90 else record[:87] + "…")
