"""Every setting of the intake, with its default. They come from one TOML file and the environment;
see load.py. Each section is one table of the file: ``users.buyer_claim`` is ``buyer_claim`` under
``[users]``, and SECKILL_USERS__BUYER_CLAIM in the environment, which wins.

Secrets are lists: the first is used to sign, all of them are accepted, so a secret is replaced by
adding the new one, reloading, and taking the old one away later. Each may be written as
``file:/run/secrets/name``; then the file's text is the secret.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr
from yarl import URL

from seckill.durability import checked_durability
from seckill.errors import InvalidInput

from .address import checked_proxy
from .cors import checked_origin
from .listen import checked_host
from .user_keys import checked_file, checked_secret, checked_url

__all__ = [
    "ApiKey",
    "Gate",
    "Ledger",
    "Limits",
    "Log",
    "Redis",
    "Scope",
    "Server",
    "Settings",
    "Users",
    "Webhook",
    "check_signed",
]

Scope = Literal["backend", "admin", "metrics"]


class _Section(BaseModel):
    # An error must not print what was refused: it may be a secret.
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )


class Server(_Section):
    """Where and how requests are taken."""

    host: Annotated[str, AfterValidator(checked_host)] = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is every IPv4 address of this machine."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """The port; 0 lets the system choose one."""
    unix: str = ""
    """The path of a unix socket, instead of host and port."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that take requests."""
    max_in_flight: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    """Requests under way at once in one worker; one more is answered 503 at once."""
    read_timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    """How long a client may take for the head of a request, and again for its body."""
    keepalive_s: Annotated[float, Field(gt=0, le=3_600)] = 75.0
    """How long an idle connection is kept."""
    drain_s: Annotated[float, Field(gt=0, le=300)] = 8.0
    """How long answers may take after the end was asked for."""
    trusted_proxies: tuple[Annotated[str, AfterValidator(checked_proxy)], ...] = ()
    """Addresses or networks whose X-Forwarded-For is believed; "unix" is our socket's users."""
    cors_origins: tuple[Annotated[str, AfterValidator(checked_origin)], ...] = ()
    """Web origins whose pages may call the buyers' endpoints; none by default."""
    max_sockets: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Buyers' WebSockets that are open at once in one worker; one more is answered 503."""
    hot_route: bool = True
    """Answer plain orders past aiohttp's request machinery, which says the same and costs more."""


class Redis(_Section):
    """Where the sales live."""

    url: str = ""
    """redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://…; or file:PATH"""
    data: str = ""
    """The data directory of a server of our own, instead of a URL."""
    durability: Annotated[str, AfterValidator(checked_durability)] = "aof"
    """aof: an order is on disk first; replicas:N: N replicas have it; memory: a crash loses it."""
    allow_unverified: bool = False
    """Accept a managed server that hides its configuration."""
    timeout_ms: Annotated[int, Field(ge=1, le=600_000)] = 3_000
    """How long a call may take before its outcome is called unknown."""


class Users(_Section):
    """The mall's own user tokens (JWT), which say who a buyer is."""

    secrets: tuple[Annotated[SecretStr, AfterValidator(checked_secret)], ...] = ()
    """HS256 secrets shared with the mall, at least 32 bytes each."""
    key_files: tuple[Annotated[str, AfterValidator(checked_file)], ...] = ()
    """PEM files with public keys: RSA (RS256), Ed25519 (EdDSA) or P-256 (ES256)."""
    jwks_url: Annotated[str, AfterValidator(checked_url)] = ""
    """Where the mall publishes its public keys; https, except on this machine."""
    issuer: str = ""
    """The iss a token must have; any if empty."""
    audience: str = ""
    """The aud a token must have; a token with one is refused if this is empty."""
    buyer_claim: str = "sub"
    """The claim that holds the buyer's id."""
    tier_claim: str = ""
    """The claim that holds the member's tier."""
    leeway_s: Annotated[int, Field(ge=0, le=300)] = 10
    """How far the mall's clock may be from ours."""


class ApiKey(_Section):
    """A key of a program, as ``seckill key new`` prints it."""

    name: Annotated[str, Field(pattern=r"^[0-9A-Za-z_.-]{1,40}$")]
    """What logs call it."""
    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """The SHA-256 of the key; the key itself is stored nowhere."""
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    """What it may do: backend (orders of any buyer, payments), admin (sales), metrics."""


