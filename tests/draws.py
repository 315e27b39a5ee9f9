"""Draws made for tests, published as a merchant would."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from msgspec.structs import replace

from seckill.admission import Admission
from seckill.draw import DrawRecord, ListDigest, commitment_of, holders, ticket_lines
from seckill.sale import Sale
from tests.support import make_sale

SEED = bytes(range(32))
LIST_SECRET = bytes(range(32, 64))


class MadeDraw(NamedTuple):
    """A draw in which all is well: draw.json, and the bytes of tickets.txt."""

    record: DrawRecord
    tickets: bytes


def drawn_sale(**admission: object) -> Sale:
    """A sale with a draw an hour before it opens."""
    sale = make_sale({"a": 2}, limit_per_buyer=1)
    fields = {
        "mode": "draw",
        "draw_at": sale.opens_at - timedelta(hours=1),
        "weights": (("gold", 2), ("platinum", 7)),
    }
    return replace(sale, admission=Admission(**(fields | admission)))  # type: ignore[arg-type]


def made_draw(
    count: int = 5,
    *,
    weights: Sequence[int] = (),
    seed: bytes = SEED,
    public_value: str | None = None,
    sale: Sale | None = None,
) -> MadeDraw:
    """A draw of ``count`` tickets of ``buyer-0`` …, or of these weights; 0 is one that was given
    up."""
    named = "balls" if public_value is not None else None
    sale = sale or drawn_sale(public_value=named)
    holder = holders(LIST_SECRET)
    rows = (
        (number, weight, holder(f"buyer-{number}"))
        for number, weight in enumerate(weights or [1] * count)
    )
    digest = ListDigest()
    lines = [digest.add(line) for line in ticket_lines(sale.id, sale.definition_id, rows)]
    record = DrawRecord(
        sale=sale.id,
        definition_id=sale.definition_id,
        definition=sale.definition().decode(),
        commitment=commitment_of(seed),
        tickets=digest.tickets,
        digest=digest.hex(),
        closed_ms=sale.draw_ms,
        public_value=public_value,
        seed=seed.hex(),
    )
    return MadeDraw(record, b"".join(lines))
