"""Checks of the intake's settings: the secrets, keys and files it will start with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from seckill.doctor.finding import Finding, green, red, yellow
from seckill.doctor.readings import is_local

if TYPE_CHECKING:
    from pydantic import SecretStr

    from seckill.server.load import Loaded
    from seckill.server.settings import Settings

__all__ = ["check_intake", "read_settings"]

SECRET_BYTES_MIN: Final = 32
WORK_BITS_YELLOW: Final = 22
"""Four times the work of 20 bits, which take a phone without a JIT 35 seconds (docs/gate.md)."""

DISTINCT_MIN: Final = 10
"""A random secret of 32 hexadecimal digits has fewer different ones once in 10,000 times; words and
repetitions nearly always have."""

# What load.py says of a file with a secret that everybody can read.
_OPEN_FILE: Final = "chmod o-r"
_MAKE_ONE: Final = "make one with `openssl rand -hex 32`"


def read_settings(path: Path) -> tuple[Loaded | None, Finding]:
    """The settings an intake would start with in this environment, or why it would not start."""
    from seckill.server.load import SettingsErrors, read

    try:
        loaded = read(path)
    except SettingsErrors as errors:
        seen = "; ".join(f"{one.where}: {one.problem}" for one in errors.errors)
        return None, red("settings", seen, "; ".join({one.remedy: 0 for one in errors.errors}))
    if warnings := [text for text in loaded.warnings if _OPEN_FILE not in text]:
        return loaded, yellow("settings", "; ".join(warnings), f"look at {path}")
    return loaded, green("settings", f"{path} has no errors")


def check_intake(loaded: Loaded) -> list[Finding]:
    """All findings of settings that could be read."""
    settings = loaded.settings
    return [
        _secrets(settings),
        _file_modes(loaded.warnings),
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


def _file_modes(warnings: tuple[str, ...]) -> Finding:
    """Whether every user of this host can read a secret; reading the settings has looked."""
    if readable := [text for text in warnings if _OPEN_FILE in text]:
        return red("file-modes", "; ".join(readable), "do so, then rotate those secrets")
    return green("file-modes", "secrets are closed to other users")


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
    seen = f"{gate.work_bits} bits of work, {2**gate.work_bits:,} hashes on average"
    if gate.work_bits >= WORK_BITS_YELLOW:
        return yellow(
            "gate",
            f"{seen}: a phone needs minutes, and its buyer comes too late",
            "set gate.work_bits to 16 or 18, and try it on an old phone (docs/gate.md)",
        )
    return green("gate", seen)
