"""What is written to standard error, one line a record, as text or as JSON.

No line tells who bought, or lets anybody in. That holds because

- a request is named by its route and an id of ours, never by its path, headers or address;
- of ``extra`` only the fields in FIELDS are written;
- the text of an exception that may quote a request is left out, its type and its frames stay;
- what libraries add of clients (addresses, reprs of tasks and sockets) is left out;
- whatever still looks like a secret or an order id is replaced by "…".
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final, Literal

import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from . import settings

__all__ = ["FIELDS", "RequestLines", "configure"]

FIELDS: Final = ("request_id", "method", "route", "status", "code", "ms")
# In one worker. A storm of refusals must not be followed by one of lines, which cost 20 to 40 µs.
ERRORS_PER_S: Final = 200
ALL_PER_S: Final = 10_000
FRAMES_MAX: Final = 30
CHAIN_MAX: Final = 5

# gunicorn gives the first a handler and a format of its own. The others would write a line for each
# request, with its path and the client's address.
_TAKEN_OVER: Final = ("gunicorn.error",)
_SILENCED: Final = ("gunicorn.access", "aiohttp.access")
# These go on, on further lines, with the reprs of whatever was involved.
_ASYNCIO: Final = "asyncio"
_FIRST_LINE_ONLY: Final = (_ASYNCIO, "py.warnings")
# What aiohttp says when it can't make sense of a request, or when a handler fails unguarded. It is
# known by its text because gunicorn hands aiohttp another logger.
_FAILED_FROM: Final = "Error handling request from %s"
_QUOTING: Final = (ValueError, LookupError, msgspec.MsgspecError, HttpProcessingError)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HIDDEN: Final = re.compile(
    r"(?<=://)[^/\s@]+(?=@)"  # the password in a URL
    r"|\bsk_[\w.~+/=-]+"  # an API key
    r"|\beyJ[\w-]+(?:\.[\w-]+)*"  # a user token
    r"|(?<=\bbearer )\S+|(?<=\bbasic )\S+"
    r"|\b[0-9a-f]{24}\b"  # an order id
    r"|(?<=addr=)\([^)]*\)",  # a peer, in the repr of a socket
    re.IGNORECASE,
)
# A line stays one line, and does nothing to a terminal.
_CONTROLS: Final = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
}

_requests = logging.getLogger("seckill.requests")


def configure(log: settings.Log) -> None:
    """Sends every record of this process to standard error, in place of whatever was set up before.
    Call it again where a library may have set up its own since, as gunicorn does in each worker."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if log.format == "json" else _Text())
    handler.addFilter(_is_worth_a_line)
    logging.basicConfig(handlers=[handler], level=log.level.upper(), force=True)
    for name in _TAKEN_OVER:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    for name in _SILENCED:
        logging.getLogger(name).disabled = True
    # It tells of every look at the ledger's tables.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


class RequestLines:
    """A line for each request, or for those answered 5xx, or none: the setting ``log.requests``.
    ``from_status`` is the lowest status that gets one."""

    def __init__(self, which: Literal["none", "errors", "all"]) -> None:
        self.from_status = {"none": 1_000, "errors": 500, "all": 0}[which]
        self._lines_per_s = ALL_PER_S if which == "all" else ERRORS_PER_S
        self._second = 0
        self._written = 0
        self._left_out = 0

    def write(
        self, method: str, route: str, request_id: str, status: int, code: str, seconds: float
    ) -> bool:
        """Writes the line of an answered request, if it gets one, and says whether. ``route`` is
        its path as it is declared, because the path itself may name an order."""
        if status < self.from_status:
            return False
        level = logging.WARNING if status >= 500 else logging.INFO
        if not _requests.isEnabledFor(level) or self._is_too_much():
            return False
        fields: dict[str, object] = {
            "request_id": request_id,
            "method": method if method in _METHODS else "other",
            "route": route,
            "status": status,
            "code": code,
            "ms": round(seconds * 1000, 1),
        }
        line = "%(method)s %(route)s: %(status)d %(code)s in %(ms)s ms"
        _requests.log(level, line, fields, extra=fields)
        return True

    def _is_too_much(self) -> bool:
        second = int(monotonic())
        if second != self._second:
            if self._left_out:
                _requests.warning("%d more requests got no line", self._left_out)
            self._second, self._written, self._left_out = second, 0, 0
        self._written += 1
        if self._written <= self._lines_per_s:
            return False
        self._left_out += 1
        return True


class _Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        parts = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **_fields(record),
        }
        if exception := _exception(record):
            parts["exception"] = exception
        return msgspec.json.encode(parts).decode()


class _Text(logging.Formatter):
    """Time, level, logger, message; an exception follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname.lower():7} {record.name}: {_message(record)}"
        request_id = _fields(record).get("request_id")
        if request_id is not None and str(request_id) not in line:
            line += f" (request {request_id})"
        if exception := _exception(record):
            line += "\n" + "\n".join(f"    {part}" for part in exception.splitlines())
        return line


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whoever sends bytes that are not HTTP must not fill the disk with tracebacks."""
    if record.msg != _FAILED_FROM or not isinstance(_error(record), HttpProcessingError):
        return True
    return logging.getLogger().isEnabledFor(logging.DEBUG)


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    if record.msg == _FAILED_FROM:
        return "a request could not be handled"
    try:
        text = _without_reprs(record) if record.name == _ASYNCIO else record.getMessage()
    except (TypeError, ValueError, KeyError):
        text = str(record.msg)  # Somebody's arguments don't fit; their text is not lost for that.
    if record.name in _FIRST_LINE_ONLY:
        text = text.partition("\n")[0]
    return _clean(text).translate(_CONTROLS)


def _without_reprs(record: logging.LogRecord) -> str:
    # In debug mode it tells of every connection, with its address, and of slow calls, with theirs.
    args = record.args if isinstance(record.args, tuple) else ()
    numbers = (arg if isinstance(arg, (int, float)) else "…" for arg in args)
    return str(record.msg) % tuple(numbers) if args else str(record.msg)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    given = record.__dict__
    return {
        name: value for name in FIELDS if isinstance(value := given.get(name), (str, int, float))
    }


def _exception(record: logging.LogRecord) -> str:
    error = _error(record)
    if error is None:
        return ""
    chain = [*_chain(error)][::-1]
    return "".join(_clean(part) for error in chain for part in _described(error)).rstrip()


def _error(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, what it came of, and so on."""
    for _ in range(CHAIN_MAX):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _described(error: BaseException) -> Iterator[str]:
    yield from traceback.format_tb(error.__traceback__, -FRAMES_MAX)
    kind = type(error)
    text = "(its text may quote a request)" if isinstance(error, _QUOTING) else str(error)
    yield f"{kind.__module__}.{kind.__qualname__}: {text}\n"
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions[:CHAIN_MAX]:
            yield from _described(part)


def _clean(text: str) -> str:
    # A lone surrogate, as in a file name that is not UTF-8, has no JSON.
    return _HIDDEN.sub("…", text.encode("utf-8", "backslashreplace").decode())
