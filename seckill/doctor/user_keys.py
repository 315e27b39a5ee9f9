"""Whether the keys that the mall publishes for its user tokens can be had from this host."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from seckill.doctor.finding import Finding, green, red, yellow

if TYPE_CHECKING:
    from seckill.server.settings import Settings

__all__ = ["check_user_keys"]

FETCH_S: Final = 3.0


class _Heard(logging.Handler):
    """Keeps what is logged, which is where a fetch tells why it failed."""

    def __init__(self) -> None:
        super().__init__()
        self.said = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.said = record.getMessage()


async def check_user_keys(settings: Settings) -> Finding:
    """Fetches them once, as the intake does when it starts, within three seconds. Other keys would
    still prove their own tokens, so it is red only if there are none."""
    users = settings.users
    if not users.jwks_url:
        return green("user-keys", "none are fetched")
    from seckill.server.jwks import Jwks

    jwks = Jwks(users.jwks_url, lambda: None)
    heard, log = _Heard(), logging.getLogger("seckill.server")
    log.addHandler(heard)
    try:
        async with asyncio.timeout(FETCH_S):
            await jwks.start()
    except TimeoutError:
        heard.said = f"no answer within {FETCH_S:.0f} s"
    finally:
        log.removeHandler(heard)
        await jwks.aclose()
    if jwks.reached:
        return green("user-keys", f"{users.jwks_url} publishes keys of use")
    judge = yellow if users.secrets or users.key_files else red
    remedy = "run doctor where the intake runs; make the mall publish its keys there"
    return judge("user-keys", f"{users.jwks_url}: {heard.said}", remedy)
