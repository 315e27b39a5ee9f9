"""The rehearsal goes as the real scripts go, and its figures add up."""

from __future__ import annotations

from array import array
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
import redis

from seckill.errors import InvalidInput
from seckill.queue import LOOK_S
from seckill.rehearse import (
    Crowd,
    Habits,
    Pacer,
    Rehearsal,
    Rules,
    make_crowd,
    picture,
    read_span,
    rehearse,
    rules_of,
    what_if,
)
from seckill.rehearse.evening import Moment
from seckill.rehearse.model import Mode
from seckill.rehearse.simulate import LOOK_MS
from seckill.salefile import load_sale
from tests.unit.rehearsal import RealEvening

MODES: tuple[Mode, ...] = ("open", "queue", "shuffle", "draw")
TWO_HOURS_MS = 7_200_000


@pytest.fixture
def pacer(client: redis.Redis) -> Pacer:
    return Pacer(client)


def rules(mode: Mode = "queue", **fields: Any) -> Rules:
    defaults: dict[str, Any] = {
        "units": 200,
        "ends_ms": TWO_HOURS_MS,
        "hold_ms": 60_000,
        "rate_per_s": 10,
        "token_life_ms": 20_000,
        "overbook_max": 20,
    }
    if mode == "draw":
        defaults |= {"rate_per_s": 0, "overbook_max": 1}
    return Rules(mode=mode, **(defaults | fields))


def evening_of(
    pacer: Pacer, ruled: Rules, buyers: int = 3_000, seed: int = 7, **habits: Any
) -> Rehearsal:
    crowd = make_crowd("rush", buyers, ruled, seed)
    return rehearse(ruled, crowd, Habits(**habits), pacer)[0]


# -- beside the real scripts ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ruled", "habits"),
    [
        # By the rate, and by the stock, where few of the called come and few of them pay.
        (rules(), Habits()),
        (rules(rate_per_s=500, units=60, hold_ms=15_000), Habits(show_up=0.2, pay_through=0.5)),
    ],
)
def test_it_calls_whom_the_scripts_call_when_they_do(
    client: redis.Redis, pacer: Pacer, ruled: Rules, habits: Habits
) -> None:
    until_ms, crowd = 120_000, make_crowd("rush", 2_000, ruled, 7)
    _, evening = rehearse(ruled, crowd, habits, pacer)
    real = RealEvening(client, ruled, crowd, habits).run(until_ms)
    called = {buyer: evening.called_at[buyer] for buyer in evening.called}
    assert {buyer: at for buyer, at in called.items() if at < until_ms} == real.called_at
    assert len(real.called_at) > ruled.units
    for moment in evening.moments:
        if moment.at_ms < until_ms:
            look = real.looks[moment.at_ms]
            found = Moment(
                moment.at_ms, look.tail, look.head, look.available, look.held, look.live, look.reach
            )
            assert moment == found


def test_it_looks_as_often_as_the_engine() -> None:
    assert LOOK_MS == LOOK_S * 1000


def test_waits_are_right_for_a_crowd_that_chooses_otherwise(
    client: redis.Redis, pacer: Pacer
) -> None:
    # Other people come and pay than was thought, and the mall looks at other moments.
    ruled, habits = rules(), Habits()
    crowd = make_crowd("rush", 2_000, ruled, 7)
    _, evening = rehearse(ruled, crowd, habits, pacer)
    real = RealEvening(client, ruled, crowd, habits, seed=8).run(120_000, look_ms=330)
    errors = [
        abs(evening.called_at[buyer] - at_ms) / (at_ms - crowd.arrivals[buyer])
        for buyer, at_ms in real.called_at.items()
        if buyer in set(evening.called)
    ]
    print(f"median relative error of the waits: {median(errors):.1%} of {len(errors)}")
    assert len(errors) > ruled.units
    assert median(errors) < 0.2


