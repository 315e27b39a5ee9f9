"""Recomputes a published draw and says what does not fit: draw.json and tickets.txt, as
docs/fair-draw.md describes them, and nothing else. No server, no Redis, no secret.

What can't be read raises InvalidInput; what can be read and does not fit is a Finding.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from itertools import pairwise
from typing import BinaryIO, Final

import msgspec

from seckill.admission import WEIGHT_MAX, Admission
from seckill.checks import show
from seckill.draw import (
    NO_RANK,
    NUMBER_MAX,
    DrawRecord,
    ListDigest,
    commitment_of,
    drain,
    order_steps,
)
from seckill.errors import InvalidInput
from seckill.sale import Sale

__all__ = ["DrawVerdict", "Finding", "Kind", "Placed", "Published", "TicketList", "verify_draw"]

_LINE_BYTES_MAX: Final = 200
_FIRST_LINE: Final = re.compile(rb"seckill draw 1 ([0-9A-Za-z_-]{1,40}) ([0-9a-f]{16})\n").fullmatch
_LINE: Final = re.compile(rb"(0|[1-9][0-9]{0,9}) ([1-9][0-9]{0,2}) ([0-9a-f]{64})\n").fullmatch
_CHANGED_ENDS: Final = "ends with CR and LF: the line ends of the list were changed"
_AGAIN: Final = "fetch tickets.txt again and keep it byte by byte as it is"


class Kind(StrEnum):
    """What can be wrong with a draw."""

    NOT_REVEALED = "not_revealed"
    COMMITMENT = "commitment"
    PUBLISHED_COMMITMENT = "published_commitment"
    PUBLISHED_DIGEST = "published_digest"
    PUBLISHED_VALUE = "published_value"
    DEFINITION = "definition"
    NO_DRAW = "no_draw"
    PUBLIC_VALUE = "public_value"
    CLOSED_EARLY = "closed_early"
    DIGEST = "digest"
    LIST_OF_ANOTHER = "list_of_another"
    COUNT = "count"
    ORDER = "order"
    NUMBER_TWICE = "number_twice"
    HOLDER_TWICE = "holder_twice"
    WEIGHT = "weight"
    RANK = "rank"

    @property
    def meaning(self) -> str:
        """What somebody who finds it has learned."""
        return _MEANINGS[self]


_MEANINGS: Final = {
    Kind.NOT_REVEALED: "the order can't be checked yet; everything else was",
    Kind.COMMITMENT: "this seed is not the one that was fixed when the sale was created",
    Kind.PUBLISHED_COMMITMENT: "draw.json was changed after the commitment was published",
    Kind.PUBLISHED_DIGEST: "the list was changed after its digest was published",
    Kind.PUBLISHED_VALUE: "the order depends on another value than the one that its source tells",
    Kind.DEFINITION: "quotas, weights or times are not those with which the sale was created",
    Kind.NO_DRAW: "by its definition this sale has no draw and no shuffle",
    Kind.PUBLIC_VALUE: "the order must depend on the value that the definition names, and no other",
    Kind.CLOSED_EARLY: "buyers who came in time were shut out",
    Kind.DIGEST: "the list was changed after it was closed: an entry, their order or their number",
    Kind.LIST_OF_ANOTHER: "the list belongs to another sale, or to another definition of it",
    Kind.COUNT: "tickets were added to the list, or left out of it",
    Kind.ORDER: "the list is not in the order in which buyers joined",
    Kind.NUMBER_TWICE: "one ticket stands in the list twice",
    Kind.HOLDER_TWICE: "one buyer has two tickets, and so twice the chance",
    Kind.WEIGHT: "a ticket has more or fewer lots than any tier of the definition",
    Kind.RANK: "tickets were called in another order than the one that was drawn",
}


class Finding(msgspec.Struct, frozen=True):
    """Something that does not fit. ``text`` tells of the first place, ``count`` of how many."""

    kind: Kind
    text: str
    count: int = 1

    @property
    def meaning(self) -> str:
        return self.kind.meaning


class Published(msgspec.Struct, frozen=True):
    """What the reader noted when it was published, 64 hex digits each: the commitment when the sale
    was created, the digest when the list closed. ``public_value`` is what its source tells.
    draw.json alone can only vouch for itself."""

    commitment: str | None = None
    digest: str | None = None
    public_value: str | None = None

    def __post_init__(self) -> None:
        for name in ("commitment", "digest"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
                problem = f"{show(value)} is not 64 digits of 0-9 a-f"
                raise InvalidInput(name, problem, "write it as it was published")


class Placed(msgspec.Struct, frozen=True):
    """A ticket in the list. ``rank`` counts from 0 and is None until the order is proven."""

    number: int
    weight: int
    rank: int | None


class TicketList(msgspec.Struct, frozen=True):
    """tickets.txt as it was read: ``numbers`` and ``weights`` of each line below the first, and the
    line (from 0) of each holder. ``doubles`` are holders that came again, with their line."""

    sale: str
    definition_id: str
    digest: str
    numbers: array[int]
    weights: array[int]
    holders: dict[bytes, int]
    doubles: list[int]

    @classmethod
    def read(cls, file: BinaryIO) -> TicketList:
        """Reads it to its end. Raises InvalidInput, which names the line, for what is no list."""
        digest = ListDigest()
        # A file of one endless line must not fill the memory.
        lines = iter(partial(file.readline, _LINE_BYTES_MAX), b"")
        first_line = digest.add(next(lines, b""))
        first = _FIRST_LINE(first_line)
        if first is None:
            problem = "is not 'seckill draw 1', sale and definition id"
            if first_line.endswith(b"\r\n"):
                problem = _CHANGED_ENDS
            raise InvalidInput("tickets.txt:1", problem, _AGAIN)
        numbers, weights = array("I"), array("B")
        seen: dict[bytes, int] = {}
        doubles: list[int] = []
        for line in lines:
            number, weight, holder = _ticket(digest.add(line), digest.lines)
            if seen.setdefault(holder, len(numbers)) != len(numbers):
                doubles.append(len(numbers))
            numbers.append(number)
            weights.append(weight)
        sale, definition_id = (part.decode() for part in first.groups())
        return cls(sale, definition_id, digest.hex(), numbers, weights, seen, doubles)


def _ticket(line: bytes, at: int) -> tuple[int, int, bytes]:
    """Number, weight and holder of one line."""
    found = _LINE(line)
    if found is None:
        problem = "is not a number, a weight and 64 digits of 0-9 a-f, with single blanks"
        if line.endswith(b"\r\n"):
            problem = _CHANGED_ENDS
        elif not line.endswith(b"\n") and len(line) < _LINE_BYTES_MAX:
            problem = "is cut off"
        raise InvalidInput(f"tickets.txt:{at}", problem, _AGAIN)
    number, weight = int(found[1]), int(found[2])
    if number > NUMBER_MAX or weight > WEIGHT_MAX:
        problem = f"has a number above {NUMBER_MAX} or a weight above {WEIGHT_MAX}"
        raise InvalidInput(f"tickets.txt:{at}", problem, _AGAIN)
    return number, weight, bytes.fromhex(found[3].decode())


class DrawVerdict(msgspec.Struct, frozen=True):
    """What the recomputation found. ``order`` are the numbers of the tickets by rank, None when a
    finding leaves no order to speak of, ``admission`` what the definition says of the draw."""

    record: DrawRecord
    tickets: TicketList
    findings: tuple[Finding, ...]
    order: array[int] | None
    admission: Admission | None

    @property
    def proven(self) -> bool:
        """Whether everything fits and the order is the one that was drawn."""
        return not self.findings

    @property
    def undecided(self) -> bool:
        """Whether nothing speaks against the draw, but it is too early to tell."""
        return [finding.kind for finding in self.findings] == [Kind.NOT_REVEALED]

    @property
    def lots(self) -> dict[int, int]:
        """How many tickets have each weight."""
        return dict(sorted(Counter(self.tickets.weights).items()))

    def winners(self, count: int) -> list[int]:
        """The numbers of the first ``count`` tickets in order of rank; none without an order."""
        return list(self.order[: max(count, 0)]) if self.order is not None else []

    def placed(self, holder: str) -> Placed | None:
        """The ticket of a holder (64 hex digits); None when it is not in the list."""
        line = self.tickets.holders.get(bytes.fromhex(holder))
        if line is None:
            return None
        number = self.tickets.numbers[line]
        rank = self.order.index(number) if self.order is not None else None
        return Placed(number, self.tickets.weights[line], rank)


def verify_draw(
    record: DrawRecord,
    tickets: BinaryIO,
    *,
    published: Published | None = None,
    claimed: Sequence[int] | None = None,
) -> DrawVerdict:
    """Recomputes a draw from what was published of it; a million tickets take 6 s.

    ``claimed`` are the ranks by which tickets were called, by number, NO_RANK for those that were
    given up: as ``draw.ranks_of`` returns them. Raises InvalidInput for files that can't be read.
    """
    read = TicketList.read(tickets)
    admission, findings = _check_definition(record)
    findings += _check_published(record, published or Published())
    findings += _check_list(record, read)
    if admission is not None:
        findings += _check_weights(admission, read)
    findings += _check_seed(record)
    order = None
    mix = record.mix
    if not findings and mix is not None:
        pairs = zip(read.numbers, read.weights, strict=True)
        order = drain(order_steps(mix, pairs, len(read.numbers)))
        if claimed is not None:
            findings += _check_claimed(order, claimed)
    return DrawVerdict(record, read, tuple(findings), order, admission)


def _check_definition(record: DrawRecord) -> tuple[Admission | None, list[Finding]]:
    """The definition's admission, where it has one of a draw; and what does not fit it."""
    text = record.definition.encode()
    own_id = hashlib.sha256(text).hexdigest()[:16]
    if own_id != record.definition_id:
        said = f"the definition's id is {own_id}, not {record.definition_id}"
        return None, [Finding(Kind.DEFINITION, said)]
    try:
        sale = Sale.from_definition(text)
    except InvalidInput as error:
        field = f"draw.json.definition.{error.field}"
        remedy = f"{error.remedy}; a newer seckill may have written it"
        raise InvalidInput(field, error.problem, remedy) from None
    findings = []
    if sale.id != record.sale:
        said = f"the definition is of sale {sale.id}, not {record.sale}"
        findings.append(Finding(Kind.DEFINITION, said))
    if sale.admission is None or not sale.admission.is_drawn:
        mode = sale.admission.mode if sale.admission else "open"
        return None, [*findings, Finding(Kind.NO_DRAW, f"its admission is {mode}")]
    findings += _check_public_value(record, sale.admission)
    if record.closed_ms < sale.draw_ms:
        said = f"the list closed {sale.draw_ms - record.closed_ms} ms before the time of the draw"
        findings.append(Finding(Kind.CLOSED_EARLY, said))
    return sale.admission, findings


