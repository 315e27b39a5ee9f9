"""The tree of commands, and the one place where an exception becomes a line and an exit code."""

from __future__ import annotations

import io
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Final

import typer

from seckill.cli import (
    dead,
    demo,
    doctor,
    draw,
    draw_run,
    export,
    forget,
    groups,
    inspect,
    keys,
    ledger,
    orders,
    pause,
    plan,
    queue,
    rebuild,
    reconcile,
    rehearse,
    relay,
    report,
    sales,
    serve,
    settings,
    stock,
    top,
    verify,
)
from seckill.cli.output import Stopped, complain, version_text
from seckill.errors import InvalidInput, SeckillError

__all__ = ["app", "run"]

INTERRUPTED: Final = 128 + signal.SIGINT

app = typer.Typer(
    name="seckill",
    help="Flash sales that neither oversell nor lose an order.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serve.serve)
app.command("settings")(settings.settings)
app.add_typer(sales.app, name="sale", help="Create, open, pause, close, show and remove sales.")
app.add_typer(stock.app, name="stock", help="Show, add and take units while a sale runs.")
app.add_typer(queue.app, name="queue", help="Show a sale's queue, and replace its keys.")
app.add_typer(draw_run.app, name="draw", help="Follow, settle and publish a sale's draw.")
app.add_typer(orders.app, name="order", help="Look at one order, or move it along by hand.")
app.add_typer(keys.app, name="key", help="Make API keys for the mall's own programs.")
app.command("inspect")(inspect.inspect)
app.command("relay")(relay.relay)
app.add_typer(ledger.app, name="ledger", help="Keep the SQL ledger, and see how far it is.")
app.add_typer(dead.app, name="dead", help="Show, retry and drop events that were not taken.")
app.add_typer(groups.app, name="groups", help="Show who reads a sale's events, or drop a group.")
app.command("doctor")(doctor.doctor)
app.command("top")(top.top)
app.command("pause")(pause.pause)
app.command("resume")(pause.resume)
app.command("reconcile")(reconcile.reconcile)
app.command("rebuild")(rebuild.rebuild)
app.command("verify")(verify.verify)
app.command("verify-draw")(draw.verify_draw)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("forget")(forget.forget)
app.command("rehearse")(rehearse.rehearse)
app.command("plan")(plan.plan)
app.command("demo")(demo.demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version_text())
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """Flash sales that neither oversell nor lose an order."""


def run() -> int:
    """Runs the command that argv names, and says in one line what went wrong."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A title or a price that a terminal's old encoding lacks must not end the command.
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="seckill")
    except Stopped as error:
        return complain(str(error), code=error.code)
    except InvalidInput as error:
        return complain(str(error), code=2)
    except SeckillError as error:
        return complain(str(error), code=1)
    except KeyboardInterrupt:
        return complain("interrupted", code=INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) has gone; flushing the rest at exit would raise once more.
        sys.stdout = io.TextIOWrapper(io.BytesIO())
        return 1
    except SystemExit as error:
        if error.code == INTERRUPTED:
            # Typer has turned a KeyboardInterrupt into this, and said nothing.
            return complain("interrupted", code=INTERRUPTED)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:  # noqa: BLE001 - a bug; a traceback would help nobody at the mall
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return complain(f"a bug, please report it: {error!r} at {where}", code=1)
    return 0
