"""The steps of a rebuild: each may be repeated, and none goes on once another rebuild has begun."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from seckill.keys import NAMES
from seckill.scripts import script
from seckill.status import Status
from tests.lua.core import DEFINITION_ID, HOLD_MS, Core, Event
from tests.support import dump

ORDERS = ["o1", "h1------60000|0|ann", "o2", "c2------60000|1:2|bob|p1"]
BUYERS = ["ann", "0", "bob", "1:2"]
STOCK = [
    *("0:available", 4, "0:held", 1, "0:confirmed", 0, "0:total", 5, "0:limit", 0),
    *("1:available", 0, "1:held", 0, "1:confirmed", 2, "1:total", 2, "1:limit", 0),
]


class Site(Core):
    """The place beside a fenced sale where another one is built."""

    def __init__(self, sale: Core, token: str = "mine") -> None:  # noqa: S107
        super().__init__(sale.client, sale.sale)
        self.real, self.token = sale, token
        names = zip(sale.keys, NAMES, strict=True)
        self.keys = tuple(key.removesuffix(name) + f"rebuild-{name}" for key, name in names)

    def step(self, verb: str, *args: Any) -> list[Any]:
        status, *rest = self.run(verb, self.token, *args)
        return [Status(status), *rest]

    def take(self) -> Status:
        return Status(self.real.run("rebuild_begin", self.token)[0])

    def load(self, part: int, *lists: list[str]) -> Status:
        columns = [*lists, *([] for _ in range(4 - len(lists)))]
        return self.step("rebuild_load", part, msgspec.msgpack.encode(columns))[0]  # type: ignore[no-any-return]

    def found(self, state: str = "paused", rest_ms: int = 5_000) -> list[Any]:
        now_ms = self.server_ms()
        header = [
            *("made", "new", "definition_id", DEFINITION_ID, "definition", "{}"),
            *("origin_ms", now_ms, "opens_ms", now_ms, "ends_ms", now_ms + 9_999_999),
            *("hold_ms", HOLD_MS, "pay_ms", HOLD_MS, "limit_per_order", 0, "limit_per_buyer", 0),
            *("max_lapsed", 0, "clock_jump_ms", 600_000, "server", "run"),
        ]
        fields = msgspec.msgpack.encode((header, STOCK))
        return self.step("rebuild_found", 1_000_009, state, 9, 77, 2, 9, rest_ms, fields)

    def swap(self) -> Status:
        keys = (*self.real.keys, *self.keys)
        source = script("rebuild").source
        reply: Any = self.client.eval(source, len(keys), *keys, 1, self.token, "ledger")
        return Status(reply[0])

    def dump_built(self) -> dict[str, Any]:
        keys = zip(NAMES, self.keys, strict=True)
        return {name: self.client.type(key) for name, key in keys if self.client.exists(key)}

    def build(self) -> None:
        assert self.take() is Status.DONE
        assert self.load(0, ORDERS) is Status.DONE
        assert self.load(1, [], BUYERS, ["o1"], []) is Status.DONE
        assert self.found()[0] is Status.DONE


@pytest.fixture
def fenced(core: Core) -> Core:
    """A sale that had one order more, and stands still."""
    core.begin()
    core.hold("o9", "eve")
    core.set_header(state="fenced", reason="lost")
    return core


@pytest.fixture
def site(fenced: Core) -> Site:
    return Site(fenced)


def built_events(core: Core) -> list[Event]:
    entries: Any = core.client.xrange(core.keys[6])
    pairs = [(entry, *pair) for entry, fields in entries for pair in fields.items()]
    return [
        Event(int(entry.split(b"-")[1]), int(entry.split(b"-")[0]), name.decode(), text.decode())
        for entry, name, text in pairs
    ]


def test_it_takes_the_fenced_sales_place_in_one_step(site: Site, fenced: Core) -> None:
    before = fenced.dump()
    site.build()
    header = before["sale"] | {b"rebuilt_by": b"mine"}
    assert fenced.dump() == before | {"sale": header}
    assert site.swap() is Status.DONE
    assert {name for name, found in site.dump_built().items() if found} == set()
    after = fenced.dump()
    assert after["orders"] == dict(zip(*[iter(map(str.encode, ORDERS))] * 2, strict=True))
    assert after["buyers"] == {b"ann": b"0", b"bob": b"1:2"}
    assert (after["holds"], after["paying"]) == ([b"o1"], None)
    assert fenced.stock(0) == (4, 1, 0, 5)
    assert (fenced.header("state"), fenced.header("reason")) == ("paused", "rebuilt")
    [event] = built_events(fenced)
    spared_ms = int(fenced.header("spared_ms"))
    assert event == (1_000_009, spared_ms - 5_000, "sale", f"rebuilt|9|77|2|9|paused|{spared_ms}")
    assert int(fenced.header("seq")) == 1_000_009
    groups: Any = fenced.client.xinfo_groups(fenced.keys[6])
    assert [(group["name"], group["last-delivered-id"]) for group in groups] == [
        (b"ledger", b"0-0")
    ]
    assert fenced.resume() is Status.DONE


def test_each_step_may_be_repeated(site: Site, fenced: Core) -> None:
    assert site.take() is site.take() is Status.DONE
    assert site.load(0, ORDERS) is site.load(0, ORDERS) is Status.DONE
    for _ in range(2):
        assert site.load(1, [], BUYERS, ["o1"], []) is Status.DONE
    assert site.found() == site.found()
    assert site.swap() is Status.DONE
    after = fenced.dump()
    assert site.swap() is Status.DONE
    assert fenced.dump() == after
    assert after["holds"] == [b"o1"]


def test_the_first_part_clears_what_an_earlier_attempt_has_left(site: Site) -> None:
    site.build()
    other = Site(site.real, "other")
    assert other.load(0) is Status.DONE
    assert {name for name, found in other.dump_built().items() if found} == {"sale"}


def test_an_earlier_rebuild_gets_no_further(site: Site, fenced: Core) -> None:
    site.build()
    other = Site(fenced, "other")
    assert other.take() is Status.DONE
    assert site.swap() is Status.CONFLICT
    assert other.load(0, ORDERS) is Status.DONE
    assert site.load(2) is Status.CONFLICT
    assert site.found()[0] is Status.CONFLICT
    columns = msgspec.msgpack.encode(([], [], []))
    assert site.step("rebuild_admit", columns)[0] is Status.CONFLICT
    assert other.swap() is Status.CONFLICT  # It is not complete.
    assert other.load(2) is Status.CONFLICT  # Part 1 is missing.
    assert fenced.header("state") == "fenced"


def test_a_sale_that_is_not_fenced_is_not_taken_in_hand(site: Site, fenced: Core) -> None:
    site.build()
    assert site.swap() is Status.DONE
    assert Site(fenced, "other").take() is Status.ALREADY


def test_no_hold_lapses_before_its_time(site: Site, fenced: Core) -> None:
    site.build()
    site.swap()
    fenced.travel(60_001)
    assert fenced.expire().expired == 0
    assert fenced.begin_payment("o1").status is Status.DONE
    fenced.travel(HOLD_MS)
    swept = fenced.expire()
    assert (swept.expired, swept.next_ms) == (0, int(fenced.header("spared_ms")))
    fenced.set_header(spared_ms=0)
    assert fenced.expire().expired == 1


@pytest.mark.parametrize("verb", ["rebuild", "rebuild_begin", "rebuild_load", "rebuild_found"])
def test_another_format_is_refused(site: Site, fenced: Core, verb: str) -> None:
    before = dump(fenced.client, fenced.sale)
    site.format = 99
    keys = (*fenced.keys, *site.keys) if verb == "rebuild" else site.keys
    packed = msgspec.msgpack.encode(([], [], [], []))
    args: list[Any] = [99, "mine", 0, packed, 0, 0, 0, 0, 0, packed]
    reply: Any = site.client.eval(script(verb).source, len(keys), *keys, *args)
    assert Status(reply[0]) is Status.UPGRADE_NEEDED
    assert dump(fenced.client, fenced.sale) == before
