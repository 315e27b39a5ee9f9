"""A sale told by hand, event by event, so that what follows from it can be counted by hand.

order  buyer  cart      held at   what became of it
A      u1     a         0.1 s     paid at 1.2 s, paid twice, refunded with its unit at 62 s
B      u2     2 a       0.2 s     given up at 5 s
C      u1     b         0.3 s     expired at 60 s, paid late at 61 s
D      =u3    a, b      5.5 s     paid at 9 s, refunded without its units at 63 s
E      u4     2 a       64 s      being paid
F      u1     b         70 s      held; before it 5 units of b were added
"""

from __future__ import annotations

from datetime import UTC, datetime

from seckill.ledger import Ledger
from seckill.ledger.rows import Known, Raw
from seckill.sale import Sale
from tests.support import make_item

__all__ = ["OPENS_MS", "SALE", "A", "B", "C", "D", "E", "F", "fill", "known", "raws", "settled"]

OPENS_MS = 1_765_540_800_000
SALE = "s-1212"
A, B, C, D, E, F = (f"{number:024x}" for number in (0xA1, 0xB1, 0xC1, 0xD1, 0xE1, 0xF1))
PAYMENT = "4200001234202512121234567890"
"""As WeChat Pay has them."""


def known() -> Known:
    opens = datetime.fromtimestamp(OPENS_MS / 1000, UTC)
    sale = Sale(
        id=SALE,
        title="<b>双十二</b> & 返场",
        opens_at=opens,
        ends_at=opens.replace(hour=opens.hour + 1),
        items=(
            make_item("a", title="=商品 a", price_fen=1_000, total=3),
            make_item("b", title="商品 b", price_fen=500, total=2),
        ),
    )
    return Known(sale, OPENS_MS, "run:1")


def raws() -> list[Raw]:
    told = (
        (-60_000, "sale", "created|" + known().sale.definition().decode()),
        (-30_000, "sale", "opened|"),
        (100, A, "held||h1------900100|0|u1|room=1|备注"),
        (200, B, "held||h1------900200|0:2|u2|"),
        (300, C, "held||h1------60000|1|u1|phone=139"),
        (1_200, A, f"confirmed|{PAYMENT}|c2------900100|0|u1|{PAYMENT}"),
        (5_000, B, "released||r2------900200|0:2|u2"),
        (5_500, D, "held||h1------905500|0,1|=u3|"),
        (9_000, D, "confirmed|pD|c2------905500|0,1|=u3|pD"),
        (10_000, A, f"refund_due|pA2|c3------900100|0|u1|{PAYMENT},pA2"),
        (60_000, C, "expired||x2------60000|1|u1"),
        (61_000, C, "confirmed|pC|c3------60000|1|u1|pC"),
        (62_000, A, f"refunded|rA,1,1|f4------900100|0|u1|{PAYMENT},pA2|rA,1,1"),
        (63_000, D, "refunded|-rD,0,0|f3------905500|0,1|=u3|pD|-rD,0,0"),
        (64_000, E, "held||h1------964000|0:2|u4|"),
        (65_000, E, "paying||p2------965000|0:2|u4"),
        (66_000, "sale", "stock|more|1|5|6"),
        (70_000, F, "held||h1------970000|1|u1|"),
        (80_000, "sale", "paused|库存核对"),
    )
    return [Raw(seq, OPENS_MS + ms, who, what) for seq, (ms, who, what) in enumerate(told, 1)]


def settled() -> list[Raw]:
    """The same with an end: E and F are given up, and the sale is closed."""
    told = (
        (90_000, E, "released||r3------965000|0:2|u4"),
        (91_000, F, "released||r2------970000|1|u1"),
        (92_000, "sale", "closed|"),
        (92_000, "sale", "settled|0:2,1:5"),
    )
    story = raws()
    more = [Raw(seq, OPENS_MS + ms, who, what) for seq, (ms, who, what) in enumerate(told, 20)]
    return [*story, *more]


async def fill(ledger: Ledger, story: list[Raw]) -> None:
    await ledger.know(known())
    await ledger.write([(known(), story)])
