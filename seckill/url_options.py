"""What stands in a Redis URL behind the address: who we are, TLS, files that hold a password."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, parse_qs, urlsplit

from seckill.errors import InvalidInput

__all__ = ["ESCAPE", "SENTINEL_OPTIONS", "Tls", "read_options", "split", "text_of"]

# What a URL may say beyond the address; everything else about a connection is the engine's to say.
OPTIONS: Final = frozenset(
    {
        "client_name",
        "db",
        "password",
        "password_file",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
        "ssl_password",
        "username",
    }
)
SENTINEL_OPTIONS: Final = frozenset({"sentinel_password_file", "sentinel_username"})
ESCAPE: Final = (
    "write redis://host:6379/0; a user or password with one of @:/?#[]% in it has that as %40 and"
    " so on, or stands in a file: ?password_file=PATH"
)
_VERIFY: Final = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}


def split(url: str) -> SplitResult:
    """The parts of the URL of a single server. Raises InvalidInput."""
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname
    except ValueError:
        # What urlsplit says of it may repeat the password.
        raise InvalidInput("url", "its host or port can't be read", ESCAPE) from None
    if "#" in url:
        raise InvalidInput("url", "it has a # in it", ESCAPE)
    return parts


def read_options(url: str, more: frozenset[str] = frozenset()) -> tuple[dict[str, Any], Tls | None]:
    """What redis-py makes of the URL of a single server, with the password of its password_file,
    and apart from it what is said of TLS. ``more`` are options that may be there, too.

    Raises InvalidInput.
    """
    from redis.asyncio.connection import Connection, parse_url

    split(url)
    known = OPTIONS | more
    query = url.partition("?")[2]
    for option in parse_qs(query, keep_blank_values=True):
        if option not in known:
            # Behind a "&" or "?" that was not escaped the rest of a password may stand.
            late = "@" in query or "password=" in query
            problem = f"{'something' if late else repr(option)} can't be set in a URL"
            raise InvalidInput("url", problem, f"write one of {', '.join(sorted(known))}")
    try:
        options: dict[str, Any] = {"connection_class": Connection, **parse_url(url)}
    except ValueError as error:
        raise InvalidInput("url", str(error), "write redis://host:6379/0") from None
    if (password := text_of(options, "password_file")) is not None:
        if "password" in options:
            raise InvalidInput("url", "has a password and a password_file", "leave one of them out")
        options["password"] = password
    return options, _read_tls(options)


class Tls:
    """What redis-py's TLS connections ask for their context; one serves all of an engine's."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def get(self) -> ssl.SSLContext:
        """The context."""
        return self._context


def _read_tls(options: dict[str, Any]) -> Tls | None:
    """Takes what is said of TLS out of the options; None without TLS.

    redis-py would make a context for each connection, which reads every certificate of the machine
    and keeps the loop for 40 ms, and would meet a file that is missing only then.
    """
    from redis.asyncio.connection import SSLConnection

    given = {name: options.pop(name) for name in sorted(options) if name.startswith("ssl_")}
    names = ", ".join(given)
    if not issubclass(options["connection_class"], SSLConnection):
        if given:
            raise InvalidInput("url", f"{names}: only with TLS", "write rediss:// or rediss+…://")
        return None
    verify = _VERIFY.get(given.get("ssl_cert_reqs", "required"))
    if verify is None:
        remedy = "write none, optional or required"
        raise InvalidInput("url", "ssl_cert_reqs is none of its words", remedy)
    context = ssl.create_default_context()
    if verify is ssl.CERT_NONE or given.get("ssl_check_hostname") is False:
        context.check_hostname = False
    context.verify_mode = verify
    key, cert = given.get("ssl_keyfile"), given.get("ssl_certfile")
    authorities, folder = given.get("ssl_ca_certs"), given.get("ssl_ca_path")
    try:
        if key or cert:
            # Without any password OpenSSL would ask a person for that of a key that has one.
            context.load_cert_chain(str(cert or key), key, given.get("ssl_password", ""))
        if authorities or folder:
            context.load_verify_locations(authorities, folder)
    except OSError as error:
        why = error.strerror if not isinstance(error, ssl.SSLError) else "one of them is refused"
        remedy = "name PEM files that can be read, and the ssl_password of a key that has one"
        raise InvalidInput("url", f"{names} can't be used: {why}", remedy) from None
    return Tls(context)


def text_of(options: dict[str, Any], name: str) -> str | None:
    """The text of the file that an option names, which is taken out; None if it names none.
    Raises InvalidInput."""
    file = options.pop(name, None)
    if file is None:
        return None
    remedy = "name a file with nothing in it but the password"
    try:
        text = Path(file).read_text(encoding="utf-8").strip("\r\n")
    except OSError as error:
        problem = f"{name} {file} cannot be read: {error.strerror}"
        raise InvalidInput("url", problem, remedy) from None
    except ValueError:
        raise InvalidInput("url", f"{name} {file} is not UTF-8", remedy) from None
    if not text:
        raise InvalidInput("url", f"{name} {file} is empty", remedy)
    return text
