"""Finding a sale in the ledger, for the commands that ask nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seckill.errors import InvalidInput, UnknownSale
from seckill.sale import check_sale_id, did_you_mean

if TYPE_CHECKING:
    from seckill.ledger import Ledger

__all__ = ["known_sale"]


async def known_sale(ledger: Ledger, sale: str) -> dict[str, Any]:
    """The row of a sale. Raises InvalidInput when the ledger has none."""
    check_sale_id(sale, "SALE")
    try:
        return await ledger.sale(sale)
    except UnknownSale:
        names = [row["sale"] for row in await ledger.sales()]
        remedy = (
            "seckill ledger run writes them there, and of a sale that is fenced"
            " seckill reconcile SALE --fix what it sells"
        )
        if names:
            remedy = did_you_mean(sale, names[-20:])
        raise InvalidInput("SALE", f"the ledger has no sale {sale!r}", remedy) from None
