"""Times as the people at the mall read them. Reports and exports name their time zone, which is
never that of the machine that happens to make them.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from seckill.errors import InvalidInput

__all__ = ["CHINA", "iso_time", "local", "read_zone", "span"]

CHINA: Final = "+08:00"
_OFFSET: Final = re.compile(r"([+-])(\d\d):(\d\d)").fullmatch


def read_zone(text: str) -> tzinfo:
    """The zone of an offset (``+08:00``) or a name (``Asia/Shanghai``). Raises InvalidInput."""
    if match := _OFFSET(text):
        hours, minutes = int(match[2]), int(match[3])
        if hours <= 14 and minutes < 60:
            sign = -1 if match[1] == "-" else 1
            return timezone(sign * timedelta(hours=hours, minutes=minutes))
    else:
        try:
            return ZoneInfo(text)
        except (LookupError, OSError, ValueError):
            pass
    remedy = "write an offset such as +08:00, or a name such as Asia/Shanghai"
    raise InvalidInput("--zone", f"{text[:40]!r} is not a time zone", remedy)


def iso_time(ms: int, zone: tzinfo) -> str:
    """A time with its offset, to the millisecond; nothing for 0."""
    if not ms:
        return ""
    return local(ms, zone).isoformat(timespec="milliseconds")


def local(ms: int, zone: tzinfo) -> datetime:
    """A time in this zone, exact to the millisecond."""
    at = datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000)
    return at.astimezone(zone)


def span(ms: int) -> str:
    """A length of time, as exactly as one wants to know it: 2.4 s, 3 min 05 s, 1 h 20 min."""
    if ms < 60_000:
        return f"{ms / 1000:.1f} s" if ms % 1_000 else f"{ms // 1000} s"
    minutes, seconds = divmod(ms // 1000, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if minutes else f"{hours:,} h"
