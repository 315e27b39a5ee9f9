"""``seckill key``: API keys for the mall's own programs."""

from __future__ import annotations

import hashlib
import re
import secrets
from enum import StrEnum
from typing import Annotated, Final

import typer
from rich.text import Text

from seckill.cli.command import Json
from seckill.cli.output import Output
from seckill.errors import InvalidInput

__all__ = ["app", "new"]

KEY_BYTES: Final = 32

_NAME: Final = re.compile(r"[0-9A-Za-z_.-]{1,40}").fullmatch

app = typer.Typer(no_args_is_help=True)


class Scope(StrEnum):
    """What a key may do, in the form that typer shows as a choice."""

    BACKEND = "backend"
    ADMIN = "admin"
    METRICS = "metrics"


@app.callback()
def _root() -> None:
    """Make keys for the mall's own programs."""


@app.command("new")
def new(
    name: Annotated[str, typer.Option(help="What logs call it: the program that gets it.")],
    scope: Annotated[
        list[Scope],
        typer.Option(
            help="What it may do: backend (orders of any buyer, payments), admin (sales), metrics. "
            "Give it more than once for several."
        ),
    ],
    json: Json = False,
) -> None:
    """Make an API key. It is shown once and stored nowhere; the settings get its hash."""
    if not _NAME(name):
        raise InvalidInput("--name", f"{name!r} is no name", "use 1 to 40 of 0-9 A-Z a-z _ . -")
    key = f"sk_{secrets.token_urlsafe(KEY_BYTES)}"
    hash_ = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    scopes = [one.value for one in dict.fromkeys(scope)]
    listed = ", ".join(f'"{one}"' for one in scopes)
    settings = f'[[keys]]\nname = "{name}"\nhash = "{hash_}"\nscopes = [{listed}]\n'
    out = Output(json=json)
    if json:
        data = {"key": key, "name": name, "hash": hash_, "scopes": scopes, "settings": settings}
        out.answer(data)
        return
    # Not folded to the width of the terminal: a folded line would be no TOML when it is copied.
    out.console.print(
        Text.assemble(
            (key, "bold"),
            ("\ngive it to the program; nobody can show it again", "dim"),
            ("\nand add this to the settings of the intake:\n\n", "dim"),
            settings,
        ),
        soft_wrap=True,
        end="",
    )