def _check_public_value(record: DrawRecord, admission: Admission) -> list[Finding]:
    named, value = admission.public_value, record.public_value
    if named is None and value is not None:
        said = f"there is a public value, {show(value)}, and the definition names none"
        return [Finding(Kind.PUBLIC_VALUE, said)]
    # Before the seed is revealed the value may not be known yet.
    if named is not None and value is None and record.seed is not None:
        said = f"the seed is revealed without the public value {show(named)}"
        return [Finding(Kind.PUBLIC_VALUE, said)]
    return []


def _check_published(record: DrawRecord, published: Published) -> list[Finding]:
    findings = []
    if published.commitment not in (None, record.commitment):
        said = f"draw.json has the commitment {record.commitment}, not the published one"
        findings.append(Finding(Kind.PUBLISHED_COMMITMENT, said))
    if published.digest not in (None, record.digest):
        said = f"draw.json has the digest {record.digest}, not the published one"
        findings.append(Finding(Kind.PUBLISHED_DIGEST, said))
    if published.public_value not in (None, record.public_value):
        said = f"draw.json has the public value {show(record.public_value)}, not the one looked up"
        findings.append(Finding(Kind.PUBLISHED_VALUE, said))
    return findings


def _check_list(record: DrawRecord, tickets: TicketList) -> list[Finding]:
    """Whether the list is the one that was closed, and every ticket stands in it once."""
    findings = []
    if tickets.digest != record.digest:
        said = f"the digest of tickets.txt is {tickets.digest}, not {record.digest}"
        findings.append(Finding(Kind.DIGEST, said))
    of, expected = (tickets.sale, tickets.definition_id), (record.sale, record.definition_id)
    if of != expected:
        said = f"tickets.txt is of {' '.join(of)}, not of {' '.join(expected)}"
        findings.append(Finding(Kind.LIST_OF_ANOTHER, said))
    numbers = tickets.numbers
    if len(numbers) != record.tickets:
        said = f"tickets.txt has {len(numbers)} tickets, draw.json says {record.tickets}"
        findings.append(Finding(Kind.COUNT, said))
    falls = [line for line, (one, next_one) in enumerate(pairwise(numbers), 1) if next_one < one]
    if falls:
        said = f"ticket {numbers[falls[0]]} (line {falls[0] + 2}) stands behind a higher number"
        findings.append(Finding(Kind.ORDER, said, len(falls)))
    again = [number for number, times in Counter(numbers).items() if times > 1]
    if again:
        findings.append(Finding(Kind.NUMBER_TWICE, f"ticket {again[0]} is there twice", len(again)))
    if tickets.doubles:
        number = numbers[tickets.doubles[0]]
        said = f"the holder of ticket {number} (line {tickets.doubles[0] + 2}) has another before"
        findings.append(Finding(Kind.HOLDER_TWICE, said, len(tickets.doubles)))
    return findings


