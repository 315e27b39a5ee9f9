"""Checks of the intake's settings: the secrets, keys and files it will start with."""

from __future__ import annotations

import stat
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from seckill.doctor.finding import Finding, green, red, yellow
from seckill.doctor.readings import is_local

if TYPE_CHECKING:
    from pydantic import SecretStr

    from seckill.server.settings import Settings

__all__ = ["check_intake", "load_settings"]

SECRET_BYTES_MIN: Final = 32
DISTINCT_MIN: Final = 10
"""A random secret of 32 hexadecimal digits has fewer different ones once in 10,000 times; words and
repetitions nearly always have."""

_MAKE_ONE: Final = "make one with `openssl rand -hex 32`"


def load_settings(path: Path) -> tuple[Settings | None, Finding]:
    """The settings an intake would start with, or why it would not start."""
    from seckill.server.load import SettingsErrors, load

    try:
        settings = load(path)
    except SettingsErrors as errors:
        seen = "; ".join(str(errors).splitlines())
        return None, red("settings", seen, f"mend {path}, or the environment")
    return settings, green("settings", f"{path} has no errors")


def check_intake(settings: Settings, path: Path) -> list[Finding]:
    """All findings of settings that could be read."""
    return [
        _secrets(settings),
        _file_modes(path, settings),
        _api_keys(settings),
        _webhook(settings),
        _gate(settings),
    ]


def _named_secrets(settings: Settings) -> Iterator[tuple[str, Sequence[SecretStr]]]:
    yield "users.secrets", settings.users.secrets
    yield "webhook.secrets", settings.webhook.secrets
    yield "gate.secrets", settings.gate.secrets


def _secrets(settings: Settings) -> Finding:
    weak = []
    for name, secrets in _named_secrets(settings):
        for index, secret in enumerate(secrets):
            text = secret.get_secret_value()
            if len(text.encode()) < SECRET_BYTES_MIN:
                weak.append(f"{name}[{index}] is shorter than {SECRET_BYTES_MIN} bytes")
            elif len(set(text)) < DISTINCT_MIN:
                weak.append(f"{name}[{index}] is no random text")
    if weak:
        return red("secrets", "; ".join(weak), _MAKE_ONE)
    users = settings.users
    if not (users.secrets or users.key_files or users.jwks_url):
        return red(
            "secrets",
            "no key to check user tokens with: every buyer is refused",
            "set users.secrets, users.key_files or users.jwks_url",
        )
    count = sum(len(secrets) for _, secrets in _named_secrets(settings))
    return green("secrets", f"{count} of at least {SECRET_BYTES_MIN} bytes")


def _file_modes(path: Path, settings: Settings) -> Finding:
    """Whether every user of this host can read a secret."""
    try:
        plain = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        plain = {}
    written = list(_secret_texts(plain))
    files = [Path(text.removeprefix("file:")) for text in written if text.startswith("file:")]
    if len(files) < len(written):
        files.insert(0, path)
    readable = []
    for file in files:
        try:
            mode = file.stat().st_mode
        except OSError:
            continue  # Loading has said so already, or it is relative to another directory.
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            readable.append(str(file))
    if readable:
        shown = " ".join(readable)
        seen = f"every user of this host can read the secrets in {', '.join(readable)}"
        return red("file-modes", seen, f"run `chmod o= {shown}`, then rotate those secrets")
    return green("file-modes", f"{len(files)} files with secrets, closed to others")


def _secret_texts(plain: dict[str, Any]) -> Iterator[str]:
    for section in ("users", "webhook", "gate"):
        table = plain.get(section)
        secrets = table.get("secrets") if isinstance(table, dict) else None
        if isinstance(secrets, list):
            yield from (text for text in secrets if isinstance(text, str))


def _api_keys(settings: Settings) -> Finding:
    scopes = {scope for key in settings.keys for scope in key.scopes}
    if "backend" not in scopes:
        return red(
            "api-keys",
            "no key of scope backend: no payment can be recorded",
            "make one with `seckill key new`",
        )
    names = ", ".join(f"{key.name} ({', '.join(key.scopes)})" for key in settings.keys)
    return green("api-keys", names)


def _webhook(settings: Settings) -> Finding:
    webhook = settings.webhook
    if not webhook.url:
        return green("webhook", "none")
    if not webhook.secrets:
        return red("webhook", "it has a url and no secret to sign with", _MAKE_ONE)
    if urlsplit(webhook.url).scheme != "https" and not is_local(webhook.url):
        return yellow("webhook", "its url is not https: events travel readable", "use https")
    return green("webhook", "signed")


def _gate(settings: Settings) -> Finding:
    gate = settings.gate
    if not gate.work_bits:
        return green("gate", "off")
    if not gate.secrets:
        return red("gate", "it is on, and has no secret to sign challenges with", _MAKE_ONE)
    return green("gate", f"{gate.work_bits} bits of work, {2**gate.work_bits:,} hashes on average")
