"""What the settings say of themselves: their names, what each takes, and what may be shown of it.

One description serves the errors of load.py, ``seckill settings`` and docs/settings.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, SecretStr

from .settings import ApiKey, Settings

__all__ = [
    "Row",
    "dotted",
    "is_hidden",
    "is_secret",
    "is_text",
    "names",
    "rows",
    "shown",
    "shown_url",
    "takes",
]

At = tuple[str | int, ...]

SHOWN_MAX: Final = 60

_FILE_PATH: Final = "file:PATH"
# Parts of an API key that nobody writes by hand.
_PRINTED: Final = (("name",), ("hash",))
# Text in which a password may stand: written as file:PATH it is read from there, like a secret.
_URLS_WITH_PASSWORDS: Final = frozenset({("redis", "url"), ("ledger", "url")})
_PASSWORD: Final = re.compile(r"(?<=://)([^/@\s]*:)?[^/@\s]*@")
_PASSWORD_IN_QUERY: Final = re.compile(r"(?<=[?&]password=)[^&#\s]*")
_QUERY: Final = re.compile(r"[?#].*", re.DOTALL)
# Sections about proofs: a secret gets into any of their settings by a slip, a key for its hash.
_HIDDEN: Final = frozenset({"keys", "users", "gate", "webhook"})


class Row(msgspec.Struct, frozen=True):
    """One setting as a table shows it: as the file would have it, but secrets are counted, and keys
    go by their names."""

    name: str
    takes: str
    default: str
    value: str
    source: str
    about: str


class _Kind(NamedTuple):
    """The type of a setting, or of a part of it, and what limits it."""

    type: Any
    limits: tuple[Any, ...]


def names() -> Iterator[tuple[str, str]]:
    """Section and name of every setting; a section that is a list has no names."""
    for section, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for name in field.annotation.model_fields:
                yield section, name
        else:
            yield section, ""


def dotted(path: At) -> str:
    """``users.secrets[0]``"""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def takes(path: At) -> str:
    """What may be written there, in words: "0 to 65,535"."""
    kind = _kind(path)
    if kind is None:
        return "what `seckill settings` names"
    return "what `seckill key new` prints" if path[2:] in _PRINTED else _takes(*kind)


def is_text(path: At) -> bool:
    """Whether a variable's text is the value itself, and not JSON."""
    kind = _kind(path)
    return kind is not None and (kind.type is str or get_origin(kind.type) is Literal)


def is_secret(path: At) -> bool:
    """Whether what stands there, or in a part of it, must not be shown."""
    if path[:2] in _URLS_WITH_PASSWORDS:
        return True
    kind = _kind(path)
    # What is no setting may be a secret under a mistyped name.
    return kind is None or _mentions_secret(kind.type)


def is_hidden(path: At) -> bool:
    """Whether no error may repeat what stands there."""
    return path[0] in _HIDDEN or is_secret(path)


def _mentions_secret(kind: Any) -> bool:
    return kind is SecretStr or any(map(_mentions_secret, get_args(kind)))


def shown(value: Any) -> str:
    """A value in an error, short."""
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 1] + "…"


def shown_url(url: str) -> str:
    """A URL without its password."""
    return _PASSWORD_IN_QUERY.sub("***", _PASSWORD.sub("***@", url))


def _origin_of(url: str) -> str:
    """Scheme and host of a URL whose path may be a key, as chat robots have it."""
    try:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "…"
    return f"{parts.scheme}://{host}{port}"


def _masked(path: At, value: Any) -> Any:
    """The value of a setting as it may be shown."""
    if path == ("webhook", "url"):
        return value and _origin_of(value)
    if path == ("users", "jwks_url"):
        return _QUERY.sub("?…", shown_url(value))
    return shown_url(value) if path in _URLS_WITH_PASSWORDS else value


def rows(settings: Settings, sources: dict[str, str]) -> Iterator[Row]:
    """Every setting, in the order of the model."""
    for section, name in names():
        path: At = (section, name) if name else (section,)
        field = _field(path)
        value = getattr(settings, section)
        value = getattr(value, name) if name else value
        yield Row(
            dotted(path),
            takes(path),
            _toml(field.get_default()),
            _toml(_masked(path, value)),
            sources.get(dotted(path), "default"),
            field.description or "",
        )


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        if value and isinstance(value[0], SecretStr):
            return f"{len(value)} secret{'s' if len(value) > 1 else ''}"
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, ApiKey):
        return f"{value.name} ({', '.join(value.scopes)})"
    return msgspec.json.encode(value).decode()


def _field(path: At) -> Any:
    model: Any = Settings
    for step in path[:-1]:
        model = model.model_fields[step].annotation
    return model.model_fields[path[-1]]


def _kind(path: At) -> _Kind | None:
    """None when there is no such setting."""
    kind = _Kind(Settings, ())
    for step in path:
        if isinstance(step, int):
            if get_origin(kind.type) is not tuple:
                return None
            item = get_args(kind.type)[0]
            annotated = get_origin(item) is Annotated
            kind = _Kind(*_unwrap(item)) if annotated else _Kind(item, ())
        else:
            field = getattr(kind.type, "model_fields", {}).get(step)
            if field is None:
                return None
            kind = _Kind(field.annotation, tuple(field.metadata))
    return kind


def _unwrap(annotated: Any) -> tuple[Any, tuple[Any, ...]]:
    plain, *limits = get_args(annotated)
    return plain, tuple(limits)


def _takes(kind: Any, limits: tuple[Any, ...]) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _takes(*_unwrap(kind))
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return _list_of(arguments[0], limits)
    if kind in (int, float):
        return _range(limits)
    if kind is bool:
        return "true or false"
    if kind is SecretStr:
        return f"a secret, or {_FILE_PATH}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a table"
    return "text"


def _list_of(item: Any, limits: tuple[Any, ...]) -> str:
    if get_origin(item) is Annotated:
        item = get_args(item)[0]
    some = "one or more of" if any(isinstance(limit, MinLen) for limit in limits) else "a list of"
    if get_origin(item) is Literal:
        return f"{some} {', '.join(map(str, get_args(item)))}"
    if item is SecretStr:
        return f"a list of secrets, or {_FILE_PATH} for each"
    if isinstance(item, type) and issubclass(item, BaseModel):
        return f"a list of tables with {', '.join(item.model_fields)}"
    return "a list of texts"


def _range(limits: tuple[Any, ...]) -> str:
    low = next((limit for limit in limits if isinstance(limit, Ge | Gt)), None)
    high = next((limit for limit in limits if isinstance(limit, Le | Lt)), None)
    parts = []
    if isinstance(low, Gt):
        parts.append(f"above {low.gt:,}")
    elif isinstance(low, Ge):
        parts.append(f"{low.ge:,}")
    if isinstance(high, Le):
        parts.append(f"to {high.le:,}")
    elif isinstance(high, Lt):
        parts.append(f"below {high.lt:,}")
    return " ".join(parts) or "a number"
