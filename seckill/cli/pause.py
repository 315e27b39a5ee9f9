"""``seckill pause --all`` and ``seckill resume --all``: the big red button, and the way back.

They ask nothing and check nothing: a sale must also be stopped on a server whose settings an engine
refuses, that is full, or that is overrun. So they call the scripts on connections of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer
from rich.text import Text

from seckill import redis as servers
from seckill.cli.command import DataDir, Json, RedisUrl, Target
from seckill.cli.output import Output, complain
from seckill.cli.reach import reach
from seckill.engine import REASON_MAX
from seckill.errors import InvalidInput, RedisUnavailable
from seckill.keys import SALES, shard_keys
from seckill.sale import check_sale_id
from seckill.scripts import FORMAT, script
from seckill.servers import Servers
from seckill.status import Status

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["pause", "resume"]

ALL_REASON: Final = "pause --all"
"""The reason that ``pause --all`` gives, and by which ``resume --all`` knows its own sales."""

AT_ONCE: Final = 16
PATIENCE_S: Final = 5.0
RETRY_S: Final = 0.1

Sales = Annotated[
    list[str] | None,
    typer.Argument(metavar="SALE…", help="The sales, or --all.", show_default=False),
]


class Done(msgspec.Struct, frozen=True):
    """What became of one sale. ``ok``: it sells nothing now (after pause), or sells (resume)."""

    sale: str
    ok: bool
    status: str
    meaning: str


def pause(
    sales: Sales = None,
    all_: Annotated[bool, typer.Option("--all", help="Every open sale of the server.")] = False,
    reason: Annotated[
        str, typer.Option(help="Why; it is kept in each sale's events.")
    ] = ALL_REASON,
    redis: RedisUrl = None,
    embedded: DataDir = None,
    json: Json = False,
) -> None:
    """Stop new orders at once, in all sales; held ones can still be paid."""
    _check_reason(reason)
    names = _named(sales, all_=all_)

    async def one(client: Redis, sale: str) -> Done | None:
        status = await _run(client, "pause", sale, reason)
        if status is Status.NOT_OPEN:
            return Done(sale, True, "not_open", "it was never opened, so it sells nothing")
        if names is None and status in (Status.CLOSED, Status.UNKNOWN_SALE):
            return None  # Over, or a create that got no further than the list.
        already = "it is paused already" if status is Status.ALREADY else ""
        return _done(sale, status, already)

    _on_each("pause", names, one, Target(redis, embedded), json=json)


def resume(
    sales: Sales = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every sale that is paused for this very reason.")
    ] = False,
    reason: Annotated[
        str, typer.Option(help="With --all: the reason they were paused with.")
    ] = ALL_REASON,
    redis: RedisUrl = None,
    embedded: DataDir = None,
    json: Json = False,
) -> None:
    """Let paused sales sell again; with --all those that `pause --all` has paused."""
    _check_reason(reason)
    names = _named(sales, all_=all_)

    async def one(client: Redis, sale: str) -> Done | None:
        if names is None:
            header: Any = await client.hmget(shard_keys(sale)[0], "state", "reason")
            state, why = (part.decode("utf-8", "replace") if part else "" for part in header)
            if state != "paused":
                return None
            if why != reason:
                return Done(sale, True, "left", f"stays paused, for another reason: {why or '-'}")
        status = await _run(client, "resume", sale)
        return _done(sale, status, "it is open already" if status is Status.ALREADY else "")

    _on_each("resume", names, one, Target(redis, embedded), json=json)


def _check_reason(reason: str) -> None:
    if not reason.isprintable() or len(reason) > REASON_MAX:
        raise InvalidInput(
            "--reason", "is too long or has control characters", f"write up to {REASON_MAX}"
        )


def _named(sales: list[str] | None, *, all_: bool) -> list[str] | None:
    """The sales that were named, or None for all of the server."""
    if all_ == bool(sales):
        problem = "is given beside --all" if all_ else "is not named"
        raise InvalidInput("SALE", problem, "name the sales, or give --all")
    for sale in sales or ():
        check_sale_id(sale, "SALE")
    return list(dict.fromkeys(sales)) if sales else None


def _done(sale: str, status: Status, already: str) -> Done:
    meaning = already or status.meaning
    if status is Status.UNKNOWN_SALE:
        meaning = "no such sale on this server (seckill sale list)"
    return Done(sale, status.ok, status.name.lower(), meaning)


def _on_each(
    verb: str,
    names: list[str] | None,
    one: Callable[[Redis, str], Awaitable[Done | None]],
    target: Target,
    *,
    json: bool,
) -> None:
    """Does it to every sale, prints a line each, and exits with 1 if any could not be done."""
    out = Output(json=json)

    def tell(done: Done) -> None:
        if json:
            return
        if done.ok:
            out.console.print(
                Text.assemble(("✓ ", "green"), f"sale {done.sale}: {verb}: {done.meaning}")
            )
        else:
            complain(f"sale {done.sale}: {verb}: {done.meaning} ({done.status})", code=1)

    async def main() -> list[Done]:
        async with reach(target) as url:
            return await _each(url, names, one, tell)

    results = asyncio.run(main())
    failed = [done.sale for done in results if not done.ok]
    if json:
        results.sort(key=lambda done: done.sale)
        out.answer({"ok": not failed, "verb": verb, "sales": results})
    elif not results:
        none = "is paused" if verb == "resume" else "is open"
        out.console.print(f"no sale of this server {none}")
    if failed:
        if not json:
            complain(f"{verb} failed for {len(failed)}: {', '.join(sorted(failed))}", code=1)
        raise typer.Exit(1)


async def _each(
    url: str,
    names: list[str] | None,
    one: Callable[[Redis, str], Awaitable[Done | None]],
    tell: Callable[[Done], None],
) -> list[Done]:
    give_up_s = monotonic() + PATIENCE_S
    turn = asyncio.Semaphore(AT_ONCE)
    where = Servers(url, connections=AT_ONCE, timeout_s=PATIENCE_S)
    results: list[Done] = []

    async def on(key: str, work: Callable[[Redis], Awaitable[Any]]) -> Any:
        try:
            await where.look()
            return await work(where.client(key))
        except Exception:
            where.lost(key)
            raise

    try:
        if names is None:
            listed = partial(on, SALES, lambda client: client.smembers(SALES))
            members: Any = await _insist(listed, give_up_s)
            names = sorted(member.decode("utf-8", "replace") for member in members)

        async def attempt(sale: str) -> None:
            async with turn:
                try:
                    work = partial(on, shard_keys(sale)[0], lambda client: one(client, sale))
                    done = await _insist(work, give_up_s)
                except Exception as error:  # noqa: BLE001 - one sick sale must not save the others
                    done = Done(sale, False, "failed", str(error) or "no answer in time")
            if done is not None:
                results.append(done)
                tell(done)

        await asyncio.gather(*map(attempt, names))
    finally:
        await where.aclose()
    return results


async def _insist(call: Callable[[], Awaitable[Any]], give_up_s: float) -> Any:
    """Awaits ``call()``, again while the server is not itself, until the time is over.

    Raises RedisUnavailable, ServerFull or ScriptFailed.
    """
    from redis.exceptions import RedisError

    while True:
        try:
            async with asyncio.timeout(max(0.1, give_up_s - monotonic())):
                return await call()
        except (RedisError, OSError, EOFError) as error:
            if not servers.is_transient(error):
                raise servers.refusal_of(error) from None
            if monotonic() + RETRY_S >= give_up_s:
                said = str(error) or "no answer in time"
                raise RedisUnavailable(f"no Redis answers there: {said}") from None
            await asyncio.sleep(RETRY_S)


async def _run(client: Redis, verb: str, sale: str, *args: str) -> Status:
    from redis.exceptions import NoScriptError

    code, keys = script(verb), shard_keys(sale)
    try:
        reply: Any = await client.evalsha(code.sha, len(keys), *keys, FORMAT, *args)
    except NoScriptError:
        reply = await client.eval(code.source, len(keys), *keys, FORMAT, *args)
    return Status(reply[0])
