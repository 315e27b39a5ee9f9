"""Everything that can be changed in a published draw, changed once and alone; and files that are
not what they should be, which never end in a traceback."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from seckill.draw import NO_RANK, DrawRecord, commitment_of, holder_of, ranks_of, salt_of
from seckill.errors import InvalidInput
from seckill.sale import Sale
from seckill.verify_draw import DrawVerdict, Kind, Published, verify_draw
from tests.draws import LIST_SECRET, MadeDraw, drawn_sale, made_draw

GUIDE = Path(__file__).parents[2] / "docs" / "fair-draw.md"
WEIGHTS = (1, 2, 0, 7, 1, 1)
NUMBERS = [number for number, weight in enumerate(WEIGHTS) if weight]
OTHER_HEX = "0f" * 32
CHANGED_ENDS = "ends with CR and LF: the line ends of the list were changed"


def judged(record: DrawRecord, tickets: bytes, **more: object) -> DrawVerdict:
    return verify_draw(record, io.BytesIO(tickets), **more)  # type: ignore[arg-type]


def kinds(record: DrawRecord, tickets: bytes, **more: object) -> list[str]:
    return [finding.kind.value for finding in judged(record, tickets, **more).findings]


def with_digest(record: DrawRecord, tickets: bytes) -> DrawRecord:
    """As one would publish it who has changed the list and covers that up."""
    count = tickets.count(b"\n") - 1
    return replace(record, digest=hashlib.sha256(tickets).hexdigest(), tickets=count)


@pytest.fixture(scope="module")
def made() -> MadeDraw:
    return made_draw(weights=WEIGHTS, public_value="03 07 12")


# -- what fits ------------------------------------------------------------------------------------


def test_a_draw_in_which_all_is_well(made: MadeDraw) -> None:
    record, tickets = made
    mix = record.mix
    assert mix is not None
    ranks = ranks_of(mix, WEIGHTS)
    published = Published(record.commitment, record.digest)
    verdict = judged(record, tickets, claimed=ranks, published=published)
    assert verdict.findings == ()
    assert verdict.proven
    assert verdict.lots == {1: 3, 2: 1, 7: 1}
    assert verdict.winners(99) == sorted(NUMBERS, key=lambda number: ranks[number])
    assert verdict.winners(2) == verdict.winners(99)[:2]
    assert verdict.winners(-1) == []
    for number in range(len(WEIGHTS)):
        buyer = f"buyer-{number}"
        placed = verdict.placed(holder_of(salt_of(LIST_SECRET, buyer), buyer))
        if number in NUMBERS:
            assert placed is not None
            assert (placed.number, placed.weight, placed.rank) == (
                number,
                WEIGHTS[number],
                ranks[number],
            )
        else:
            assert placed is None


def test_a_draw_without_tickets() -> None:
    verdict = judged(*made_draw(weights=[0]))
    assert verdict.proven
    assert verdict.winners(3) == []


def test_a_shuffle() -> None:
    sale = drawn_sale(mode="shuffle", weights=())
    assert judged(*made_draw(4, sale=sale)).proven


def test_before_the_seed_is_revealed(made: MadeDraw) -> None:
    record = replace(made.record, seed=None, public_value=None)
    verdict = judged(record, made.tickets)
    assert verdict.undecided
    assert not verdict.proven
    assert verdict.winners(3) == []
    buyer = "buyer-3"
    placed = verdict.placed(holder_of(salt_of(LIST_SECRET, buyer), buyer))
    assert placed is not None
    assert placed.rank is None
    # What does not fit is seen before that as well.
    cut = b"".join(made.tickets.splitlines(keepends=True)[:-1])
    assert not judged(record, cut).undecided


# -- what was changed -----------------------------------------------------------------------------


def changed_definition(record: DrawRecord, **fields: object) -> str:
    return json.dumps(json.loads(record.definition) | fields, sort_keys=True, separators=(",", ":"))


RECORDS: dict[str, Callable[[DrawRecord], DrawRecord]] = {
    "commitment": lambda record: replace(record, seed=OTHER_HEX),
    "definition": lambda record: replace(
        record, definition=changed_definition(record, title="other")
    ),
    "public_value": lambda record: replace(record, public_value=None),
    "closed_early": lambda record: replace(record, closed_ms=record.closed_ms - 1),
    "digest": lambda record: replace(record, digest=OTHER_HEX),
    "count": lambda record: replace(record, tickets=record.tickets + 1),
    "not_revealed": lambda record: replace(record, seed=None),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_changed_record(kind: str, made: MadeDraw) -> None:
    assert kinds(RECORDS[kind](made.record), made.tickets) == [kind]


def test_a_public_value_that_was_never_named() -> None:
    made = made_draw()
    assert kinds(replace(made.record, public_value="7"), made.tickets) == ["public_value"]


def test_a_record_of_another_sale(made: MadeDraw) -> None:
    found = kinds(replace(made.record, sale="other"), made.tickets)
    assert found == ["definition", "list_of_another"]


def test_a_list_of_another_definition(made: MadeDraw) -> None:
    tickets = made.tickets.replace(made.record.definition_id.encode(), b"0" * 16)
    assert kinds(made.record, tickets) == ["digest", "list_of_another"]
    assert kinds(with_digest(made.record, tickets), tickets) == ["list_of_another"]


@pytest.mark.parametrize("mode", [None, "queue"])
def test_a_sale_without_a_draw(mode: str | None) -> None:
    made = made_draw()
    sale = drawn_sale(mode="queue", weights=(), draw_at=None)
    if mode is None:
        sale = replace(sale, admission=None)
    text = sale.definition().decode()
    record = replace(made.record, definition=text, definition_id=sale.definition_id, sale=sale.id)
    tickets = b"seckill draw 1 %b %b\n" % (sale.id.encode(), sale.definition_id.encode())
    tickets += made.tickets.partition(b"\n")[2]
    assert kinds(with_digest(record, tickets), tickets) == ["no_draw"]


def swapped(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-2], lines[-1], lines[-2]]


def lighter(lines: list[bytes]) -> list[bytes]:
    return [re.sub(rb" 7 ", b" 2 ", line) for line in lines]


def weighted(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], re.sub(rb" 1 ", b" 3 ", lines[-1])]


def renamed(lines: list[bytes]) -> list[bytes]:
    number, weight, _ = lines[-1].split()
    return [*lines[:-1], b"%b %b %b\n" % (number, weight, OTHER_HEX.encode())]


def added(lines: list[bytes]) -> list[bytes]:
    return [*lines, b"9 1 " + OTHER_HEX.encode() + b"\n"]


def again(lines: list[bytes]) -> list[bytes]:
    return [*lines, lines[-1]]


def second_ticket(lines: list[bytes]) -> list[bytes]:
    return [*lines, b"9" + lines[-1][1:]]


def taken(lines: list[bytes]) -> list[bytes]:
    return [*lines, lines[-1][:4] + OTHER_HEX.encode() + b"\n"]


# What a change of the list shows: as it is, and after its digest and its count were covered up.
# What leaves nothing to see then is caught by the digest that somebody noted.
LISTS = [
    (swapped, ["digest", "order"], ["order"]),
    (lighter, ["digest"], []),
    (renamed, ["digest"], []),
    (weighted, ["digest", "weight"], ["weight"]),
    (lambda lines: lines[:-1], ["digest", "count"], []),
    (lambda lines: [lines[0], *lines[2:]], ["digest", "count"], []),
    (added, ["digest", "count"], []),
    (
        again,
        ["digest", "count", "number_twice", "holder_twice"],
        ["number_twice", "holder_twice"],
    ),
    (second_ticket, ["digest", "count", "holder_twice"], ["holder_twice"]),
    (taken, ["digest", "count", "number_twice"], ["number_twice"]),
]


@pytest.mark.parametrize(("change", "plainly", "covered"), LISTS)
def test_a_changed_list(
    change: Callable[[list[bytes]], list[bytes]],
    plainly: list[str],
    covered: list[str],
    made: MadeDraw,
) -> None:
    record = made.record
    tickets = b"".join(change(made.tickets.splitlines(keepends=True)))
    assert kinds(record, tickets) == plainly
    cover = with_digest(record, tickets)
    assert kinds(cover, tickets) == covered
    noted = Published(record.commitment, record.digest)
    assert kinds(cover, tickets, published=noted) == ["published_digest", *covered]


def test_another_seed_with_a_commitment_of_its_own(made: MadeDraw) -> None:
    seed = bytes(31) + b"\1"
    record = replace(made.record, seed=seed.hex(), commitment=commitment_of(seed))
    assert kinds(record, made.tickets) == []
    noted = Published(commitment=made.record.commitment)
    assert kinds(record, made.tickets, published=noted) == ["published_commitment"]


def test_tickets_called_in_another_order(made: MadeDraw) -> None:
    mix = made.record.mix
    assert mix is not None
    ranks = ranks_of(mix, WEIGHTS)
    ranks[0], ranks[5] = ranks[5], ranks[0]
    (finding,) = judged(*made, claimed=ranks).findings
    assert (finding.kind, finding.count) == (Kind.RANK, 2)
    assert finding.text == f"ticket 0 was given rank {ranks[0]}, and {ranks[5]} was drawn"
    ranks = ranks_of(mix, WEIGHTS)
    for number, rank, text in (
        (3, NO_RANK, "ticket 3 was given rank none"),
        (2, 5, "ticket 2 was given rank 5, and none was drawn"),
    ):
        told = ranks[:]
        told[number] = rank
        (finding,) = judged(*made, claimed=told).findings
        assert finding.text.startswith(text)
    (finding,) = judged(*made, claimed=ranks[:-1]).findings
    assert finding.text.startswith("ticket 5 was given rank none")


def test_every_finding_is_in_the_guide() -> None:
    table = GUIDE.read_text("utf-8").partition("| finding | it means |")[2].partition("\n\n")[0]
    assert re.findall(r"(?m)^\| `(\w+)` \| (.*) \|$", table) == [
        (kind.value, kind.meaning) for kind in Kind
    ]


# -- files that are none --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (rb"\A.*", b"", r"tickets\.txt:1: is not 'seckill draw 1'"),
        (rb"\Aseckill draw 1", b"seckill draw 2", r"tickets\.txt:1: is not 'seckill draw 1'"),
        (rb"(?s)\A.*", b"", r"tickets\.txt:1: is not"),
        (rb"\A", b"\xef\xbb\xbf", r"tickets\.txt:1: is not"),
        (rb"\n\Z", b"", r"tickets\.txt:6: is cut off"),
        (rb"(?m)(?<=[0-9a-f])\n3", b"\r\n3", rf"tickets\.txt:3: {CHANGED_ENDS}"),
        (rb"\n", b"\r\n", rf"tickets\.txt:1: {CHANGED_ENDS}"),
        (rb"\n3 ", b"\n03 ", r"tickets\.txt:4: is not a number"),
        (rb"\n3 ", b"\n-3 ", r"tickets\.txt:4: is not a number"),
        (rb"\n3 7", b"\n3 0", r"tickets\.txt:4: is not a number"),
        (rb"\n3 7", b"\n3  7", r"tickets\.txt:4: is not a number"),
        (rb"\n3 7", b"\n4294967295 7", r"tickets\.txt:4: has a number above 4294967294"),
        (rb"\n3 7", b"\n3 101", r"tickets\.txt:4: has .* a weight above 100"),
        (rb"\n\Z", b"\n\n", r"tickets\.txt:7: is not a number"),
        (rb"\n\Z", b"\n" + b"1" * 9_999, r"tickets\.txt:7: is not a number"),
    ],
)
def test_a_list_that_is_none(old: bytes, new: bytes, text: str, made: MadeDraw) -> None:
    tickets, count = re.subn(old, new, made.tickets, count=1)
    assert count == 1
    with pytest.raises(InvalidInput, match=text):
        judged(made.record, tickets)


def test_no_line_is_read_without_a_bound(made: MadeDraw) -> None:
    """A file of one endless line must not fill the memory."""

    class Endless(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert 0 < size <= 1_000
            return super().readline(size)

    assert verify_draw(made.record, Endless(made.tickets)).proven


def test_numbers_that_are_far_apart_take_no_memory() -> None:
    made = made_draw(1)
    tickets = made.tickets.replace(b"\n0 ", b"\n4294967294 ")
    verdict = judged(with_digest(made.record, tickets), tickets)
    assert verdict.winners(1) == [4294967294]


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("format", "seckill-draw-2", r"draw\.json\.format: "),
        ("sale", "晚8点", r"draw\.json\.sale: "),
        ("digest", "AB" * 32, r"draw\.json\.digest: "),
        ("digest", "ab" * 32 + "\n", r"draw\.json\.digest: "),
        ("seed", "ab", r"draw\.json\.seed: "),
        ("tickets", -1, r"draw\.json\.tickets: "),
        ("tickets", 1.5, r"draw\.json\.tickets: "),
        ("closed_ms", 1795867200, r"draw\.json\.closed_ms: "),
        ("public_value", "", r"draw\.json\.public_value: is empty"),
        ("public_value", "\x1b[2J", r"draw\.json\.public_value: holds the character U\+001B"),
        ("definition", {}, r"draw\.json\.definition: "),
    ],
)
def test_a_record_that_is_none(field: str, value: object, text: str, made: MadeDraw) -> None:
    plain = json.loads(made.record.encode()) | {field: value}
    with pytest.raises(InvalidInput, match=text):
        DrawRecord.decode(json.dumps(plain).encode())


def test_a_definition_of_a_version_to_come(made: MadeDraw) -> None:
    text = changed_definition(made.record, news=1)
    own_id = hashlib.sha256(text.encode()).hexdigest()[:16]
    record = replace(made.record, definition=text, definition_id=own_id)
    with pytest.raises(InvalidInput, match="a newer seckill may have written it"):
        judged(record, made.tickets)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)
FIELDS = st.dictionaries(st.sampled_from(DrawRecord.__struct_fields__), JSON, max_size=3)


@given(st.one_of(st.binary(max_size=200), st.builds(json.dumps, JSON).map(str.encode)))
def test_any_bytes_as_a_record(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"draw\.json"):
        DrawRecord.decode(data)


@given(FIELDS, st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_values_in_a_record(made: MadeDraw, fields: dict[str, object], own_id: bool) -> None:
    plain = json.loads(made.record.encode()) | fields
    if own_id and isinstance(text := plain["definition"], str):
        plain["definition_id"] = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
    with contextlib.suppress(InvalidInput):
        judged(DrawRecord.decode(json.dumps(plain).encode()), made.tickets)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_damage_of_a_list(made: MadeDraw, data: st.DataObject) -> None:
    """Cut out a part anywhere and put another in: it is refused, or it is seen."""
    start = data.draw(st.integers(0, len(made.tickets)))
    end = data.draw(st.integers(start, min(start + 90, len(made.tickets))))
    part = data.draw(st.binary(max_size=90) | st.sampled_from([b"\n", b" ", b"0", b"1", b"\r\n"]))
    tickets = made.tickets[:start] + part + made.tickets[end:]
    with contextlib.suppress(InvalidInput):
        assert ("digest" in kinds(made.record, tickets)) == (tickets != made.tickets)


def test_what_is_published_is_readable_by_other_programs(made: MadeDraw) -> None:
    """The definition in draw.json is the sale's own, byte by byte."""
    plain = msgspec.json.decode(made.record.encode())
    sale = Sale.from_definition(plain["definition"].encode())
    assert sale.definition_id == plain["definition_id"]
    assert plain["format"] == "seckill-draw-1"
