"""Where requests come in: which addresses may be bound, and the socket that is.

The socket is made here and not by aiohttp or gunicorn, so that one process and many workers listen
in the same way, and an address that can't be had is one error at once.
"""

from __future__ import annotations

import os
import socket
import stat
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from seckill.errors import InvalidInput

__all__ = ["BACKLOG", "address_of", "checked_host", "is_loopback", "listen_tcp", "listen_unix"]

# A sale begins with everybody connecting in the same second.
BACKLOG: Final = 4096


def checked_host(host: str) -> str:
    """An address that can be bound, from what people write. Raises InvalidInput."""
    try:
        ip_address(_numeric(host))
    except ValueError:
        raise InvalidInput(
            "host",
            f"{host!r} is not an address",
            "write 127.0.0.1, ::1, or another IP address of this machine (0.0.0.0 is all of them)",
        ) from None
    return _numeric(host)


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach it."""
    try:
        return ip_address(_numeric(host)).is_loopback
    except ValueError:
        return False


def listen_tcp(host: str, port: int) -> socket.socket:
    """Listens on an address; port 0 lets the system choose. Raises OSError."""
    host = checked_host(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Not socket.create_server: it would let "::" take IPv4 connections, or not, by the system's
    # mood.
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        return _listening(sock)
    except BaseException:
        sock.close()
        raise


def listen_unix(path: str | Path) -> socket.socket:
    """Listens on a unix socket, whose mode is what the umask leaves. Takes the place of a socket
    that a crash left behind. Raises OSError."""
    path = str(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_abandoned(path):
            os.unlink(path)  # noqa: PTH108 - a text that may be no path is bind's to refuse
        sock.bind(path)
        return _listening(sock)
    except BaseException:
        sock.close()
        raise


def address_of(sock: socket.socket) -> str:
    """What a client connects to: ``http://127.0.0.1:8000`` or ``unix:/run/seckill/intake.sock``."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listening(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    sock.listen(BACKLOG)
    return sock


def _is_abandoned(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116 - as above
            return False
    except (OSError, ValueError):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.settimeout(1.0)
        try:
            knock.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _numeric(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host