class Limits(_Section):
    """How often one may ask, in one worker."""

    buyer_per_s: Annotated[float, Field(ge=0, le=10_000)] = 5.0
    """Orders, joins, questions for a place of one buyer a second, on average; 0 is no limit."""
    buyer_burst: Annotated[int, Field(ge=1, le=10_000)] = 20
    """How many of them may come at once."""
    address_per_s: Annotated[float, Field(ge=0, le=100_000)] = 0.0
    """The same for one client address. Off: a mobile carrier puts thousands behind one."""
    address_burst: Annotated[int, Field(ge=1, le=100_000)] = 200
    """How many of them may come at once."""
    buyer_sockets: Annotated[int, Field(ge=1, le=1_000)] = 4
    """WebSockets of one buyer that are open at once; one more closes the oldest."""


class Gate(_Section):
    """The proof of work asked of a buyer before an order or a ticket."""

    work_bits: Annotated[int, Field(ge=0, le=32)] = 0
    """Leading zero bits to find, on average 2**bits hashes; 0 asks for none."""
    life_s: Annotated[int, Field(ge=10, le=3_600)] = 300
    """How long a challenge and its solution count."""
    secrets: tuple[SecretStr, ...] = ()
    """What challenges are signed with, at least 32 bytes each."""


def _checked_endpoint(url: str) -> str:
    """Raises InvalidInput, without the URL in it: a key may be part of it."""
    try:
        parts = URL(url)
        fine = parts.scheme in ("http", "https") and bool(parts.host)
    except ValueError:
        fine = False
    if url and not fine:
        raise InvalidInput("webhook.url", "is not an http or https URL", "write https://host/path")
    return url


class Webhook(_Section):
    """Where ``seckill relay`` sends the events."""

    url: Annotated[str, AfterValidator(_checked_endpoint)] = ""
    """The mall's endpoint; http or https, and it needs secrets."""
    secrets: tuple[SecretStr, ...] = ()
    """What deliveries are signed with, at least 32 bytes each; all of them sign while rotating."""
    timeout_s: Annotated[float, Field(gt=0, le=120)] = 10.0
    """How long one delivery may take."""
    give_up_s: Annotated[int, Field(ge=1, le=7 * 86_400)] = 86_400
    """How long an event is tried before it becomes a dead letter."""
    in_flight: Annotated[int, Field(ge=1, le=1_000)] = 32
    """How many deliveries may be under way at once."""


def check_signed(webhook: Webhook) -> None:
    """Raises InvalidInput for an endpoint and no secret to sign deliveries with."""
    if webhook.url and not webhook.secrets:
        raise InvalidInput(
            "webhook.secrets",
            "is empty, and webhook.url wants signed deliveries",
            "give one of at least 32 random bytes: openssl rand -base64 48",
        )


class Ledger(_Section):
    """The mall's SQL database, to which every event and order goes."""

    url: str = ""
    """sqlite:///FILE, postgresql://… or mysql://…; file:PATH if it has a password"""
    inside: bool = True
    """Let the workers of `seckill serve` write it; if not, run `seckill ledger run`."""
    keep_events_s: Annotated[int, Field(ge=60, le=365 * 86_400)] = 86_400
    """How long events stay in Redis that everybody has had, and the ledger too."""
    keep_sales_days: Annotated[int, Field(ge=0, le=3_650)] = 0
    """After how many days a settled sale is removed from Redis; 0 leaves that to you."""
    retention_days: Annotated[int, Field(ge=0, le=36_500)] = 0
    """After how many days the buyers of a sale are forgotten; 0 keeps them."""


class Log(_Section):
    """What is written to standard error."""

    format: Literal["text", "json"] = "text"
    """json is one object a line."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is written."""
    requests: Literal["none", "errors", "all"] = "errors"
    """Which requests get a line: those answered 5xx, or all. A bug always has one."""


class Settings(_Section):
    """The whole."""

    server: Server = Server()
    redis: Redis = Redis()
    users: Users = Users()
    keys: tuple[ApiKey, ...] = ()
    limits: Limits = Limits()
    gate: Gate = Gate()
    webhook: Webhook = Webhook()
    ledger: Ledger = Ledger()
    log: Log = Log()
