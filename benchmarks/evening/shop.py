"""What all buyers of one load process share: the sale, the clock, the notes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, Final
from uuid import uuid4

import msgspec
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError

from .clock import Clock
from .documented import documented
from .options import Options
from .promises import Notes, Rules
from .tokens import user_token

__all__ = ["Desk", "Shop"]

ASKING: Final = 16
# An order that nobody has: who may ask is told 404, who may not 401.
_NO_ORDER: Final = "0" * 24


class Desk:
    """Plain questions outside the statistics: the description, the merchant's report, a last look
    at orders. Raises OSError when nobody answers."""

    def __init__(self, host: str, key: str = "") -> None:
        self._client = HTTPClient.from_url(
            host, concurrency=ASKING, network_timeout=30, connection_timeout=30
        )
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """The HTTP status and the JSON of an answer."""
        try:
            got = self._client.get(path, headers=self._headers)
            try:
                return got.status_code, msgspec.json.decode(bytes(got.read()), type=dict)
            finally:
                got.release()
        except HTTPParseError as error:
            raise OSError(f"GET {path} was cut off") from error

    def need(self, path: str) -> dict[str, Any]:
        """The JSON of an answer that must be 200. Raises ValueError."""
        status, body = self.get(path)
        if status != 200:
            raise ValueError(f"GET {path} was answered {status} {body.get('code', '')}")
        return body


class Shop:
    """One run of one load process."""

    def __init__(self, options: Options, on_broken: Callable[[str, str], None]) -> None:
        desk = Desk(options.host)
        self.options = options
        self.clock = Clock()
        self.page = desk.need(f"/v1/sales/{options.sale}")
        self.rules = Rules.of(self.page)
        self.notes = Notes(self.clock, documented(desk.need("/openapi.json")), on_broken)
        self._names = count()
        self._run = uuid4().hex[:12]

    def buyer(self) -> str:
        """The id of a buyer who was never here before."""
        return f"e-{self._run}-{next(self._names)}"

    def try_token(self) -> None:
        """Asks once with a buyer's token, before there are buyers: a wrong secret is the mistake of
        whoever starts the load, and no broken promise of the intake. Raises ValueError."""
        desk = Desk(self.options.host, self.token_of(self.buyer()))
        status, body = desk.get(f"/v1/sales/{self.options.sale}/orders/{_NO_ORDER}")
        if status == 401:
            raise ValueError(
                "the intake refuses tokens of --user-secret / EVENING_USER_SECRET: give the secret"
                " of users.secrets, and with --user-claims what else the intake looks at"
                f" ({body.get('detail') or body.get('title', '401')})"
            )

    def token_of(self, buyer: str) -> str:
        """A user token for the evening."""
        return user_token(buyer, self.options.user_secret, self.options.user_claims)
