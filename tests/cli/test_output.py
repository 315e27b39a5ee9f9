"""Money and time as people read them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from seckill.cli.output import countdown, moment, yuan


@pytest.fixture(params=["Asia/Shanghai", "Asia/Kolkata", "America/St_Johns"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("fen", "text"),
    [(0, "¥0.00"), (5, "¥0.05"), (299_900, "¥2,999.00"), (10**10 + 1, "¥100,000,000.01")],
)
def test_yuan(fen: int, text: str) -> None:
    assert yuan(fen) == text


def test_moment(zone: str) -> None:
    # 2026-11-28T20:00:00+08:00
    expected = {
        "Asia/Shanghai": "2026-11-28 20:00:00 +08:00",
        "Asia/Kolkata": "2026-11-28 17:30:00 +05:30",
        "America/St_Johns": "2026-11-28 08:30:00 -03:30",
    }
    assert moment(1_795_867_200_999) == expected[zone]


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "00:00 ago"),
        (1, "in 00:00"),
        (59_999, "in 00:59"),
        (-61_000, "01:01 ago"),
        (3_600_000, "in 01:00:00"),
        (93_784_000, "in 1 d 02:03:04"),
        (-86_400_000, "1 d 00:00:00 ago"),
    ],
)
def test_countdown(ms: int, text: str) -> None:
    now_ms = 1_795_867_200_000
    assert countdown(now_ms + ms, now_ms) == text
