"""The demo's sale: the one in ``examples/``, moved to now, with deadlines one can wait for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

from seckill.errors import SeckillError
from seckill.sale import Sale
from seckill.salefile import load_sale

__all__ = ["demo_sale", "example_file"]

# Long enough to pay in, short enough that what was abandoned is sold again before the demo ends.
HOLD_MS: Final = 2_500
PAY_MS: Final = 2_500
LASTS_S: Final = 600


def example_file(name: str) -> Path:
    """A file of the installed package ``seckill.examples``, else of the checkout's examples/."""
    try:
        # A wheel unpacks to plain files, so the resource is a path.
        file = Path(str(resources.files("seckill.examples").joinpath(name)))
    except ModuleNotFoundError:
        file = Path(__file__).parents[2] / "examples" / name
    if not file.is_file():
        raise SeckillError(f"{file} is missing: this installation of seckill has no examples")
    return file


def demo_sale(opens_in_ms: int) -> Sale:
    """The sale to sell, which opens in so many milliseconds."""
    opens_at = datetime.now(UTC) + timedelta(milliseconds=opens_in_ms)
    return msgspec.structs.replace(
        load_sale(example_file("evening-sale.toml")),
        opens_at=opens_at,
        ends_at=opens_at + timedelta(seconds=LASTS_S),
        hold_ms=HOLD_MS,
        pay_ms=PAY_MS,
    )
