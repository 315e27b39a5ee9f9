"""Settings from one TOML file and the environment, with every error at once.

    options of the command line  >  environment  >  file  >  defaults

A variable is named SECKILL_SECTION__NAME; what is not text is written as JSON, so a list is
``["a", "b"]``. SECKILL_REDIS and SECKILL_DATA are the names every other command knows as well.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from stat import S_IROTH
from typing import Any, Final

import msgspec
from pydantic import ValidationError

from seckill.address import read_address
from seckill.errors import InvalidInput

from .api_keys import ApiKeys
from .describe import At, dotted, is_hidden, is_secret, is_text, names, shown, shown_url, takes
from .gate import built_in
from .ledger import check_ledger
from .settings import ApiKey, Settings, check_signed
from .user_keys import shown_path

__all__ = ["CONFIG_ENV", "Loaded", "SettingError", "SettingsErrors", "load", "read", "wanted"]

_log = logging.getLogger("seckill.server")

CONFIG_ENV: Final = "SECKILL_CONFIG"
FILE_BYTES_MAX: Final = 1 << 20
SECRET_BYTES_MAX: Final = 64 * 1024

_PREFIX: Final = "SECKILL_"
_FILE: Final = "file:"
_LISTED: Final = "`seckill settings` lists all there are"
# Names that the rest of the package knows for a setting. Where both name a server the URL wins, so
# that both may stay set for good.
_SHORT: Final = {
    "SECKILL_REDIS": ("redis", "url"),
    "SECKILL_DATA": ("redis", "data"),
    "SECKILL_LEDGER": ("ledger", "url"),
}
# Variables that are no settings: of the command line, of clients as our examples write them, and of
# this project's own tests.
_OTHERS: Final = frozenset(
    {CONFIG_ENV, "SECKILL_KEY", "SECKILL_REDIS_SERVER", "SECKILL_TOKEN"}
    | {"SECKILL_SALE", "SECKILL_URL"}
    | {"SECKILL_FAULT_SEED", "SECKILL_FSYNC_TABLE", "SECKILL_SOAK_SECONDS"}
)
# What Kubernetes sets for services whose names begin with "seckill"; nobody meant a setting.
_KUBERNETES: Final = re.compile(
    r"SECKILL_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)"
)


class SettingError(msgspec.Struct, frozen=True):
    """One error: ``where`` is the file with table and key, the variable, or the option."""

    where: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}; {self.remedy}"


class SettingsErrors(InvalidInput):
    """All that is wrong with the settings. The values of secrets are not in it."""

    def __init__(self, errors: Iterable[SettingError]) -> None:
        self.errors = tuple(errors)
        first = self.errors[0]
        super().__init__(first.where, first.problem, first.remedy)

    def __str__(self) -> str:
        if len(self.errors) == 1:
            return str(self.errors[0])
        lines = "".join(f"\n  {error}" for error in self.errors)
        return f"{len(self.errors)} settings are wrong{lines}"


class Loaded(msgspec.Struct, frozen=True):
    """Settings, where each that is not a default comes from ("users.secrets" to a file or a
    variable), and what is no error but should be seen."""

    settings: Settings
    sources: dict[str, str]
    warnings: tuple[str, ...]


def load(path: Path | None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this file (or the one SECKILL_CONFIG names) and of the environment, which
    wins. Logs what should be seen. Raises SettingsErrors."""
    loaded = read(path, environ)
    for warning in loaded.warnings:
        _log.warning("%s", warning)
    return loaded.settings


def read(
    path: Path | None,
    environ: Mapping[str, str] | None = None,
    options: Mapping[str, tuple[str, Any]] | None = None,
) -> Loaded:
    """The same with more about it. ``options`` maps settings ("server.port") to the option of the
    command line that sets it and its value. Raises SettingsErrors."""
    environ = os.environ if environ is None else environ
    if path is None and (named := environ.get(CONFIG_ENV)):
        path = Path(named)
    draft = _Draft()
    if path is not None:
        draft.add_file(path)
    draft.add_environment(environ)
    for name, (option, value) in (options or {}).items():
        draft.set(tuple(name.split(".")), value, option)
    settings = draft.validated()
    if draft.errors or settings is None:
        raise SettingsErrors(draft.errors)
    return Loaded(settings, draft.sources(), tuple(draft.warnings))


