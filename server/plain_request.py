"""One plain request that came whole, read from the very bytes that the socket gave.

aiohttp's parser makes of each request what any application may want of it, and that is a quarter of
what an order costs. Most orders need none of it. So what is beyond doubt is read here: one request,
from its first byte to its last, of which every parser says the same. Everything else is None, and
aiohttp's business; tests/unit/test_plain_request.py holds each answer against aiohttp's.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec

__all__ = ["HEAD_BYTES_MAX", "PlainRequest", "plain_request"]

HEAD_BYTES_MAX: Final = 4_096

_T = TypeVar("_T")

_END: Final = b"\r\n\r\n"
_PATH: Final = re.compile(r"/[\w/.~:%?=&,+@-]*", re.ASCII).fullmatch
# Besides printable ASCII there is nothing but the ends of lines.
_PRINTABLE: Final = bytes(range(0x20, 0x7F))
_NAME: Final = re.compile(r"[0-9A-Za-z!#$%&'*+.^_`|~-]+").fullmatch
# They change what a request is, where it ends or what becomes of its connection.
_NOT_PLAIN: Final = frozenset(
    ("connection", "content-encoding", "expect", "te", "trailer", "transfer-encoding", "upgrade")
)
# What was read of lines that come again and again: most of a request is as it was in the last one.
# Those of other names differ from buyer to buyer. A client may send as many lines as it likes.
_LINES: Final[dict[str, tuple[str, str]]] = {}
_FIRST_LINES: Final[dict[str, tuple[str, str]]] = {}
_NAMES: Final[dict[str, str]] = {}
_LINES_MAX: Final = 1_000
_LINE_CHARS_MAX: Final = 250
_ALIKE: Final = frozenset(
    (
        *("accept", "accept-encoding", "accept-language", "connection", "content-length"),
        *("content-type", "host", "origin", "referer", "sec-fetch-mode", "user-agent"),
        *("x-forwarded-proto",),
    )
)


class PlainRequest(msgspec.Struct, frozen=True, gc=False):
    """``headers`` by lower-case name, each of which was there once. ``path`` is as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def plain_request(data: bytes) -> PlainRequest | None:
    """The one request that these bytes are: GET or POST by HTTP/1.1 on a connection that is kept,
    without a body or with one of a stated length. None for anything else."""
    head, end, body = data.partition(_END)
    if not end or len(head) > HEAD_BYTES_MAX:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    # There is an end for each line that was cut off, and no half of one elsewhere.
    if head.translate(None, _PRINTABLE) != b"\r\n" * len(lines):
        return None
    asked = _FIRST_LINES.get(first) or _first_line(first)
    if asked is None:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        header = _LINES.get(line) or _line(line)
        if header is None:
            return None
        name, value = header
        if name in headers:
            return None
        headers[name] = value
    if "host" not in headers:
        return None
    # A length that is spelled otherwise is somebody else's to judge.
    length = headers.get("content-length")
    if length != (str(len(body)) if length is not None or body else None):
        return None
    method, path = asked
    return PlainRequest(method, path, headers, body)


def _first_line(line: str) -> tuple[str, str] | None:
    method, _, rest = line.partition(" ")
    path, _, version = rest.partition(" ")
    if version != "HTTP/1.1" or method not in ("POST", "GET") or _PATH(path) is None:
        return None
    return _kept(_FIRST_LINES, line, (method, path))


def _line(line: str) -> tuple[str, str] | None:
    """A header's lower-case name and its value, if it is one of a plain request."""
    spelled, colon, value = line.partition(":")
    name = _NAMES.get(spelled) or _name(spelled)
    if not colon or not name:
        return None
    value = value.strip(" ")
    # Some clients say what goes without saying.
    if name in _NOT_PLAIN and (name != "connection" or value.lower() != "keep-alive"):
        return None
    return _kept(_LINES, line, (name, value)) if name in _ALIKE else (name, value)


def _name(spelled: str) -> str:
    """A header's name in lower case, "" if it is none."""
    return "" if _NAME(spelled) is None else _kept(_NAMES, spelled, spelled.lower())


def _kept(lines: dict[str, _T], line: str, read: _T) -> _T:
    if len(line) <= _LINE_CHARS_MAX:
        if len(lines) >= _LINES_MAX:
            lines.clear()  # What is sent again is soon here again.
        lines[line] = read
    return read
