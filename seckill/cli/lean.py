"""The settings of ``seckill ledger run`` on a machine without the intake, whose settings they are:
of the same file and the same variables, the sections that the ledger needs. Whatever else the file
says is the intake's, and `seckill settings --check` looks at it there.
"""

from __future__ import annotations

import logging
import os
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from seckill.cli.files import plain_text
from seckill.errors import InvalidInput

__all__ = ["Ledger", "Log", "Redis", "Settings", "configure", "read"]

CONFIG_ENV: Final = "SECKILL_CONFIG"


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As in the intake's settings, where each is told of."""


class Redis(_Section, frozen=True):
    """Where the sales live."""

    url: str = ""
    data: str = ""
    durability: str = "aof"
    allow_unverified: bool = False
    timeout_ms: Annotated[int, Meta(ge=1, le=600_000)] = 3_000


class Ledger(_Section, frozen=True):
    """The mall's SQL database."""

    url: str = ""
    inside: bool = True
    keep_events_s: Annotated[int, Meta(ge=60, le=365 * 86_400)] = 86_400
    keep_sales_days: Annotated[int, Meta(ge=0, le=3_650)] = 0
    retention_days: Annotated[int, Meta(ge=0, le=36_500)] = 0


class Log(_Section, frozen=True):
    """What is written to standard error."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"
    requests: Literal["none", "errors", "all"] = "errors"


class Settings(msgspec.Struct, frozen=True):
    """The sections that there are here."""

    redis: Redis = Redis()
    ledger: Ledger = Ledger()
    log: Log = Log()


_SHORT: Final = {
    # The data directory first, so that a URL replaces it.
    "SECKILL_DATA": ("redis", "data"),
    "SECKILL_REDIS": ("redis", "url"),
    "SECKILL_LEDGER": ("ledger", "url"),
}


def read(
    path: Path | None,
    options: Mapping[str, tuple[str, Any]],
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Options before the environment before the file before the defaults. ``options`` maps settings
    ("ledger.url") to the option that sets it and its value. Raises InvalidInput."""
    environ = os.environ if environ is None else environ
    if path is None and (named := environ.get(CONFIG_ENV)):
        path = Path(named)
    draft = _Draft()
    if path is not None:
        draft.add_file(path)
    for variable, at in (*_SHORT.items(), *_long_names().items()):
        # An empty one of these has always meant none.
        if text := environ.get(variable):
            draft.set(at, text, variable)
    for dotted, (option, value) in options.items():
        section, _, name = dotted.partition(".")
        draft.set((section, name), value, option)
    return draft.settings()


def _long_names() -> dict[str, tuple[str, str]]:
    return {
        f"SECKILL_{section}__{name}".upper(): (section, name)
        for section, kind in _kinds().items()
        for name in kind.__struct_fields__
    }


def _kinds() -> dict[str, type[_Section]]:
    return {"redis": Redis, "ledger": Ledger, "log": Log}


class _Draft:
    """Settings that are being put together, and where each of them comes from."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, Any]] = {section: {} for section in _kinds()}
        self._origins: dict[tuple[str, str], str] = {}

    def add_file(self, path: Path) -> None:
        """Adds the sections of a file that are known here."""
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
            raise InvalidInput(str(path), problem, "name a TOML file that is there") from None
        except ValueError as error:
            raise InvalidInput(str(path), f"is not TOML: {error}", "correct this line") from None
        for section in _kinds():
            table = tree.get(section, {})
            if not isinstance(table, dict):
                raise InvalidInput(f"{path}: {section}", "is no table", f"write [{section}]")
            for name, value in table.items():
                self.set((section, name), value, f"{path}: {section}.{name}")

    def set(self, at: tuple[str, str], value: Any, origin: str) -> None:
        """One setting. A server that is named here replaces one that was named before."""
        section, name = at
        if at in (("redis", "url"), ("redis", "data")):
            for other in ("url", "data"):
                self._values["redis"].pop(other, None)
        self._values[section][name] = value
        self._origins[at] = origin

    def settings(self) -> Settings:
        """Raises InvalidInput."""
        return Settings(*(self._section(name, kind) for name, kind in _kinds().items()))  # type: ignore[arg-type]

    def _section(self, section: str, kind: type[_Section]) -> _Section:
        values = self._values[section]
        for name, value in values.items():
            origin = self._origins[section, name]
            if name == "url" and isinstance(value, str):
                values[name] = plain_text(value, origin)
            try:
                # Variables are text, whatever they set; a file says true or 5 itself.
                msgspec.convert({name: values[name]}, kind, strict="__" not in origin)
            except msgspec.ValidationError as error:
                # What was refused may hold a password, so only its place and its type are named.
                raise InvalidInput(origin, f"is refused: {error}", "see docs/settings.md") from None
        return msgspec.convert(values, kind, strict=False)


def configure(log: Log) -> None:
    """Sends every record of this process to standard error, as the intake's own log does."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines(log.format))
    logging.basicConfig(handlers=[handler], level=log.level.upper(), force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


class _Lines(logging.Formatter):
    """One line a record."""

    def __init__(self, form: Literal["text", "json"]) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        parts = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": " ".join(record.getMessage().split()),
        }
        if record.exc_info and record.exc_info[1] is not None:
            # Its text may quote what nobody should read in a log.
            parts["message"] += f" ({type(record.exc_info[1]).__name__})"
        if self._form == "json":
            return msgspec.json.encode(parts).decode()
        return "{time} {level:7} {logger}: {message}".format(**parts)
