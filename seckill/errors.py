"""Every exception the engine raises. Outcomes of a sale (sold out, limit, late payment) are
statuses, see ``seckill.status``; an exception is a bad call, a bad server or an unknown outcome.

    SeckillError
    ├── InvalidInput            a bad argument: names the field and the remedy, nothing was written
    │   └── SaleFileError       the same inside a sale file: names file and line as well
    ├── MissingExtra            an optional part is not installed: names the extra
    ├── UnknownSale             no sale of that id on this server
    ├── EventsTrimmed           a new group would miss the sale's first events: they are trimmed
    ├── Refused                 raised by a consumer's own handler: this event is never wanted
    ├── UpgradeNeeded           the sale was made with another script format than this version's
    ├── EmbeddedError           the embedded server could not be found, started or owned
    ├── UnsuitableServer        this Redis must not carry a sale (eviction, too old, replica …)
    ├── RedisUnavailable        the server could not be reached in time; nothing was sent
    ├── Overloaded              the lane is full, nothing was sent: come back in retry_after_ms
    ├── OutcomeUnknown          sent, no answer in time: ask again with the same key
    ├── EngineClosed            the engine is not started, or is shutting down
    ├── LedgerUnavailable       the ledger's database is away or busy: the same call may do later
    ├── LedgerRefused           the ledger's database refuses this, now and later
    ├── LedgerForked            Redis and ledger tell two stories of one sale: neither is changed
    ├── ServerFull              Redis is at maxmemory: nothing was written, free memory first
    └── ScriptFailed            a script raised: a bug or a damaged key, never an outcome
"""

from __future__ import annotations

__all__ = [
    "EmbeddedError",
    "EngineClosed",
    "EventsTrimmed",
    "InvalidInput",
    "LedgerForked",
    "LedgerRefused",
    "LedgerUnavailable",
    "MissingExtra",
    "OutcomeUnknown",
    "Overloaded",
    "RedisUnavailable",
    "Refused",
    "SaleFileError",
    "ScriptFailed",
    "SeckillError",
    "ServerFull",
    "UnknownSale",
    "UnsuitableServer",
    "UpgradeNeeded",
]


class SeckillError(Exception):
    """Base of everything the engine raises on purpose."""


class InvalidInput(SeckillError, ValueError):
    """A bad argument. Nothing was written.

    ``field`` names what is wrong, ``problem`` says how, ``remedy`` says what to write instead.
    """

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        self.field = field
        self.problem = problem
        self.remedy = remedy
        super().__init__(field, problem, remedy)

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}; {self.remedy}"


class SaleFileError(InvalidInput):
    """A bad sale file. ``line`` counts from 1 and is None where no single line is at fault."""

    def __init__(self, file: str, line: int | None, field: str, problem: str, remedy: str) -> None:
        super().__init__(field, problem, remedy)
        self.file = file
        self.line = line
        self.args = (file, line, field, problem, remedy)

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {super().__str__()}"


class MissingExtra(SeckillError, ImportError):
    """An optional part of the package is not installed."""

    def __init__(self, extra: str, module: str) -> None:
        self.extra = extra
        self.module = module
        super().__init__(
            f"{module!r} is not installed; install the extra: pip install 'seckill[{extra}]'"
        )


class UnknownSale(SeckillError, LookupError):
    """No sale of that id on this server."""

    def __init__(self, sale: str) -> None:
        self.sale = sale
        super().__init__(f"no sale {sale!r} on this server; create it first (seckill sale list)")


class EventsTrimmed(SeckillError):
    """A group that is new begins with the sale's first event, and that one is no longer in Redis.
    ``first_seq`` is the first that is."""

    def __init__(self, sale: str, first_seq: int) -> None:
        self.sale = sale
        self.first_seq = first_seq
        super().__init__(
            f"the events of sale {sale!r} before {first_seq} were trimmed, and this group has not"
            f" read them; read them from the ledger, then pass after_trim=True (--after-trim) to go"
            f" on from {first_seq}"
        )


class Refused(SeckillError):
    """A consumer's handler raises this for an event that it will never take: the event is not tried
    again but becomes a dead letter at once, with this exception's text."""


class UpgradeNeeded(SeckillError):
    """The sale was made with another script format than this version knows. Another process, of
    the version that made it, can serve it."""

    def __init__(self, sale: str) -> None:
        self.sale = sale
        super().__init__(f"sale {sale!r} was made by another version; use a process of that one")


class EmbeddedError(SeckillError):
    """The embedded server could not be found, started, or its data directory is in use."""


class UnsuitableServer(SeckillError):
    """This Redis must not carry a sale; the message says why and what to change."""


class RedisUnavailable(SeckillError, ConnectionError):
    """The server could not be reached in time. Nothing was sent."""


class Overloaded(SeckillError):
    """The lane is full, or the call waited too long before it was sent. Nothing was sent."""

    def __init__(self, retry_after_ms: int) -> None:
        self.retry_after_ms = retry_after_ms
        super().__init__(f"too many orders are waiting; retry after {retry_after_ms} ms")


class OutcomeUnknown(SeckillError):
    """Sent, but no answer came in time. The call may or may not have happened; an order can't be
    executed any more after this was said. Repeat the call with the same key to learn the outcome.
    """


class EngineClosed(SeckillError):
    """The engine is not started, or is shutting down. Nothing was sent."""


class LedgerUnavailable(SeckillError):
    """The ledger's database can't be reached, is busy, or undid this for another's sake. Nothing
    was written; the same call may do later."""


class LedgerRefused(SeckillError):
    """The ledger's database refuses this, and would again: a table is missing (`seckill ledger
    migrate`), a right, or a value does not fit. Nothing was written."""


class LedgerForked(SeckillError):
    """Redis and ledger tell two stories of one sale: another sale was made under its id, or Redis
    came back with less than the ledger has and went on. Nothing was written; see docs/recovery.md.
    """

    def __init__(self, sale: str, seq: int, problem: str) -> None:
        self.sale = sale
        self.seq = seq
        super().__init__(f"sale {sale!r}, from event {seq} on: {problem}")


class ServerFull(SeckillError):
    """Redis is at maxmemory and refused to write. Nothing was written; paying, releasing and
    expiring still work. Raise maxmemory (`seckill inspect` shows the bytes in use)."""


class ScriptFailed(SeckillError):
    """A script raised an error: a bug or a damaged key. The message is the server's."""
