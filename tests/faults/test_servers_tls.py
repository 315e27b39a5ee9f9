"""TLS and users: a server, a sentinel and a cluster's node behind an end of TLS that does not know
Redis, as a proxy of a managed service would be. Not every server can speak TLS itself."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import redis

from seckill.errors import RedisUnavailable
from seckill.servers import Servers
from tests.faults.topologies import HOST, PATIENCE_S, SERVICE, Node

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command"),
]

NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, and keys and certificates that it has signed: of ``server``, which is
    127.0.0.1, ``stranger``, which is some other server, and ``engine``."""
    folder = tmp_path_factory.mktemp("certs")

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)

    openssl(f"req -x509 {NEW_KEY} -keyout ca.key -out ca.pem -subj /CN=CA")
    for name, alternative in {
        "server": f"IP:{HOST}",
        "stranger": "IP:192.0.2.1",
        "engine": "DNS:engine",
    }.items():
        openssl(
            f"req -x509 {NEW_KEY} -CA ca.pem -CAkey ca.key -keyout {name}.key -out {name}.pem"
            f" -subj /CN={name} -addext subjectAltName={alternative}"
            " -addext basicConstraints=critical,CA:FALSE"
        )
    return folder


@asynccontextmanager
async def tls_end(port: int, certs: Path, name: str = "server") -> AsyncIterator[int]:
    """A port that speaks TLS to whoever has a certificate of the same CA, and leads to this one."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certs / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certs / f"{name}.pem", certs / f"{name}.key")
    serving: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving[asyncio.current_task()] = writer
        to_reader, to_writer = await asyncio.open_connection(HOST, port)
        pumps = [pump(reader, to_writer), pump(to_reader, writer)]
        tasks = [asyncio.create_task(each) for each in pumps]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, to_writer):
            end.transport.abort()
        # Either pump has met an end by now, or does so at once.
        await asyncio.gather(*tasks, return_exceptions=True)
        del serving[asyncio.current_task()]

    listener = await asyncio.start_server(serve, HOST, 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        async with asyncio.timeout(PATIENCE_S):
            while serving:
                for writer in serving.values():
                    writer.transport.abort()
                # Also until a socket that was aborted is closed, which is in the loop's next round.
                await asyncio.sleep(0.01)


@asynccontextmanager
async def servers_of(url: str) -> AsyncIterator[Servers]:
    servers = Servers(url, connections=4, timeout_s=None)
    try:
        yield servers
    finally:
        await servers.aclose()


def trusting(certs: Path) -> str:
    return (
        f"ssl_ca_certs={certs}/ca.pem&ssl_certfile={certs}/engine.pem"
        f"&ssl_keyfile={certs}/engine.key"
    )


def add_user(node: Node, folder: Path) -> str:
    """Lets nobody in but a user of ours, and returns the option for its password."""
    file = folder / "password"
    file.write_text("it's @ secret\n")
    node.ask("ACL", "SETUSER", "mall", "on", ">it's @ secret", "~*", "&*", "+@all")
    node.ask("ACL", "SETUSER", "default", "off")
    return f"password_file={file}"


async def test_a_server_and_its_user(tmp_path: Path, certs: Path) -> None:
    async with AsyncExitStack() as stack:
        node = stack.enter_context(Node(tmp_path / "node"))
        password = add_user(node, tmp_path)
        port = await stack.enter_async_context(tls_end(node.port, certs))
        stranger = await stack.enter_async_context(tls_end(node.port, certs, "stranger"))
        ours, lax = trusting(certs), f"{trusting(certs)}&ssl_check_hostname=no"

        async def ping(url: str) -> bool:
            async with servers_of(url) as servers:
                await servers.look()
                return bool(await servers.client("k").ping())

        assert await ping(f"rediss://mall@{HOST}:{port}?{password}&{ours}")
        assert await ping(f"rediss://mall:it's%20%40%20secret@{HOST}:{port}?{ours}")
        assert await ping(f"rediss://mall@{HOST}:{stranger}?{password}&{lax}")
        for wrong, error in {
            f"rediss://mall:it's@{HOST}:{port}?{ours}": "invalid username-password|WRONGPASS",
            f"rediss://{HOST}:{port}?{ours}": "NOAUTH|[Aa]uthentication",
            f"rediss://mall@{HOST}:{port}?{password}": "self.signed|unable to get local issuer",
            f"rediss://mall@{HOST}:{stranger}?{password}&{ours}": "IP address mismatch",
        }.items():
            with pytest.raises(redis.RedisError, match=error) as caught:
                await ping(wrong)
            assert "secret" not in str(caught.value)


async def test_a_sentinel_and_who_it_names(tmp_path: Path, certs: Path) -> None:
    async with AsyncExitStack() as stack:
        node = stack.enter_context(Node(tmp_path / "node"))
        sentinel = stack.enter_context(
            Node(tmp_path / "sentinel", {"requirepass": "watch"}, sentinel=True)
        )
        password = add_user(node, tmp_path)
        (tmp_path / "own").write_text("watch")
        port = await stack.enter_async_context(tls_end(node.port, certs))
        # To this sentinel that is a dead master, with nobody to take its place.
        sentinel.ask("SENTINEL", "MONITOR", SERVICE, HOST, port, 2)
        asked = await stack.enter_async_context(tls_end(sentinel.port, certs))
        url = f"rediss+sentinel://mall@{HOST}:{asked}/{SERVICE}/2?{password}&{trusting(certs)}"
        async with servers_of(f"{url}&sentinel_password_file={tmp_path}/own") as servers:
            await servers.look()
            assert servers.address("k") == f"{HOST}:{port}"
            await servers.client("k").set("k", "v")
            assert [*await servers.client("k").info("keyspace")] == ["db2"]
        async with servers_of(url) as servers:
            with pytest.raises(
                RedisUnavailable, match=r"(NOAUTH|[Aa]uthentication).*; url: .*sentinel_pa"
            ):
                await servers.look()
        unknown = url.replace(f"/{SERVICE}/", "/other/")
        async with servers_of(f"{unknown}&sentinel_password_file={tmp_path}/own") as servers:
            with pytest.raises(RedisUnavailable, match="No such master"):
                await servers.look()


async def test_a_node_of_a_cluster(tmp_path: Path, certs: Path) -> None:
    async with AsyncExitStack() as stack:
        node = stack.enter_context(Node(tmp_path / "node", {"cluster-enabled": "yes"}))
        port = await stack.enter_async_context(tls_end(node.port, certs))
        node.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        node.ask("CONFIG", "SET", "cluster-announce-port", port)
        password = add_user(node, tmp_path)
        url = f"rediss+cluster://mall@{HOST}:{port}?{password}&{trusting(certs)}"
        async with servers_of(url) as servers:
            await servers.look()
            assert servers.address("k") == f"{HOST}:{port}"
            assert await servers.client("k").ping()