def wanted(settings: Settings) -> tuple[str, ...]:
    """What `seckill serve` still wants, in words. A file without it is in order all the same: the
    rest may come from the environment or the command line, and the relay needs no keys."""
    users, redis = settings.users, settings.redis
    missing = []
    if not (settings.keys or users.secrets or users.key_files or users.jwks_url):
        missing.append("keys or users, or nobody could prove who they are (`seckill key new`)")
    if not (redis.url or redis.data):
        missing.append("a server: redis.url, SECKILL_REDIS, or --redis URL")
    return tuple(missing)


class _Draft:
    """Settings that are being put together, and where each of them comes from."""

    def __init__(self) -> None:
        self.errors: list[SettingError] = []
        self.warnings: list[str] = []
        self._values: dict[str, Any] = {}
        self._origins: dict[At, str] = {}
        # One more prefix for what a file says, as in "seckill.toml: server.port".
        self._file = ""

    def sources(self) -> dict[str, str]:
        """Setting to where it comes from."""
        return {
            dotted(path): origin or self._file
            for path, origin in self._origins.items()
            if path[0] == "keys" or len(path) > 1
        }

    def set(self, path: At, value: Any, origin: str) -> None:
        """One setting. A server that is named here replaces one that was named before."""
        if path in (("redis", "url"), ("redis", "data")):
            for name in ("url", "data"):
                self._values.get("redis", {}).pop(name, None)
                self._origins.pop(("redis", name), None)
        self._origins[path] = origin
        if len(path) == 1:
            self._values[str(path[0])] = value
            return
        section = self._values.setdefault(str(path[0]), {})
        if isinstance(section, dict):
            section[path[1]] = value

    # -- the file -----------------------------------------------------------------------------

    def add_file(self, path: Path) -> None:
        """Adds what the file says."""
        self._file = str(path)
        text = self._text_of(path, self._file, FILE_BYTES_MAX, "a TOML file")
        if text is None:
            return
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            problem = f"is not TOML: {str(error)[:200]}"
            self._error(self._file, problem, "correct this line first; the rest is read after it")
            return
        self._values = tree
        for name, section in tree.items():
            self._origins[(name,)] = ""
            if isinstance(section, dict):
                self._origins |= {(name, key): "" for key in section}
        redis = tree.get("redis")
        if isinstance(redis, dict) and redis.get("url") and redis.get("data"):
            self._error(
                f"{self._file}: redis.url, redis.data", "are both given", "give one of the two"
            )
        if _world_readable(path) and any(_is_plain(text) for _, text in _secrets(tree)):
            self.warnings.append(
                f"{path} holds secrets and everybody on this machine can read it: chmod o-r it,"
                f" or write {_FILE}PATH for each secret"
            )

    def _text_of(self, path: Path, where: str, bytes_max: int, what: str) -> str | None:
        """The text of a file, or None and an error."""
        try:
            with path.open("rb") as file:
                data = file.read(bytes_max + 1)
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "no such path"
            named = shown_path(str(path))
            self._error(where, f"{named} cannot be read: {reason}", f"name {what} that is there")
            return None
        try:
            if len(data) <= bytes_max:
                return data.decode()
            self._error(where, f"{path} is larger than {bytes_max} bytes", f"name {what}")
        except UnicodeDecodeError:
            self._error(where, f"{path} is not UTF-8", f"name {what} in UTF-8")
        return None

    # -- the environment ----------------------------------------------------------------------

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """Adds what the environment says."""
        known = _variables()
        # The data directory first, so that a URL replaces it.
        for variable in sorted(environ):
            text = environ[variable]
            if not variable.startswith(_PREFIX) or variable in _OTHERS:
                continue
            path = known.get(variable)
            if path is not None:
                # An empty SECKILL_REDIS has always meant none.
                if text or variable not in _SHORT:
                    self.set(path, _from_text(path, text), variable)
            elif not _KUBERNETES.fullmatch(variable) and "://" not in text[:6]:
                self._error(variable, "is no setting", _did_you_mean(variable, known, _LISTED))

    # -- what they are checked against --------------------------------------------------------

    def validated(self) -> Settings | None:
        """The settings, or None and errors."""
        for path, value in list(_secrets(self._values)):
            self._resolve(path, value)
        # JSON, because it is strict about types and yet takes a list for a tuple; it knows no
        # dates, which no setting is.
        sections = dict(self._values)
        while True:
            try:
                settings = Settings.model_validate_json(
                    json.dumps(sections, default=str), strict=True
                )
                break
            except ValidationError as error:
                for found in error.errors(include_url=False):
                    self._add(found)
                    # What is sound can still be looked at as a whole.
                    sections.pop(str(found["loc"][0]), None)
        self._check_together(settings)
        return settings

    def _check_together(self, settings: Settings) -> None:
        """What no single setting can tell."""
        url, ledger = settings.redis.url, settings.ledger.url
        checks: tuple[tuple[At, Callable[[], object]], ...] = (
            (("redis", "url"), lambda: url and read_address(url)),
            (("keys",), lambda: ApiKeys(settings.keys)),
            (("gate", "secrets"), lambda: built_in(settings.gate)),
            (("webhook", "secrets"), lambda: check_signed(settings.webhook)),
            (("ledger", "url"), lambda: check_ledger(ledger)),
        )
        for path, check in checks:
            try:
                check()
            except InvalidInput as error:
                # A message about a URL may have its password in it.
                hidden = path == ("redis", "url") and "@" in url
                problem = "is not a Redis URL" if hidden else error.problem
                if path == ("keys",):
                    problem = "hold the same hash twice"  # Names are not repeated either.
                self._error(self._where(path), problem, error.remedy)

    def _resolve(self, path: At, value: str) -> None:
        """Puts the text of a file in the place of its name."""
        if not value.startswith(_FILE):
            return
        file = Path(value.removeprefix(_FILE))
        where = self._where(path)
        text = self._text_of(file, where, SECRET_BYTES_MAX, "a file")
        if text is not None and not text.strip():
            self._error(where, f"{file} is empty", "write the secret into it")
            text = None
        elif text is not None and _world_readable(file):
            self.warnings.append(f"{where}: everybody on this machine can read {file}; chmod o-r")
        holder: Any = self._values
        for step in path[:-1]:
            holder = holder[step]
        # What could not be read has its error already, and the name of its file is no secret.
        holder[path[-1]] = "?" * 64 if text is None else text.strip("\r\n")

    def _add(self, found: Any) -> None:
        """An error of pydantic's in our words."""
        path: At = found["loc"]
        where = self._where(path)
        if found["type"] == "extra_forbidden":
            self._error(where, "is no setting", _did_you_mean(dotted(path), _known(path), _LISTED))
        elif found["type"] == "missing":
            self._error(where, "is missing", "add it")
        elif isinstance(error := found.get("ctx", {}).get("error"), InvalidInput):
            self._error(where, error.problem, error.remedy)
        else:
            value = "this" if is_hidden(path) else shown(found["input"])
            remedy = f"write {takes(path)}"
            if where.startswith(_PREFIX) and not is_text(path):
                remedy += ', as JSON: ["…", "…"]' if "list" in remedy else ""
            self._error(where, f"{value} is refused", remedy)

    def _where(self, path: At) -> str:
        """Where a setting, or a part of it, was given."""
        for length in range(len(path), 0, -1):
            origin = self._origins.get(path[:length])
            if origin:
                return origin + dotted(path[length:])
            if origin is not None:
                break
        return f"{self._file}: {dotted(path)}" if self._file else dotted(path)

    def _error(self, where: str, problem: str, remedy: str) -> None:
        self.errors.append(SettingError(where, problem, remedy))