# -- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_figures_add_up(pacer: Pacer, mode: Mode) -> None:
    found = evening_of(pacer, rules(mode))
    assert found.paid + found.unsold == found.units
    assert found.called == found.absent + found.empty + found.orders
    assert found.orders == found.paid + found.lapsed
    assert found.joined == found.called + found.in_vain
    assert sum(part.buyers for part in found.deciles) == found.buyers == 3_000
    assert sum(part.called for part in found.deciles) == found.called
    assert sum(part.units for part in found.deciles) == found.orders
    assert found.unsold == 0
    assert found.sold_out_ms is not None
    assert found.gone_ms is not None
    assert found.sold_out_ms < found.gone_ms


def test_first_come_is_first_served(pacer: Pacer) -> None:
    chances = [part.chance for part in evening_of(pacer, rules()).deciles]
    assert chances[0] > 0.9
    assert chances[2:] == [0] * 8


@pytest.mark.parametrize("mode", ["shuffle", "draw"])
def test_coming_early_helps_nobody_where_tickets_are_ranked(pacer: Pacer, mode: Mode) -> None:
    # Eight of ten come before the draw, and about 300 of 2,400 are called.
    called = [part.called for part in evening_of(pacer, rules(mode)).deciles]
    assert all(12 < count < 75 for count in called[:8]), called
    assert called[8:] == [0, 0]


def test_a_sale_whose_called_stay_away_sells_out(pacer: Pacer) -> None:
    found = evening_of(pacer, rules(units=100, rate_per_s=200), show_up=0.1)
    assert found.unsold == 0
    assert found.absent > 5 * found.orders
    assert found.sold_out_ms is not None
    assert found.sold_out_ms < 4 * 20_000


def test_nobody_comes_at_all(pacer: Pacer) -> None:
    found = evening_of(pacer, rules(ends_ms=600_000), buyers=50, show_up=0)
    assert (found.called, found.orders, found.unsold) == (50, 0, 200)
    assert found.sold_out_ms is None


def test_units_that_nobody_pays_come_back_to_those_who_wait(pacer: Pacer) -> None:
    ruled = rules(units=20, hold_ms=30_000, ends_ms=100_000)
    found = evening_of(pacer, ruled, pay_through=0)
    # At 0, 30, 60 and 90 s all units are there again, to whoever is called then.
    assert found.orders > 3 * ruled.units
    assert (found.paid, found.unsold, found.gone_ms) == (0, 20, None)


def test_those_who_wait_in_vain_are_told(pacer: Pacer) -> None:
    found = evening_of(pacer, rules())
    assert found.in_vain > 2_000
    assert found.untold == 0
    assert found.told_median_ms is not None
    assert found.told_median_ms < 60_000


def test_what_a_queue_says_on_joining_is_about_right(pacer: Pacer) -> None:
    error = evening_of(pacer, rules(units=1_000)).eta_error
    assert error is not None
    assert error < 0.2


@pytest.mark.parametrize("show_up", [0.2, 0.7])
def test_who_waits_for_the_stock_is_told_no_time(pacer: Pacer, show_up: float) -> None:
    """At this rate all are called that the stock allows; the others wait for who stays away."""
    ruled = rules(units=200, rate_per_s=200, token_life_ms=60_000)
    crowd = make_crowd("rush", 5_000, ruled, 1)
    found, evening = rehearse(ruled, crowd, Habits(show_up=show_up), pacer)
    told = [one for one in evening.told if one.eta_ms is not None]
    assert 0 < len(told) < len(evening.told)
    assert found.eta_error is not None
    assert found.eta_error < 0.3


def test_a_lull_says_nothing_of_the_pace(pacer: Pacer, tmp_path: Path) -> None:
    """Two hundred at the opening, and ten minutes later four hundred within four seconds."""
    came = [0.0] * 200 + [600 + place / 100 for place in range(400)]
    file = tmp_path / "came.csv"
    file.write_text("".join(f"{second:.2f}\n" for second in came))
    ruled = rules(units=2_000, rate_per_s=20, token_life_ms=60_000)
    crowd = make_crowd(str(file), None, ruled, 1)
    error = rehearse(ruled, crowd, Habits(), pacer)[0].eta_error
    assert error is not None
    assert error < 0.2


def test_a_draw_calls_as_many_as_it_can_surely_serve(pacer: Pacer) -> None:
    """Each winner may take five of a hundred units, so there are twenty at a time."""
    ruled = rules("draw", units=100, each=5, draw_ms=0, joins_ms=-60_000)
    crowd = make_crowd("rush", 3_000, ruled, 1)
    evening = rehearse(ruled, crowd, Habits(), pacer)[1]
    assert evening.moments[0].head == 20


