"""seckill/patience.py: what an engine has seen of the server's clock, told to the server itself."""

from __future__ import annotations

from time import monotonic

import pytest

from seckill import patience
from seckill.patience import Patience

AHEAD_MS = 1e12


def shown_ms() -> float:
    return monotonic() * 1000 + AHEAD_MS


def test_nothing_was_seen() -> None:
    assert Patience().passed_ms == 0


def test_the_clock_goes_on_with_ours() -> None:
    seen = Patience()
    seen.see(AHEAD_MS)
    before = int(shown_ms())
    assert before <= seen.passed_ms <= shown_ms()


def test_a_clock_that_was_set_back_is_not_believed() -> None:
    seen = Patience()
    seen.see(AHEAD_MS)
    seen.see(AHEAD_MS - 5_000)
    assert seen.passed_ms > shown_ms() - 1_000
    # Nor is an answer that was late, which looks the same; the next one is believed.
    seen.see(AHEAD_MS + 5_000)
    assert seen.passed_ms >= int(shown_ms() + 5_000) - 1_000


def test_what_was_seen_long_ago_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two clocks may run at different speeds."""
    seen = Patience()
    seen.see(AHEAD_MS)
    monkeypatch.setattr(patience, "MEMORY_S", -1.0)
    seen.see(AHEAD_MS - 5_000)
    assert seen.passed_ms < shown_ms() - 4_000


def test_what_was_given_up_has_passed() -> None:
    seen = Patience()
    seen.give_up(7)
    seen.give_up(5)
    assert seen.passed_ms == 8
    seen.see(AHEAD_MS)
    assert seen.passed_ms > 8
    later = int(shown_ms()) + 60_000
    seen.give_up(later)
    assert seen.passed_ms == later + 1