def _variables() -> dict[str, At]:
    """Every variable that sets something, and what it sets."""
    known: dict[str, At] = dict(_SHORT)
    for section, name in names():
        if name:
            known[f"{_PREFIX}{section}__{name}".upper()] = (section, name)
        else:
            known[f"{_PREFIX}{section}".upper()] = (section,)
    return known


def _from_text(path: At, text: str) -> Any:
    """The value that a variable's text stands for. What is no JSON is refused later, by type."""
    if is_text(path):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _secrets(values: dict[str, Any]) -> Iterator[tuple[At, str]]:
    """Every text that stands where a secret may."""
    for section, name in names():
        holder = values.get(section)
        value = holder.get(name) if name and isinstance(holder, dict) else None
        if value is not None and is_secret((section, name)):
            if isinstance(value, str):
                yield (section, name), value
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, str):
                        yield (section, name, index), item


def _is_plain(text: str) -> bool:
    """Whether this is a secret itself: no name of a file, and no URL without a password."""
    return not text.startswith(_FILE) and ("://" not in text or shown_url(text) != text)


def _known(path: At) -> list[str]:
    """What may stand where something unknown does."""
    if len(path) == 3:
        return [f"{dotted(path[:2])}.{name}" for name in ApiKey.model_fields]
    known = [f"{section}.{name}" for section, name in names() if name]
    return known if len(path) > 1 else [*Settings.model_fields, *known]


def _world_readable(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & S_IROTH)
    except OSError:
        return False


def _did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, 1, 0.7)
    # The right name in the wrong table.
    near += [one for one in known if one.endswith(f".{name.rpartition('.')[2]}")]
    return f"did you mean {near[0]}?" if near else otherwise