def _check_weights(admission: Admission, tickets: TicketList) -> list[Finding]:
    allowed = {1} | {lots for _, lots in admission.weights}
    wrong = [line for line, weight in enumerate(tickets.weights) if weight not in allowed]
    if not wrong:
        return []
    first = wrong[0]
    known = ", ".join(map(str, sorted(allowed)))
    said = f"ticket {tickets.numbers[first]} has weight {tickets.weights[first]}, not {known}"
    return [Finding(Kind.WEIGHT, said, len(wrong))]


def _check_seed(record: DrawRecord) -> list[Finding]:
    if record.seed is None:
        return [Finding(Kind.NOT_REVEALED, "the seed is not revealed yet")]
    own = commitment_of(bytes.fromhex(record.seed))
    if own != record.commitment:
        said = f"the revealed seed has the commitment {own}, not {record.commitment}"
        return [Finding(Kind.COMMITMENT, said)]
    return []


def _check_claimed(order: array[int], claimed: Sequence[int]) -> list[Finding]:
    """Whether tickets were called as they were drawn."""
    ranks = dict(zip(order, range(len(order)), strict=True))
    told = {number: rank for number, rank in enumerate(claimed) if rank != NO_RANK}
    wrong = sorted(number for number in ranks | told if ranks.get(number) != told.get(number))
    if not wrong:
        return []
    number = wrong[0]
    drawn, said_rank = ranks.get(number, "none"), told.get(number, "none")
    said = f"ticket {number} was given rank {said_rank}, and {drawn} was drawn"
    return [Finding(Kind.RANK, said, len(wrong))]
