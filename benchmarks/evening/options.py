"""What can be chosen: each is an option of locust and an environment variable, and is in the web
interface, but for the two secrets. docs/load-testing.md has the table."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any, Final

import msgspec

__all__ = ["Options", "add_options", "described"]

_TEXTS: Final = (
    ("--sale", "EVENING_SALE", "", "The sale's id."),
    ("--mall", "EVENING_MALL", "", "Where the mall's backend reaches the intake; as --host."),
    ("--user-claims", "EVENING_USER_CLAIMS", "{}", 'More claims: {"aud": "seckill"}.'),
    ("--summary", "EVENING_SUMMARY", "", "Write the end of the run to this file, as JSON."),
)
_SECRETS: Final = (
    ("--user-secret", "EVENING_USER_SECRET", "What user tokens are signed with (HS256)."),
    ("--api-key", "EVENING_API_KEY", "The mall's API key, with the scopes backend and admin."),
)
_NUMBERS: Final = (
    ("--double", 0.3, "Share of the buyers who click twice."),
    ("--early", 0.1, "Share who also press within the second before the opening."),
    ("--again", 0.2, "Share who send an accepted order once more, blindly."),
    ("--greedy", 0.1, "Share who try another order, for more than the limit."),
    ("--abandon", 0.15, "Share of the orders that nobody pays."),
    ("--give-up", 0.1, "Share of the orders that are released."),
    ("--no-show", 0.05, "Share of the called who don't come."),
    ("--reaction-ms", 300.0, "From the opening to the press, on average."),
    ("--think-s", 1.0, "From the order, or the call, to the next step, on average."),
    ("--pay-s", 1.0, "From the cashier to the money, on average."),
    ("--page-s", 4.0, "Between two looks at the page before the opening."),
    ("--returns", 3.0, "How often a buyer tries again who found everything sold or held."),
    ("--patience-s", 600.0, "How long a buyer waits in line, from the opening."),
    ("--rush", 0.8, "Share of the buyers who come before the opening."),
    ("--come-per-s", 200.0, "How many come a second where the sale is open already."),
    ("--tail-s", 10.0, "How long after the opening the others come, on average."),
    ("--sockets", 0.0, "Share of the buyers who use the socket."),
)


class Options(msgspec.Struct, frozen=True):
    """The options of one run, under their names. Shares are from 0 to 1, times are means of
    exponential distributions but for ``page_s`` and ``patience_s``."""

    host: str
    mall: str
    sale: str
    user_secret: str
    api_key: str
    user_claims: dict[str, Any]
    summary: str
    double: float
    early: float
    again: float
    greedy: float
    abandon: float
    give_up: float
    no_show: float
    reaction_ms: float
    think_s: float
    pay_s: float
    page_s: float
    returns: float
    patience_s: float
    rush: float
    come_per_s: float
    tail_s: float
    sockets: float

    @classmethod
    def of(cls, parsed: Namespace, host: str) -> Options:
        """What was chosen. Raises ValueError, which names the option and what to write."""
        for name, env in (
            ("sale", "EVENING_SALE"),
            ("user_secret", "EVENING_USER_SECRET"),
            ("api_key", "EVENING_API_KEY"),
        ):
            if not getattr(parsed, name):
                raise ValueError(f"--{name.replace('_', '-')} is missing; give it, or set {env}")
        if not host:
            raise ValueError("--host is missing; give the intake's address, http://127.0.0.1:8000")
        claims = json.loads(parsed.user_claims)
        if not isinstance(claims, dict):
            raise ValueError(f"--user-claims is {parsed.user_claims}; write a JSON object")
        fields = {name: getattr(parsed, name) for name in cls.__struct_fields__ if name != "host"}
        host = host.rstrip("/")
        mall = parsed.mall.rstrip("/") or host
        return cls(**{**fields, "host": host, "mall": mall, "user_claims": claims})


def add_options(parser: Any) -> None:
    """Adds them to locust's own."""
    for name, env, default, text in _TEXTS:
        parser.add_argument(name, env_var=env, default=default, help=text)
    for name, env, text in _SECRETS:
        parser.add_argument(name, env_var=env, default="", help=text, include_in_web_ui=False)
    for name, number, text in _NUMBERS:
        parser.add_argument(name, env_var=_env_of(name), type=float, default=number, help=text)


def described() -> list[tuple[str, str, str, str]]:
    """Option, variable, default and text of each."""
    return [
        *_TEXTS,
        *((name, env, "", text) for name, env, text in _SECRETS),
        *((name, _env_of(name), f"{number:g}", text) for name, number, text in _NUMBERS),
    ]


def _env_of(name: str) -> str:
    return "EVENING_" + name.strip("-").upper().replace("-", "_")
