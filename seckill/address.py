"""What the URL of a Redis says: one server, sentinels that know the master, or a cluster.

    redis://[user:password@]host:port/db          rediss://… with TLS, unix:///path
    redis+sentinel://[user:password@]host:port,host:port,…/master-name[/db]
    redis+cluster://[user:password@]host:port,host:port,…

No message repeats anything that may be part of a password, also of one with an "@" or "/" in it
that should have been written as %40 or %2F.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import unquote

import msgspec

from seckill.errors import InvalidInput
from seckill.url_options import ESCAPE, SENTINEL_OPTIONS, Tls, read_options, split, text_of

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from seckill.pools import Pool

__all__ = ["CONNECT_SECONDS", "NODE_S", "Address", "Node", "read_address", "spoken"]

CONNECT_SECONDS: Final = 5.0
NODE_S: Final = 1.0
"""How long one of several nodes may take to be reached, and to answer what it is asked of others.
Who waits longer for a dead one comes late to the one that took its place."""
SENTINEL_PORT: Final = 26_379
PORT: Final = 6_379

Node = tuple[str, int]
"""Host and port; or the path of a socket, and 0."""

_FORMS: Final = (
    "write redis://host:6379/0, rediss://… for TLS, unix:///path/to/socket,"
    " redis+sentinel://host,host,host/master-name or redis+cluster://host,host"
)
_PARTS: Final = re.compile(
    r"(?P<tls>rediss?)\+(?P<kind>sentinel|cluster)://(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^/?#@]*)"
    r"(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([^\[\]:,\s]+))(?::(\d+))?")


class Address(msgspec.Struct, frozen=True):
    """Where to connect, and as whom. ``nodes`` are the server, the sentinels, or some of a
    cluster's. ``master_name`` is what the sentinels call the master. The options are redis-py's."""

    kind: Literal["single", "sentinel", "cluster"]
    nodes: tuple[Node, ...]
    options: dict[str, Any]
    sentinel_options: dict[str, Any]
    tls: Tls | None
    master_name: str = ""

    def __repr__(self) -> str:
        """Without the options, which hold the password."""
        return f"<{self.kind} {','.join(map(spoken, self.nodes))}>"

    def pool(self, node: Node, *, connections: int, timeout_s: float | None) -> Pool:
        """A pool for one server, whose connections never retry by themselves."""
        from seckill.pools import Pool

        return Pool(
            tls=self.tls,
            max_connections=connections,
            timeout=CONNECT_SECONDS,
            **_behaviour(timeout_s, CONNECT_SECONDS if self.kind == "single" else NODE_S),
            **self.options,
            **_place(node),
        )

    def connection(self, node: Node, *, to_sentinel: bool = False) -> AbstractConnection:
        """A connection to a node, not yet connected, to ask it about the others."""
        options = dict(self.sentinel_options if to_sentinel else self.options)
        connection: AbstractConnection = options.pop("connection_class")(
            **_behaviour(NODE_S, NODE_S), **options, **_place(node)
        )
        if self.tls is not None:
            connection.ssl_context = self.tls  # type: ignore[attr-defined]
        return connection


def _behaviour(timeout_s: float | None, connect_s: float) -> dict[str, Any]:
    """A retry below us would run a script again that its caller has given up, so every retry is
    ours. RESP2 is spoken because every server and proxy does."""
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return {
        "protocol": 2,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_s,
        "retry": Retry(NoBackoff(), 0),
    }


def _place(node: Node) -> dict[str, Any]:
    host, port = node
    return {"host": host, "port": port} if port else {"path": host}


def spoken(node: Node) -> str:
    """A node as people write it."""
    host, port = node
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_address(url: str) -> Address:
    """Reads a URL, and the files that it names. Raises InvalidInput."""
    url = str(url)
    if re.match(r"(rediss?|unix)://", url):
        return _read_single(url)
    parts = _PARTS.fullmatch(url)
    # An "@" in the path would end a password with a "/" in it.
    if parts is None or "@" in (parts["path"] or ""):
        if re.match(r"rediss?\+(sentinel|cluster)://", url):
            raise InvalidInput("url", "its parts can't be told apart", ESCAPE)
        # Of what is no URL nobody knows where a password would stand.
        what = "this" if "@" in url or "password" in url else repr(url[:60])
        raise InvalidInput("url", f"{what} is not a Redis URL", _FORMS)
    if parts["kind"] == "cluster":
        return _read_cluster(parts)
    return _read_sentinel(parts)


def _read_single(url: str) -> Address:
    parts = split(url)
    if parts.scheme != "unix" and not re.fullmatch(r"(/\d*)?", parts.path):
        # An "@" that comes so late ends a password that began before the path.
        late = "@" in parts.path + parts.query + parts.fragment
        what = "its path" if late else repr(parts.path[:40])
        remedy = ESCAPE if late else "write its number, as in redis://host:6379/0"
        raise InvalidInput("url", f"{what} is not a database", remedy)
    place = parts.netloc + parts.path
    if parts.scheme == "unix" and not re.fullmatch(r"/.*|[^/]*@/[^@]*", place):
        remedy = "write unix:///path/to/socket or unix://user:password@/path, with %40 for a @"
        raise InvalidInput("url", "its path can't be told", remedy)
    options, tls = read_options(url)
    if parts.scheme == "unix":
        node = (options.pop("path", ""), 0)
    else:
        node = (options.pop("host", "localhost"), options.pop("port", PORT))
    return Address("single", (node,), options, {}, tls)


def _read_sentinel(parts: re.Match[str]) -> Address:
    path = re.fullmatch(r"/([^/]+)(?:/(\d*))?", parts["path"] or "")
    if path is None:
        raise InvalidInput(
            "url",
            "the name of the master is missing, or is followed by what is not a database",
            "write redis+sentinel://host,host,host/master-name/0; it is the name after `sentinel"
            " monitor` in the sentinels' configuration",
        )
    url = _as_single(parts, path[2] or "")
    options, tls = read_options(url, SENTINEL_OPTIONS)
    own = {name: options.pop(name) for name in SENTINEL_OPTIONS if name in options}
    password = text_of(own, "sentinel_password_file")
    if "sentinel_username" in own and password is None:
        raise InvalidInput(
            "url", "sentinel_username has no password", "add sentinel_password_file=PATH"
        )
    # A sentinel has no databases, and other users than the servers that it watches.
    foreign = {"db", "username", "password"}
    sentinel_options = {name: value for name, value in options.items() if name not in foreign}
    if password is not None:
        sentinel_options["password"] = password
        if "sentinel_username" in own:
            sentinel_options["username"] = own["sentinel_username"]
    return Address(
        "sentinel",
        _read_hosts(parts["hosts"], SENTINEL_PORT),
        options,
        sentinel_options,
        tls,
        unquote(path[1]),
    )


def _read_cluster(parts: re.Match[str]) -> Address:
    options, tls = read_options(_as_single(parts, ""))
    if parts["path"] not in (None, "", "/") or "db" in options:
        raise InvalidInput("url", "a cluster has one database only", "leave its number out")
    return Address("cluster", _read_hosts(parts["hosts"], PORT), options, {}, tls)


def _as_single(parts: re.Match[str], db: str) -> str:
    """The same without the hosts, which redis-py can read."""
    user = "" if parts["user"] is None else f"{parts['user']}@"
    return f"{parts['tls']}://{user}/{db}?{parts['query'] or ''}"


def _read_hosts(text: str, port: int) -> tuple[Node, ...]:
    nodes: list[Node] = []
    for part in text.split(","):
        host = _HOST.fullmatch(part)
        if host is None or not 0 < int(host[3] or port) < 65_536:
            # Without an "@" before it, this may be a password.
            raise InvalidInput(
                "url",
                "its hosts can't be read",
                "write them as host:port,host:port,[::1]:port; the ports are from 1 to 65535",
            )
        nodes.append((unquote(host[1] or host[2]), int(host[3] or port)))
    return tuple(dict.fromkeys(nodes))