def test_the_same_seed_is_the_same_evening(pacer: Pacer) -> None:
    found = evening_of(pacer, rules())
    assert evening_of(pacer, rules()) == found
    assert evening_of(pacer, rules(), seed=8) != found


def test_other_rules(pacer: Pacer) -> None:
    ruled, habits = rules(), Habits()
    crowd = make_crowd("rush", 3_000, ruled, 7)
    as_it_is = rehearse(ruled, crowd, habits, pacer)[0]
    others = {(other.name, other.value): other for other in what_if(ruled, crowd, habits, pacer)}
    assert set(others) == {
        ("rate_per_s", 5),
        ("rate_per_s", 20),
        ("token_life_ms", 10_000),
        ("token_life_ms", 40_000),
        ("pay_through", 0.72),
    }
    slow, fast = others["rate_per_s", 5].result, others["rate_per_s", 20].result
    times = [found.sold_out_ms or 0 for found in (slow, as_it_is, fast)]
    assert times[0] > 1.7 * times[1] > 2 * times[2] > 0
    assert others["pay_through", 0.72].result.lapsed > 2 * as_it_is.lapsed


@pytest.mark.parametrize(("mode", "names"), [("open", set()), ("draw", {"token_life_ms"})])
def test_other_rules_that_mean_nothing_are_left_out(
    pacer: Pacer, mode: Mode, names: set[str]
) -> None:
    ruled = rules(mode)
    others = what_if(ruled, make_crowd("rush", 500, ruled, 7), Habits(), pacer)
    assert {other.name for other in others} == names | {"pay_through"}


# -- crowds -----------------------------------------------------------------------------------


def arrivals(text: str, buyers: int | None = None, ruled: Rules | None = None) -> array[int]:
    return make_crowd(text, buyers, ruled or rules(), 1).arrivals


def test_a_rush_comes_when_tickets_can_first_be_taken() -> None:
    early = arrivals("rush", 1_000, rules(joins_ms=-600_000))
    assert -600_000 <= early[0] < early[500] < -590_000
    assert early[-1] < TWO_HOURS_MS


def test_a_rush_comes_before_a_draw() -> None:
    ruled = rules("draw", joins_ms=-600_000, draw_ms=-60_000)
    crowd = make_crowd("rush", 1_000, ruled, 1)
    assert crowd.listed == crowd.joined == 800
    assert crowd.arrivals[0] >= -600_000
    assert crowd.arrivals[799] < -60_000 <= crowd.arrivals[800]
    assert sorted(crowd.order) == list(range(800)) != list(crowd.order)


def test_an_even_crowd() -> None:
    assert list(arrivals("even:10s", 5)) == [0, 2_000, 4_000, 6_000, 8_000]
    assert list(arrivals("even:10s", 2, rules("draw"))) == [-10_000, -5_000]


def test_a_crowd_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "came.csv"
    file.write_text("seconds,who\n3.5,a\n\n-2,b\n8000,c\n", encoding="utf-8-sig")
    assert list(arrivals(str(file))) == [-2_000, 3_500, 8_000_000]
    crowd = make_crowd(str(file), None, rules(joins_ms=-1_000), 1)
    # Who is too early comes again when it is time; who comes after the end finds it closed.
    assert list(crowd.arrivals) == [-1_000, 3_500, 8_000_000]
    assert crowd.joined == 2


