"""Who comes first when chance decides, by a rule that anybody can recompute: docs/fair-draw.md.

    seed + digest of the ticket list + public value  ──▶  mix
    mix + a ticket's number and weight               ──▶  its score; ranks follow the scores

Nothing here reads a clock, a file, Redis or a source of chance. Two independent recomputations in
examples/draw share no code with this one; a test holds all three against each other.
"""

from __future__ import annotations

import hashlib
import hmac
from array import array
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from seckill.admission import WEIGHT_MAX
from seckill.checks import TIME_MS_MAX, TIME_MS_MIN, check_text, show
from seckill.errors import InvalidInput
from seckill.keyed import keyed_hmac

__all__ = [
    "FORMAT",
    "NO_RANK",
    "NUMBER_MAX",
    "SALT_BYTES",
    "SEED_BYTES",
    "DrawRecord",
    "ListDigest",
    "commitment_of",
    "drain",
    "first_line",
    "holder_of",
    "holders",
    "mix_of",
    "order_steps",
    "rank_steps",
    "ranks_of",
    "salt_of",
    "salts",
    "score_of",
    "ticket_line",
    "ticket_lines",
]

FORMAT: Final = "seckill-draw-1"
SEED_BYTES: Final = 32
SALT_BYTES: Final = 16
NO_RANK: Final = 0xFFFFFFFF
"""In place of the rank of a ticket that was given up before the list closed."""
NUMBER_MAX: Final = NO_RANK - 1

_SCORE_BYTES: Final = 32
_VALUE_MAX: Final = 1_000
_STEP_HASHES: Final = 512
"""What is computed between two yields: 2 ms of a server's core, 10 ms of a slow one."""

T = TypeVar("T")


# -- the seed and the buyers --------------------------------------------------------------------


def commitment_of(seed: bytes) -> str:
    """What is published of a seed of 32 random bytes when the sale is created: 64 hex digits."""
    _check_bytes("seed", seed, SEED_BYTES)
    return hashlib.sha256(b"seckill draw 1 seed\n" + seed).hexdigest()


def salt_of(list_secret: bytes, buyer: str) -> bytes:
    """The 16 bytes that a buyer is given with the ticket. The list secret (32 random bytes, new for
    every sale) stays on the server: with it, anybody could look buyers up in the list."""
    return salts(list_secret)(buyer)


def salts(list_secret: bytes) -> Callable[[str], bytes]:
    """``salt_of`` with one list secret, for many buyers."""
    keyed = keyed_hmac(list_secret)
    return lambda buyer: keyed(buyer.encode())[:SALT_BYTES]


def holder_of(salt: bytes, buyer: str) -> str:
    """How a buyer is named in the ticket list: 64 hex digits that nobody without the salt can tell
    from any others."""
    return hashlib.sha256(salt + buyer.encode()).hexdigest()


def holders(list_secret: bytes) -> Callable[[str], str]:
    """``holder_of(salt_of(list_secret, buyer), buyer)``, in half the time for a whole list."""
    salt = salts(list_secret)
    return lambda buyer: holder_of(salt(buyer), buyer)


# -- the ticket list ----------------------------------------------------------------------------


def first_line(sale: str, definition_id: str) -> bytes:
    """The first line of tickets.txt."""
    return f"seckill draw 1 {sale} {definition_id}\n".encode()


def ticket_line(number: int, weight: int, holder: str) -> bytes:
    """The line of one ticket in tickets.txt."""
    return b"%d %d %b\n" % (number, weight, holder.encode())


def ticket_lines(
    sale: str, definition_id: str, tickets: Iterable[tuple[int, int, str]]
) -> Generator[bytes, None, None]:
    """All lines of tickets.txt, of tickets as (number, weight, holder) by ascending number. One
    that was given up (weight 0) is not in the list."""
    yield first_line(sale, definition_id)
    for number, weight, holder in tickets:
        if weight:
            yield ticket_line(number, weight, holder)


