"""``seckill dead``: the events that a consumer could not hand over, for the person on duty."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from seckill.cli.command import SaleId, on_engine
from seckill.cli.output import Output, complain, new_table, warn
from seckill.dead import DeadLetters, Letter, with_letters
from seckill.engine import Engine
from seckill.errors import InvalidInput
from seckill.keys import group_keys
from seckill.sale import check_key

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

SHOWN_MAX = 100
WEBHOOK = "webhook"

Subjects = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ORDER]...", help="Whose events; `sale` for those of the sale itself."),
]
Seqs = Annotated[
    list[int] | None,
    typer.Argument(metavar="[SEQ]...", help="Which events, by the number that list shows."),
]
All = Annotated[bool, typer.Option("--all", help="All of them.")]
Group = Annotated[
    str, typer.Option("--group", metavar="NAME", help="Of which consumer group's events.")
]


@app.command("list")
@on_engine
async def list_(engine: Engine, out: Output, sale: SaleId, group: Group = WEBHOOK) -> int:
    """Show the dead letters; the exit code is 1 when there are any, so that cron can tell."""
    check_key(group, "--group")
    definition = await engine.sale(sale)

    async def read(dead: DeadLetters) -> tuple[list[Letter], list[str], list[str], set[str]]:
        letters, damaged = await dead.sorted_out()
        kinds = [event.kind if event else "?" for event in await dead.events(definition, letters)]
        return letters, damaged, kinds, await dead.retrying()

    letters, damaged, kinds, retrying = await with_letters(engine.url, sale, group, read)
    rows = [
        {
            "seq": letter.seq,
            "subject": letter.subject,
            "kind": str(kind),
            "state": _state(letter, retrying),
            "attempts": letter.attempts,
            "cause": letter.cause,
            "since_ms": letter.since_ms,
        }
        for letter, kind in zip(letters, kinds, strict=True)
    ]
    table = new_table(">seq", "order", "kind", "state", ">attempts", "since (UTC)", "~cause")
    for row in rows[:SHOWN_MAX]:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    more = f"and {len(rows) - SHOWN_MAX:,} more; --json shows all" if len(rows) > SHOWN_MAX else ""
    nothing = [] if damaged else ["no dead letters"]
    out.answer(rows, *([table, more] if rows else nothing))
    key = group_keys(sale, group).dead
    for field in damaged[:SHOWN_MAX]:
        remedy = f"take it out: redis-cli HDEL {shlex.quote(key)} {shlex.quote(field)}"
        warn(f"the letter {field!r} can't be read, somebody has edited it; {remedy}")
    return 1 if rows or damaged else 0


@app.command("retry")
@on_engine
async def retry(
    engine: Engine,
    out: Output,
    sale: SaleId,
    orders: Subjects = None,
    every: All = False,
    group: Group = WEBHOOK,
) -> int:
    """Hand over the dead letters of these orders again, with what is parked behind, in order."""
    _check(orders, every=every, what="ORDER")
    check_key(group, "--group")
    await engine.sale(sale)
    named = set(orders or ())

    async def work(dead: DeadLetters) -> tuple[int, set[str]]:
        chosen = [letter for letter in await dead.letters() if every or letter.subject in named]
        subjects = {letter.subject for letter in chosen}
        await dead.retry(subjects)
        return len(chosen), subjects

    count, subjects = await with_letters(engine.url, sale, group, work)
    if missing := named - subjects:
        return complain(f"{sale}: no dead letters of {', '.join(sorted(missing))}", code=1)
    done = {"events": count, "subjects": sorted(subjects)}
    out.answer(done, f"✓ {_counted(count)} for {_worker(group)} to take again; is it running?")
    return 0


@app.command("drop")
@on_engine
async def drop(
    engine: Engine,
    out: Output,
    sale: SaleId,
    events: Seqs = None,
    every: All = False,
    group: Group = WEBHOOK,
) -> int:
    """Forget these events for good; what is parked behind them goes on."""
    _check(events, every=every, what="SEQ")
    check_key(group, "--group")
    await engine.sale(sale)
    named = set(events or ())

    async def work(dead: DeadLetters) -> tuple[int, set[int]]:
        chosen = [letter for letter in await dead.letters() if every or letter.seq in named]
        found = {letter.seq for letter in chosen}
        # All or nothing: one wrong number may mean that the others are wrong as well.
        return (0 if named - found else await dead.drop(chosen)), found

    count, found = await with_letters(engine.url, sale, group, work)
    if missing := named - found:
        numbers = ", ".join(map(str, sorted(missing)))
        return complain(f"{sale}: no dead letter {numbers}; nothing was dropped", code=1)
    out.answer({"events": count}, f"✓ {_counted(count)} dropped")
    return 0


def _check(named: Sequence[object] | None, *, every: bool, what: str) -> None:
    if bool(named) == every:
        problem = "is given with --all" if every else "is not given"
        raise InvalidInput(what, problem, f"name at least one {what}, or all with --all")


def _state(letter: Letter, retrying: set[str]) -> str:
    if letter.subject in retrying:
        return "retrying"
    return "parked" if letter.parked else "dead"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    since = datetime.fromtimestamp(row["since_ms"] / 1000, UTC)
    attempts = "" if row["state"] == "parked" else f"{row['attempts']:,}"
    numbers = (f"{row['seq']}", row["subject"], row["kind"], row["state"], attempts)
    return (*numbers, f"{since:%m-%d %H:%M}", row["cause"])


def _worker(group: str) -> str:
    return "the relay" if group == WEBHOOK else f"the consumer of {group}"


def _counted(count: int) -> str:
    return "1 event" if count == 1 else f"{count:,} events"