@pytest.mark.parametrize(
    ("text", "field", "problem"),
    [
        ("3\nx\n", "--arrival", "came.csv:2: 'x'"),
        ("3\ninf\n", "--arrival", "came.csv:2: 'inf'"),
        ("3\nnan\n", "--arrival", "came.csv:2: 'nan'"),
        ("when\n", "--arrival", "has 0 rows"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, field: str, problem: str) -> None:
    file = tmp_path / "came.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput) as caught:
        arrivals(str(file))
    assert caught.value.field == field
    assert problem in caught.value.problem


def test_a_file_and_a_number_of_buyers() -> None:
    with pytest.raises(InvalidInput, match="--buyers: is given beside a file"):
        arrivals("came.csv", 5)


@pytest.mark.parametrize(
    ("text", "ms"), [("10s", 10_000), ("90", 90_000), ("1.5 min", 90_000), ("2h", 7_200_000)]
)
def test_a_length_of_time(text: str, ms: int) -> None:
    assert read_span(text, "--x") == ms


@pytest.mark.parametrize("text", ["", "0", "-1s", "10 days", "9999h", "1e3"])
def test_no_length_of_time(text: str) -> None:
    with pytest.raises(InvalidInput, match="--x: "):
        read_span(text, "--x")


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_no_share(share: float) -> None:
    with pytest.raises(InvalidInput, match="--show-up"):
        Habits(show_up=share)


def test_rules_of_a_sale(tmp_path: Path) -> None:
    file = tmp_path / "sale.toml"
    file.write_text(
        'id = "a"\ntitle = "a"\nopens_at = 2026-12-05T20:00:00+08:00\n'
        "ends_at = 2026-12-05T22:00:00+08:00\n"
        '[admission]\nmode = "draw"\nrate_per_s = 7\noverbook_max = 9\n'
        "joins_at = 2026-12-05T19:00:00+08:00\ndraw_at = 2026-12-05T19:59:00+08:00\n"
        '[[items]]\nsku = "a"\ntitle = "a"\nprice_fen = 1\ntotal = 3\n',
        encoding="utf-8",
    )
    drawn = Rules(
        mode="draw",
        units=3,
        ends_ms=TWO_HOURS_MS,
        hold_ms=900_000,
        rate_per_s=0,
        token_life_ms=120_000,
        overbook_max=1,
        joins_ms=-3_600_000,
        draw_ms=-60_000,
    )
    sale = load_sale(file)
    assert rules_of(sale) == drawn
    assert rules_of(msgspec.structs.replace(sale, admission=None)).mode == "open"


# -- pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_picture_is_one_small_file(pacer: Pacer, mode: Mode) -> None:
    ruled = rules(mode)
    _, evening = rehearse(ruled, make_crowd("rush", 3_000, ruled, 7), Habits(), pacer)
    drawn = picture(evening, '<b> & "秒杀"', ["one fact"])
    assert len(drawn.encode()) < 40_000
    assert "nan" not in drawn
    root = ElementTree.fromstring(drawn)  # noqa: S314 - written above
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert '<b> & "秒杀"' in words
    assert "Chance of a unit, by arrival" in words


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("buyers", [1, 3])
def test_the_picture_of_hardly_anybody(pacer: Pacer, mode: Mode, buyers: int) -> None:
    ruled = rules(mode, ends_ms=60_000)
    crowd = Crowd(array("q", range(buyers)), ruled, 1)
    found, evening = rehearse(ruled, crowd, Habits(), pacer)
    assert found.buyers == buyers
    ElementTree.fromstring(picture(evening, "a", []))  # noqa: S314 - written above


@pytest.mark.parametrize(
    ("late_ms", "last_ms", "labels"),
    [
        (13_300, 5_880_000, ["0 s", "+1 s", "+2 s", "+1 h 38 min"]),
        (19_000, 5_880_000, ["0 s", "+1 s", "+2 s", "+19 s", "+1 h 38 min"]),
        (5_940_000, 7_200_000, ["0 s", "+1 s", "+2 s", "+1 h 39 min", "+2 h"]),
    ],
)
def test_no_two_labels_of_the_picture_touch(
    pacer: Pacer, late_ms: int, last_ms: int, labels: list[str]
) -> None:
    """One in the middle is left out before it runs into the last one's."""
    came = [*(100 * place for place in range(30)), *([late_ms] * 9), last_ms]
    ruled = rules(ends_ms=last_ms + 1)
    _, evening = rehearse(ruled, Crowd(array("q", came), ruled, 1), Habits(), pacer)
    root = ElementTree.fromstring(picture(evening, "a", []))  # noqa: S314 - written above
    texts = root.iter("{http://www.w3.org/2000/svg}text")
    # Both of the lower panels have them.
    assert [text.text for text in texts if text.get("y") == "636"] == labels * 2
