"""One buyer's place in a line, and that it never gets worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .promises import PLACE_BACK, Notes

__all__ = ["Line"]


class Line:
    """Looks at every place that one buyer is told. ``mode`` is the sale's: only first come, first
    served says from the beginning who is before whom."""

    def __init__(self, notes: Notes, buyer: str, mode: str) -> None:
        self._notes = notes
        self._buyer = buyer
        self._fifo = mode == "queue"
        self._last: Mapping[str, Any] | None = None

    def told(self, place: Mapping[str, Any]) -> None:
        """A place, as the answer to joining or to a question. Two workers may have looked at
        different moments, so places compare by ``at_ms``."""
        last = self._last
        if last is None or last["ticket"] != place["ticket"]:
            self._last = place
            return
        if place["number"] != last["number"]:
            self._broke(f"number {last['number']} became {place['number']}")
        if place["at_ms"] < last["at_ms"]:
            return
        self._last = place
        if last["phase"] == "called":
            self._after_call(last, place)
        elif self._fifo and _farther(last["ahead"], place["ahead"]):
            self._broke(f"{last['ahead']} ahead became {place['ahead']}")

    def _after_call(self, last: Mapping[str, Any], place: Mapping[str, Any]) -> None:
        if place["phase"] not in ("called", "lapsed", "ended"):
            self._broke(f"called, and then {place['phase']}")
        elif place["phase"] == "called" and place["expires_ms"] != last["expires_ms"]:
            self._broke("the end of a turn moved")

    def _broke(self, detail: str) -> None:
        self._notes.broke(PLACE_BACK, f"{self._buyer}: {detail}")


def _farther(before: int | None, now: int | None) -> bool:
    return before is not None and now is not None and now > before
