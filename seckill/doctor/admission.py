"""The check of a sale's admission: when tickets can be taken, and whether its draw waits for
somebody. A queue that is not there yet is opened by whoever looks first.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from seckill.admission import Admission
from seckill.checks import to_ms
from seckill.doctor.finding import Finding, green, yellow
from seckill.keys import queue_keys
from seckill.sale import Sale

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["QueueReading", "check_admission", "read_queue"]

# A draw that takes longer than this waits for somebody.
_DRAW_MS: Final = 60_000


class QueueReading(msgspec.Struct, frozen=True):
    """What a queue's header says; all empty where there is none."""

    next: str = ""
    closed_ms: str = ""
    ranked: str = ""
    public_value: str = ""


async def read_queue(client: Redis, sale: str) -> QueueReading:
    """Reads it. Raises what redis-py raises."""
    names = QueueReading.__struct_fields__
    found: Any = await client.hmget(queue_keys(sale)[0], *names)
    return QueueReading(*((text or b"").decode("utf-8", "replace") for text in found))


def check_admission(sale: Sale, now_ms: int, queue: QueueReading) -> Finding:
    """The finding."""
    admission = sale.admission
    if admission is None:
        return green("admission", "open: whoever comes is served")
    seen = f"{admission.mode}: {_joins(admission, now_ms)}; {int(queue.next or 0):,} given out"
    if not admission.is_drawn:
        return green("admission", seen)
    if queue.ranked:
        return green("admission", f"{seen}; all in order since the draw")
    if not queue.closed_ms:
        seen += f"; the list closes at {_moment(sale.draw_ms)}"
    needs_value = admission.public_value is not None and not queue.public_value
    if needs_value:
        seen += f"; then somebody must hand in {admission.public_value!r}"
        return yellow("admission", seen, f"after that, run `seckill draw value {sale.id} VALUE`")
    if queue.closed_ms and now_ms - int(queue.closed_ms) > _DRAW_MS:
        remedy = f"start the intake, or run `seckill draw show {sale.id}`"
        return yellow("admission", f"{seen}; the list is closed, and nobody draws", remedy)
    return green("admission", seen)


def _joins(admission: Admission, now_ms: int) -> str:
    if admission.joins_at is None or to_ms(admission.joins_at) <= now_ms:
        return "tickets can be taken"
    return f"tickets can be taken from {_moment(to_ms(admission.joins_at))} on"


def _moment(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms // 1_000, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
