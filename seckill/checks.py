"""Checks that every model of a definition uses: of whole numbers, texts, times and keys. What is
wrong raises InvalidInput with the field, the problem and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from seckill.errors import InvalidInput

__all__ = [
    "EPOCH",
    "MILLISECOND",
    "TIME_MS_MAX",
    "TIME_MS_MIN",
    "check_int",
    "check_keys",
    "check_text",
    "did_you_mean",
    "show",
    "to_ms",
    "whole_ms",
]

# A time outside these is a slip (seconds taken for milliseconds, say), and inside them every
# millisecond count is far below 2**53, where Lua's numbers stop being exact.
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)
TIME_MS_MIN: Final = (datetime(2000, 1, 1, tzinfo=UTC) - EPOCH) // MILLISECOND
TIME_MS_MAX: Final = (datetime(2100, 1, 1, tzinfo=UTC) - EPOCH) // MILLISECOND

# Text that is shown to people must not steer a terminal, break a line, turn the direction of its
# neighbours, or carry U+FFFD, which only says that somebody decoded a file wrongly.
_UNSHOWABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ufffd\ud800-\udfff]"
).search


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The remedy for a name that is not known."""
    import difflib  # 10 ms that only a mistake should cost.

    near = difflib.get_close_matches(name[:40].lower(), known, n=1)
    return f"did you mean {near[0]}?" if near else f"write one of {', '.join(known)}"


def check_keys(
    fields: dict[str, Any], known: Sequence[str], required: Sequence[str], at: str, what: str
) -> None:
    for key in fields:
        if key not in known:
            remedy = did_you_mean(key, known)
            raise InvalidInput(f"{at}{key[:40]}", f"is not a key of {what}", remedy)
    for key in required:
        if key not in fields:
            raise InvalidInput(f"{at}{key}", "is missing", f"{what} needs {', '.join(required)}")


def check_int(field: str, value: object, low: int, high: int, unit: str) -> None:
    # type() rather than isinstance: True is an int to Python, and no number to a merchant.
    if type(value) is not int:
        raise InvalidInput(field, f"is {show(value)}, not a whole number", f"write whole {unit}")
    if not low <= value <= high:
        raise InvalidInput(
            field, f"{show(value)} is out of range", f"write {low} to {high}, whole {unit}"
        )


def check_text(field: str, value: object, longest: int) -> None:
    if not isinstance(value, str):
        raise InvalidInput(field, f"is {show(value)}, not text", "write text")
    if not value or value.isspace():
        raise InvalidInput(field, "is empty", f"write 1 to {longest} characters")
    if len(value) > longest:
        raise InvalidInput(field, f"has {len(value)} characters", f"write at most {longest}")
    if bad := _UNSHOWABLE(value):
        raise InvalidInput(
            field,
            f"holds the character U+{ord(bad[0]):04X} at position {bad.start() + 1}",
            "write one line of plain text without control characters",
        )


def whole_ms(field: str, value: object) -> datetime:
    if not isinstance(value, datetime):
        raise InvalidInput(field, f"is {show(value)}, not a datetime", "pass an aware datetime")
    if value.utcoffset() is None:
        raise InvalidInput(
            field, f"{value.isoformat()} has no offset from UTC", "pass an aware datetime"
        )
    if not TIME_MS_MIN <= to_ms(value) <= TIME_MS_MAX:
        raise InvalidInput(
            field, f"{value.isoformat()} is out of range", "write a time from 2000 to 2099"
        )
    return value.replace(microsecond=value.microsecond // 1_000 * 1_000)


def to_ms(value: datetime) -> int:
    return (value - EPOCH) // MILLISECOND


def show(value: object) -> str:
    """A caller's value as one short line; never raises, whatever the caller sent."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"{value[:40]!r}…"
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        # Python refuses to print numbers of more than 4,300 digits.
        return str(value) if value.bit_length() <= 64 else "a huge number"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
