"""Turns an async function of an engine into a command: here are the options that every such command
shares, and here an engine is opened.

    @app.command("show")
    @on_engine
    async def show(engine: Engine, out: Output, sale: SaleId) -> int: ...

The command's own arguments follow ``engine`` and ``out``; the answer is the exit code.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import msgspec
import typer

from seckill.cli.files import plain_text
from seckill.cli.output import Output
from seckill.durability import Durability
from seckill.embedded import running_url
from seckill.engine import Engine
from seckill.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    from seckill.ledger import Ledger

__all__ = [
    "AllowUnverified",
    "DataDir",
    "DurabilityOption",
    "Json",
    "LedgerUrl",
    "RedisUrl",
    "SaleId",
    "Target",
    "has_ledger",
    "on_engine",
    "open_ledger",
]

REDIS_ENV = "SECKILL_REDIS"
DATA_ENV = "SECKILL_DATA"
# The intake's own setting, so whoever has set it need not say it again to each command.
DURABILITY_ENV = "SECKILL_REDIS__DURABILITY"
LEDGER_ENV = "SECKILL_LEDGER"
_PANEL = "Server"
# A server with an AOF makes one of them at its first start: since Redis 7, and before.
_SERVER_DATA = ("appendonlydir", "appendonly.aof")


SaleId = Annotated[str, typer.Argument(metavar="SALE", help="The sale's id.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis",
        metavar="URL",
        help="Redis or Valkey: redis://…, rediss://…, unix://…, redis+sentinel://… or "
        f"redis+cluster://… (or set {REDIS_ENV}).",
        rich_help_panel=_PANEL,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--embedded",
        metavar="DIR",
        help=f"A server of our own, with its data in DIR (or set {DATA_ENV}).",
        rich_help_panel=_PANEL,
    ),
]
LedgerUrl = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        metavar="URL",
        help="sqlite:///FILE, postgresql://… or mysql://…, or file:PATH of a file with that "
        f"(or set {LEDGER_ENV}).",
        rich_help_panel=_PANEL,
    ),
]
DurabilityOption = Annotated[
    str,
    typer.Option(
        metavar="aof|replicas:N|memory",
        envvar=DURABILITY_ENV,
        help="aof: an order is on disk before it is acknowledged. replicas:N: N replicas have it."
        " memory: a crash may lose some.",
        rich_help_panel=_PANEL,
    ),
]
AllowUnverified = Annotated[
    bool,
    typer.Option(
        "--allow-unverified",
        help="Accept a managed server that hides its configuration.",
        rich_help_panel=_PANEL,
    ),
]


class Target(msgspec.Struct, frozen=True):
    """The server a command talks to, as its options name it."""

    redis: str | None = None
    embedded: Path | None = None
    durability: Durability = "aof"
    allow_unverified: bool = False

    def engine(self, *, new_data: bool = False, **options: Any) -> Engine:
        """An engine that is not started yet. Raises InvalidInput unless one server is named.

        A data directory must have been used before, unless this may be the first use of it
        (``new_data``): a wrong path would look like a server that has lost its sales.
        """
        url, data_dir, named = self.redis, self.embedded, "--embedded"
        url = url and plain_text(url, "--redis")
        if url is None and data_dir is None:
            # An option beats the environment, so both variables may stay set for good.
            url = plain_text(os.environ.get(REDIS_ENV, ""), REDIS_ENV) or None
            if url is None and (directory := os.environ.get(DATA_ENV)):
                data_dir, named = Path(directory), DATA_ENV
        options |= {
            "durability": self.durability,
            "allow_unverified": self.allow_unverified,
        }
        if url is not None and data_dir is not None:
            raise InvalidInput("--redis, --embedded", "are both given", "give one of the two")
        if url is not None:
            return Engine(url, **options)
        if data_dir is not None:
            # Beside a running `seckill serve --embedded DIR`, its server is the one that is meant.
            if running := running_url(data_dir):
                return Engine(running, **options)
            if not new_data:
                _check_data(data_dir, named)
            return Engine.embedded(data_dir, **options)
        raise InvalidInput(
            "server",
            "is not named",
            f"give --redis URL or --embedded DIR, or set {REDIS_ENV} or {DATA_ENV}",
        )


def has_ledger(url: str | None) -> bool:
    """Whether an option or the environment names a ledger."""
    return bool(url or os.environ.get(LEDGER_ENV))


def open_ledger(url: str | None, *, new: bool = False, missing_ok: bool = False) -> Ledger:
    """The ledger that a command's option or the environment names, not yet started.

    It must have been a ledger before, unless this may be the first use of it (``new``): of a
    mistyped name an empty one would be made, and who only reads has no right to make tables.
    Raises InvalidInput, MissingExtra; starting it raises NoLedger where there are no tables. With
    ``missing_ok`` a file that is not there does that as well, in place of InvalidInput.
    """
    named = "--ledger" if url else LEDGER_ENV
    url = plain_text(url or os.environ.get(LEDGER_ENV, ""), named)
    if not url:
        raise InvalidInput("ledger", "is not named", f"give --ledger URL, or set {LEDGER_ENV}")
    try:
        from seckill.ledger import Ledger
        from seckill.ledger.existing import ExistingLedger
    except ModuleNotFoundError as error:
        raise MissingExtra("ledger", error.name or "sqlalchemy") from None
    if new:
        return Ledger(url)
    ledger = ExistingLedger(url)
    file = ledger.file
    if file is not None and not missing_ok and not file.exists():
        problem = f"{file.absolute()} does not exist"
        raise InvalidInput("ledger", problem, "name the file that `seckill ledger run` was given")
    return ledger


def _check_data(data_dir: Path, named: str) -> None:
    try:
        if any((data_dir / name).exists() for name in _SERVER_DATA):
            return
        problem = "holds no server's data" if data_dir.exists() else "does not exist"
    except OSError:
        return  # The server's own start says best why this directory is of no use.
    raise InvalidInput(
        named,
        f"{data_dir.absolute()} {problem}, and no server runs there",
        "name the directory that seckill serve or seckill sale create was given "
        "(a relative path starts from where you are)",
    )


def _shared(
    redis: RedisUrl = None,
    embedded: DataDir = None,
    durability: DurabilityOption = "aof",
    allow_unverified: AllowUnverified = False,
    json: Json = False,
) -> None:
    """Carries the options of every command on an engine; its signature is all there is to it."""


def on_engine(
    command: Callable[..., Coroutine[Any, Any, int]], *, new_data: bool = False
) -> Callable[..., None]:
    """A command that opens an engine, runs ``command(engine, out, …)`` and exits with its answer.

    ``new_data`` is for a command that may begin a data directory. The engine does not sweep: a
    command that lives for a moment has no part in the deadlines.
    """

    def run(*, redis: str | None, embedded: Path | None, json: bool, **given: Any) -> None:
        target = Target(redis, embedded, given.pop("durability"), given.pop("allow_unverified"))

        async def main() -> int:
            async with target.engine(new_data=new_data, sweep_ms=0) as engine:
                return await command(engine, Output(json=json), **given)

        if code := asyncio.run(main()):
            raise typer.Exit(code)

    # Typer reads a command's options from its signature, so this one is put together.
    parameters = [
        parameter.replace(annotation=hints[parameter.name])
        for function in (command, _shared)
        for hints in (get_type_hints(function, include_extras=True),)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in ("engine", "out")
    ]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    return run
