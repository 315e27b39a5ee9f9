"""Where a request comes from: the client's address, seen through the mall's own proxies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

from aiohttp import web

from seckill.errors import InvalidInput

__all__ = ["UNIX", "Addresses", "checked_proxy"]

UNIX: Final = "unix"
"""Whoever connects by our unix socket, as a trusted proxy and as the result."""

# Nobody has more proxies of his own; without an end a trusted one could keep us busy.
HOPS_MAX: Final = 16
CACHED_MAX: Final = 4096
# Longer than any address; a cut one is none.
ENTRY_CHARS_MAX: Final = 64

_FORWARDED: Final = "X-Forwarded-For"


class Addresses:
    """Believes X-Forwarded-For only as far as it was written by somebody who is trusted."""

    def __init__(self, trusted: Sequence[str]) -> None:
        """``trusted`` are addresses, networks (10.0.0.0/8) and "unix". Raises InvalidInput."""
        self._unix = UNIX in trusted
        self._networks = [_network(text) for text in trusted if text != UNIX]
        # Proxies are few and buyers come again, and reading an address costs more than a dict.
        self._read = lru_cache(CACHED_MAX)(self._read_anew)

    def of(self, request: web.Request) -> str:
        """The client's address as canonical text. "unix" stands for a peer on our unix socket, ""
        for one that has gone.

        Each proxy appends whom it was called by, so the list is read from the right, and what the
        first untrusted one has written is not read at all.
        """
        peer = request.remote
        if peer is None:
            return ""  # It has gone already.
        client, trusted = self._read(peer or UNIX)
        forwarded = request.headers.getall(_FORWARDED, ()) if trusted else ()
        if forwarded:
            for entry in reversed(",".join(forwarded).rsplit(",", HOPS_MAX)):
                address, trusted = self._read(entry.strip(" \t")[:ENTRY_CHARS_MAX])
                if not address or address == UNIX:
                    break
                client = address
                if not trusted:
                    break
        return client

    def _read_anew(self, text: str) -> tuple[str, bool]:
        """An address as canonical text, and whether it is trusted. "" is no address."""
        if text == UNIX:
            return UNIX, self._unix
        address = _address(text)
        if address is None:
            return "", False
        return str(address), any(address in network for network in self._networks)


def checked_proxy(text: str) -> str:
    """For settings: raises InvalidInput unless this can be trusted."""
    if text != UNIX:
        _network(text)
    return text


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        remedy = f'write an address, a network such as 10.0.0.0/8, or "{UNIX}"'
        raise InvalidInput("server.trusted_proxies", str(error), remedy) from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped:
        problem = f"{text!r} holds mapped IPv4 addresses"
        raise InvalidInput("server.trusted_proxies", problem, "write the IPv4 network")
    return network


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address as proxies write it: some add the port, and IPv6 then has brackets."""
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _is_port(port.removeprefix(":"))):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(port):
            return None
    try:
        # A zone is a name that only the machine itself understands.
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5
