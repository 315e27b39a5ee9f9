"""Where a buyer gets the challenge that a proof of work solves, best before the sale opens."""

from __future__ import annotations

from time import time
from typing import Final

import msgspec
from aiohttp import web

from seckill.sale import check_sale_id

from .exchange import INTAKE, buyer_of, reply
from .gate import ProofOfWork
from .operation import Operation
from .problems import BUYER_REQUIRED

__all__ = ["ROUTES", "ChallengeDocument"]


class ChallengeDocument(msgspec.Struct, frozen=True):
    """Find a suffix such that the SHA-256 of ``challenge``, a colon and the suffix begins with
    ``bits`` zero bits; that text is the header Seckill-Proof until ``expires_ms``. With 0 bits no
    proof is asked for, and the others are empty."""

    challenge: str
    bits: int
    expires_ms: int


@Operation(
    id="challenge",
    zh="领取工作量证明题：解出后放入 Seckill-Proof 再下单，有效期内可重复使用",
    who="user",
    answer=ChallengeDocument,
    asks_engine=False,
    kinds=(BUYER_REQUIRED,),
)
async def challenge(request: web.Request) -> web.Response:
    """A challenge for this buyer in this sale. It asks nobody, so the sale need not exist yet."""
    buyer = await buyer_of(request)
    sale = check_sale_id(request.match_info["sale"], "sale")
    gate = request.app[INTAKE].gate
    if not isinstance(gate, ProofOfWork):
        return reply(ChallengeDocument("", 0, 0))
    made = gate.challenge(sale, buyer, time())
    return reply(ChallengeDocument(made.text, made.bits, made.expires_ms))


ROUTES: Final = (web.get("/v1/sales/{sale}/challenge", challenge),)
