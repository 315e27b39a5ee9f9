"""``seckill serve``: the order intake in the foreground, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from seckill.cli.command import (
    AllowUnverified,
    DataDir,
    Durability,
    DurabilityOption,
    RedisUrl,
    Target,
)
from seckill.cli.output import complain, new_console, version_text
from seckill.errors import SeckillError

__all__ = ["serve"]


def serve(
    redis: RedisUrl = None,
    embedded: DataDir = None,
    host: Annotated[str, typer.Option(help="The loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8000,
    unix: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A unix socket instead of host and port.")
    ] = None,
    durability: DurabilityOption = Durability.AOF,
    allow_unverified: AllowUnverified = False,
) -> None:
    """Take orders over HTTP until Ctrl-C; every order under way still gets its answer."""
    from seckill.server import run

    engine = Target(redis, embedded, durability, allow_unverified).engine(new_data=True)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    console = new_console()

    def announce(address: str) -> None:
        facts = engine.facts
        lines = Text.assemble((version_text(), "bold"), " takes orders on ", (address, "bold"))
        if facts is not None:
            lines.append(f"\nserver {engine.url} (version {facts.version})")
            if facts.unverified:
                lines.append(f"\nunverified: {', '.join(facts.unverified)}", style="yellow")
        if durability is Durability.MEMORY:
            lines.append("\na crash may lose acknowledged orders (memory)", style="bold yellow")
        lines.append("\nCtrl-C ends it", style="dim")
        console.print(lines, soft_wrap=True)

    try:
        run(engine, host, port, unix, on_ready=announce)
    except SeckillError:
        raise  # RedisUnavailable is an OSError as well
    except OSError as error:
        where = unix or f"{host}:{port}"
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.EADDRINUSE and unix is None:
            reason += "; choose another port with --port N (0 takes a free one)"
        raise typer.Exit(complain(f"cannot listen on {where}: {reason}", code=1)) from None