class ListDigest:
    """Digest and length of a ticket list that is met line by line."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.lines = 0

    def add(self, line: bytes) -> bytes:
        """Counts one line in; gives it back, so that it can be written in the same breath."""
        self._hash.update(line)
        self.lines += 1
        return line

    @property
    def tickets(self) -> int:
        """How many tickets there were: every line but the first is one."""
        return max(self.lines - 1, 0)

    def hex(self) -> str:
        """The digest of all lines so far: 64 hex digits."""
        return self._hash.hexdigest()


class DrawRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is published of a draw: draw.json. Building one checks nothing, ``decode`` does.

    ``definition`` is the sale's definition as it was created, ``tickets`` the number of lines in
    the list below its first, ``seed`` None until it is revealed, ``public_value`` None until it is
    known, or where the definition names none.
    """

    format: Literal["seckill-draw-1"] = FORMAT
    sale: Annotated[str, Meta(pattern=r"\A[0-9A-Za-z_-]{1,40}\Z")]
    definition_id: Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
    definition: str
    commitment: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    tickets: Annotated[int, Meta(ge=0, le=NUMBER_MAX + 1)]
    digest: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    closed_ms: Annotated[int, Meta(ge=TIME_MS_MIN, le=TIME_MS_MAX)]
    public_value: str | None
    seed: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")] | None

    @classmethod
    def decode(cls, data: bytes) -> DrawRecord:
        """The record that ``encode`` wrote. Raises InvalidInput."""
        remedy = "fetch draw.json again, unchanged"
        try:
            record = msgspec.json.decode(data, type=cls)
        except msgspec.ValidationError as error:
            problem, _, path = str(error).partition(" - at `$")
            field = f"draw.json{path.rstrip('`')}"
            raise InvalidInput(field, f"is wrong ({problem})", remedy) from None
        except (ValueError, RecursionError):
            raise InvalidInput("draw.json", "is not JSON", remedy) from None
        if record.public_value is not None:
            check_text("draw.json.public_value", record.public_value, _VALUE_MAX)
        return record

    def encode(self) -> bytes:
        """JSON for people as well: indented, with a line end."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @property
    def mix(self) -> bytes | None:
        """What the order is computed from; None until the seed is revealed."""
        if self.seed is None:
            return None
        return mix_of(bytes.fromhex(self.seed), self.digest, self.public_value)


# -- the order ----------------------------------------------------------------------------------


def mix_of(seed: bytes, digest: str, public_value: str | None = None) -> bytes:
    """What the order is computed from: seed, digest of the closed list (64 hex digits) and the
    public value, where the definition names one. 32 bytes."""
    _check_bytes("seed", seed, SEED_BYTES)
    public = (public_value or "").encode()
    return hashlib.sha256(b"seckill draw 1 mix\n" + seed + bytes.fromhex(digest) + public).digest()


def score_of(mix: bytes, number: int, weight: int = 1) -> bytes:
    """The smallest of a ticket's ``weight`` values, 32 bytes; the smallest score comes first."""
    return min(hmac.digest(mix, b"%d %d" % (number, lot), "sha256") for lot in range(weight))


def ranks_of(mix: bytes, weights: Sequence[int]) -> array[int]:
    """The rank of each ticket, by number: 0 comes first. A weight of 0 is a ticket that was given
    up: it has NO_RANK. A million tickets take 3 s of a core; an event loop takes ``rank_steps``."""
    return drain(rank_steps(mix, weights))


def rank_steps(mix: bytes, weights: Sequence[int]) -> Generator[None, None, array[int]]:
    """``ranks_of`` in steps of a few milliseconds: yields between them, returns the ranks."""
    order = yield from order_steps(mix, enumerate(weights), len(weights))
    ranks = array("I", [NO_RANK]) * len(weights)
    for start in range(0, len(order), _STEP_HASHES * 16):
        for rank, number in enumerate(order[start : start + _STEP_HASHES * 16], start):
            ranks[number] = rank
        yield
    return ranks


def order_steps(
    mix: bytes, tickets: Iterable[tuple[int, int]], count: int
) -> Generator[None, None, array[int]]:
    """The numbers of about ``count`` tickets, given as (number, weight), in the order of their
    ranks. In steps of a few milliseconds: yields between them, returns the order.

    Raises InvalidInput for a weight that is out of range.
    """
    score = _scorer(mix)
    # Sorting a million at once would be one long step. Scores are spread evenly, so their first
    # bits part them into small shares that are sorted one by one.
    shares: list[list[bytes]] = [[] for _ in range(max(1, min(count // 64, 1 << 16)))]
    scale = len(shares)
    work = 0
    for number, weight in tickets:
        if weight:
            value = score(number, weight)
            share = int.from_bytes(value[:4], "big") * scale >> 32
            # Of equal scores, the lower number comes first.
            shares[share].append(value + number.to_bytes(4, "big"))
        work += weight or 1
        if work >= _STEP_HASHES:
            work = 0
            yield
    order = array("I")
    for index, share_values in enumerate(shares):
        shares[index] = []
        share_values.sort()
        order.extend([int.from_bytes(value[_SCORE_BYTES:], "big") for value in share_values])
        work += len(share_values) + 1
        if work >= _STEP_HASHES * 4:
            work = 0
            yield
    return order


def drain(steps: Generator[None, None, T]) -> T:
    """Goes through all steps at once; what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def _scorer(mix: bytes) -> Callable[[int, int], bytes]:
    """``score_of`` of one mix, four times as fast."""
    keyed = keyed_hmac(mix)

    def score(number: int, weight: int) -> bytes:
        if weight == 1:
            return keyed(b"%d 0" % number)
        if not 1 <= weight <= WEIGHT_MAX:
            problem = f"{show(weight)} of ticket {number} is out of range"
            raise InvalidInput("weight", problem, f"pass 0 (given up) to {WEIGHT_MAX}")
        return min([keyed(b"%d %d" % (number, lot)) for lot in range(weight)])

    return score


def _check_bytes(field: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise InvalidInput(field, f"has {len(value)} bytes", f"pass {size} random bytes")
