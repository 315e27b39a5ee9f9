"""What travels in the bodies of a sale's queue: places, and draws.

A million mini-programs may wait at once, so every place says when asking again is worth it.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from seckill.draw import FORMAT
from seckill.queue import Phase, Place
from seckill.queues import VALUE_MAX
from seckill.sale import Sale

from .user_tokens import TIER_CHARS_MAX

__all__ = [
    "DrawDocument",
    "JoinRequest",
    "JoinedDocument",
    "LeftDocument",
    "PlaceDocument",
    "PublicValueDocument",
    "PublicValueRequest",
    "place_document",
    "poll_after_ms",
]

POLL_MIN_MS: Final = 1_000
POLL_MAX_MS: Final = 30_000
# So many times is a buyer to ask in the time that is left, or in the life of a token: a turn that
# comes sooner than was foretold is to be noticed while it lasts.
ASKS: Final = 4
# Who waits for a draw would all ask in the moment after it. They are spread, by their numbers.
ASKED_PER_S: Final = 50_000
SPREAD_MAX_MS: Final = 20_000
# While nobody is called, those in front are to notice it first when it goes on.
STANDING_PER_S: Final = 50

_OVER: Final = ("called", "lapsed", "ended")


class JoinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who joins. ``tier`` is the buyer's member tier, which may weigh in a draw. Only the mall's
    backend names it: a buyer's is in the user token."""

    tier: (
        Annotated[str, Meta(min_length=1, max_length=TIER_CHARS_MAX, examples=["gold"])] | None
    ) = None


class PlaceDocument(msgspec.Struct, frozen=True, gc=False):
    """Where a ticket stands. ``phase``: joined (its list is not closed yet), drawing (closed, not
    in order yet), waiting, unlikely (the stock left will probably not reach it), called (order
    with ``token``, before ``expires_ms``), lapsed (join again, where tickets are not drawn),
    sold_out (no unit is left or held) or ended. ``ahead`` is how many come before it at most,
    ``eta_ms`` how long that takes if it goes on as it goes; null where nobody can tell. Ask again
    after ``poll_after_ms``; null: there is nothing to wait for. With ``salt`` the buyer finds the
    own line in the published list of a draw."""

    ticket: str
    number: int
    phase: Phase
    ahead: int | None
    eta_ms: int | None
    poll_after_ms: int | None
    token: str | None
    expires_ms: int | None
    salt: str | None
    at_ms: int


class JoinedDocument(msgspec.Struct, frozen=True, gc=False):
    """The buyer has a ticket: a new one (created), or the one there was (exists)."""

    code: str
    place: PlaceDocument


class LeftDocument(msgspec.Struct, frozen=True):
    """The buyer's ticket is given up."""

    code: str
    sale: str


class PublicValueRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The public value that the draw's definition names, exactly as it was announced."""

    value: Annotated[str, Meta(min_length=1, max_length=VALUE_MAX, examples=["03 07 12 19 25 31"])]


class PublicValueDocument(msgspec.Struct, frozen=True):
    """The draw goes by this public value now."""

    code: str
    sale: str
    value: str


class DrawDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What is published of a draw by now: draw.json. ``definition`` has its rules, as text;
    ``commitment`` fixes its seed from the beginning. ``tickets``, ``digest`` and ``closed_ms`` are
    null until the list of tickets is closed, ``seed`` until the draw is done."""

    format: Literal["seckill-draw-1"] = FORMAT
    sale: str
    definition_id: str
    definition: str
    commitment: str
    tickets: int | None = None
    digest: str | None = None
    closed_ms: int | None = None
    public_value: str | None = None
    seed: str | None = None


def place_document(place: Place, sale: Sale) -> PlaceDocument:
    """A place in the queue of this sale for the wire."""
    return PlaceDocument(
        place.ticket,
        place.number,
        place.phase,
        place.ahead,
        place.eta_ms,
        poll_after_ms(place, sale),
        place.token or None,
        place.expires_ms or None,
        place.salt or None,
        place.at_ms,
    )


def poll_after_ms(place: Place, sale: Sale) -> int | None:
    """When asking again is worth it, 1 to 30 s from now; None where nothing will change."""
    phase = place.phase
    if phase in _OVER:
        return None
    if phase in ("joined", "drawing"):
        if phase == "drawing" and sale.admission is not None and sale.admission.public_value:
            return POLL_MAX_MS  # Until tonight's lottery is drawn, say.
        spread_ms = min(place.number * 1_000 // ASKED_PER_S, SPREAD_MAX_MS)
        left_ms = max(0, sale.draw_ms - place.at_ms) if phase == "joined" else 0
        return _bounded(left_ms + POLL_MIN_MS + spread_ms, POLL_MAX_MS)
    if phase == "sold_out":
        return POLL_MAX_MS
    if place.eta_ms is None:
        drawn = sale.admission is not None and sale.admission.mode == "draw"
        # After a draw it is the units of those who stay away that call the next.
        wait_ms = (place.ahead or 0) * 1_000 // (1 if drawn else STANDING_PER_S)
    else:
        wait_ms = place.eta_ms // ASKS
    life_ms = POLL_MAX_MS if sale.admission is None else sale.admission.token_life_ms // ASKS
    return _bounded(wait_ms, min(life_ms, POLL_MAX_MS))


def _bounded(ms: int, most_ms: int) -> int:
    return max(POLL_MIN_MS, min(ms, most_ms))
