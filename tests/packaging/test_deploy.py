"""What lies in deploy/ is in order: its linters have nothing to say, and with nginx before two
intakes, as docs/deploy.md sets them up, nobody notices that they are restarted. The guide's
commands run.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest
import typer

from seckill.cli.app import app
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.sale import Sale
from seckill.server.load import load
from seckill.server.openapi import every_kind
from seckill.verify import verify
from tests.databases import free_port
from tests.support import make_sale
from tests.web.processes import workers_of

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "seckill@.service"
CONTAINERFILE = DEPLOY / "Containerfile"
NGINX = DEPLOY / "nginx.conf"
EXAMPLE = DEPLOY / "seckill.example.toml"
GUIDE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
SECRET = "0123456789abcdef" * 3
KEY = "sk_" + "k" * 40


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")


# -- linters ----------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit of the first instance, with a program that is there."""
    needs("systemd-analyze")
    text = UNIT.read_text()
    assert text.count("/opt/seckill/bin/seckill ") == 1
    path = tmp_path / "seckill@1.service"
    path.write_text(text.replace("/opt/seckill/bin/seckill", sys.executable))
    return path


def test_systemd_understands_the_unit(unit: Path) -> None:
    # It only warns of what it does not know.
    assert run("systemd-analyze", "verify", unit) == ""


def test_the_unit_is_confined(unit: Path) -> None:
    """systemd's own measure: 10 is a service without any protection, below 2 is "OK"."""
    run("systemd-analyze", "security", "--offline=yes", "--threshold=20", unit)


def test_what_the_unit_starts(tmp_path: Path) -> None:
    command = re.search(r"(?m)^ExecStart=\S+/seckill (.*)$", UNIT.read_text())
    assert command
    words = shlex.split(command[1].replace("%i", "1"))
    assert understood(words)
    # The runtime directory is where its socket is to be, and what nginx is told.
    assert "RuntimeDirectory=seckill/%i\n" in UNIT.read_text()
    assert words[words.index("--unix") + 1] == "/run/seckill/1/intake.sock"
    sockets = ["/run/seckill/1/intake.sock", "/run/seckill/2/intake.sock"]
    assert re.findall(r"server unix:(\S+)", NGINX.read_text()) == sockets
    # Each is scraped by a port of its own.
    assert re.findall(r"proxy_pass http://unix:(\S+);", NGINX.read_text()) == sockets


def test_hadolint() -> None:
    needs("hadolint")
    assert run("hadolint", CONTAINERFILE) == ""


def test_the_container() -> None:
    """Not root; images by name, without a registry's host; and it gets what the wheel needs."""
    text = CONTAINERFILE.read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] != "#"]
    for instruction, rest in lines:
        if instruction == "FROM":
            assert re.fullmatch(r"[a-z]+:[\w.-]+( AS \w+)?", rest)
    users = [rest for instruction, rest in lines if instruction == "USER"]
    assert users == ["10001:10001"]
    commands = {name: json.loads(rest) for name, rest in lines if name in ("ENTRYPOINT", "CMD")}
    assert commands["ENTRYPOINT"] == ["seckill"]
    assert understood(commands["CMD"])
    kept = set(re.findall(r"(?m)^!(\S+)$", (DEPLOY / "Containerfile.dockerignore").read_text()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = {path.split("/")[0] for path in project["tool"]["setuptools"]["package-dir"].values()}
    files = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    assert kept == folders | files
    assert all((ROOT / name).exists() for name in kept)


def understood(words: list[str]) -> bool:
    """Whether the command line takes these words; nothing is run."""
    command = typer.main.get_command(app)
    context = command.make_context("seckill", list(words), resilient_parsing=False)
    while words and hasattr(command, "resolve_command"):
        name, found, rest = command.resolve_command(context, list(words))
        assert found is not None, name
        context = found.make_context(name, list(rest), parent=context)
        command, words = found, list(rest)
    return True


class Nginx:
    """The example, made to run here: other ports and paths, our certificate, one process."""

    def __init__(self, folder: Path, sockets: list[Path]) -> None:
        self.folder = folder
        ports: set[int] = set()
        while len(ports) < 4:
            ports.add(free_port())
        self.port, self.backend, *self.metrics = ports
        needs("openssl")
        pem, key = folder / "cert.pem", folder / "cert.key"
        names = "/CN=mall.example.com"
        run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", names, "-keyout", key, "-out", pem),
        )
        site = NGINX.read_text()
        for written, here in {
            "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
            "listen [::]:443 ssl;": "",
            "listen 127.0.0.1:8000;": f"listen 127.0.0.1:{self.backend};",
            "listen 127.0.0.1:8001;": f"listen 127.0.0.1:{self.metrics[0]};",
            "listen 127.0.0.1:8002;": f"listen 127.0.0.1:{self.metrics[1]};",
            "/etc/nginx/tls/mall.example.com.pem": str(pem),
            "/etc/nginx/tls/mall.example.com.key": str(key),
            "server unix:/run/seckill/1/intake.sock": f"server unix:{sockets[0]}",
            "server unix:/run/seckill/2/intake.sock": f"server unix:{sockets[-1]}",
            "http://unix:/run/seckill/1/intake.sock": f"http://unix:{sockets[0]}",
            "http://unix:/run/seckill/2/intake.sock": f"http://unix:{sockets[-1]}",
        }.items():
            assert site.count(written) == 1, written
            site = site.replace(written, here)
        (folder / "site.conf").write_text(site)
        temporary = "".join(
            f"    {name}_temp_path {folder}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        self.config = folder / "nginx.conf"
        self.config.write_text(
            f"pid {folder}/nginx.pid;\nerror_log {folder}/error.log;\ndaemon off;\n"
            "master_process off;\nevents {}\n"
            f"http {{\n{temporary}    include {folder}/site.conf;\n}}\n"
        )
        # Nothing that anybody has set in the environment may stand in for our configuration.
        self.command = ["nginx", "-p", str(folder), "-e", str(folder / "error.log")]
        self.command += ["-c", str(self.config)]


def test_nginx_understands_its_configuration(tmp_path: Path) -> None:
    needs("nginx")
    nginx = Nginx(tmp_path, [tmp_path / "1", tmp_path / "2"])
    said = run(*nginx.command, "-t")
    assert "test is successful" in said
    assert "warn" not in said


def test_gixy(tmp_path: Path) -> None:
    gixy = shutil.which("gixy") or str(Path(sys.executable).with_name("gixy"))
    needs(gixy)
    nginx = Nginx(tmp_path, [tmp_path / "1", tmp_path / "2"])
    assert "No issues found." in run(gixy, nginx.config)


# -- the whole, running -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, redis_server: EmbeddedServer) -> Path:
    """/etc/seckill as the guide fills it, with a key that is known here."""
    secret = tmp_path / "user-tokens"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    text = EXAMPLE.read_text(encoding="utf-8")
    digest = sha256(KEY.encode()).hexdigest()
    for written, here in {
        "/etc/seckill/user-tokens": str(secret),
        "redis://127.0.0.1:6379/0": redis_server.url,
        "0" * 64: digest,
    }.items():
        assert text.count(f'"{written}"') + text.count(f':{written}"') == 1, written
        text = text.replace(written, here)
    config = tmp_path / "seckill.toml"
    config.write_text(text, encoding="utf-8")
    config.chmod(0o600)
    return tmp_path


def test_the_example_is_in_order(folder: Path) -> None:
    settings = load(folder / "seckill.toml", {})
    assert settings.users.secrets[0].get_secret_value() == SECRET
    assert settings.server.trusted_proxies == ("unix",)


class Intake:
    """One instance of the unit."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.socket = folder / f"{name}.sock"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, **env: str) -> None:
        """Returns when systemd would: at READY=1."""
        notify = self.folder / "notify"
        notify.unlink(missing_ok=True)
        clean = {n: v for n, v in os.environ.items() if not n.startswith("SECKILL_")}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(notify))
            systemd.setblocking(False)
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "seckill.cli", "serve", "--durability", "memory"),
                *("--config", str(self.folder / "seckill.toml"), "--unix", str(self.socket)),
                stdout=asyncio.subprocess.DEVNULL,
                env=clean | env | {"NOTIFY_SOCKET": str(notify)},
            )
            async with asyncio.timeout(60):
                said = await asyncio.get_running_loop().sock_recv(systemd, 1000)
        assert said.startswith(b"READY=1")

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await self.process.wait() == 0


class Mall:
    """nginx before two intakes, and a client of nginx's."""

    def __init__(self, session: aiohttp.ClientSession, intakes: list[Intake], nginx: Nginx) -> None:
        self.session = session
        self.intakes = intakes
        self.base = f"https://127.0.0.1:{nginx.port}"
        self.inside = f"http://127.0.0.1:{nginx.backend}"
        self.metrics = [f"http://127.0.0.1:{port}/metrics" for port in nginx.metrics]

    async def order(self, sale: Sale, buyer: str, key: str, **headers: str) -> int:
        headers |= {
            "Authorization": f"Bearer {KEY}",
            "Seckill-Buyer": buyer,
            "Idempotency-Key": key,
        }
        body = {"items": [{"sku": "a", "quantity": 1}]}
        path = f"{self.base}/v1/sales/{sale.id}/orders"
        async with self.session.post(path, json=body, headers=headers) as response:
            await response.read()
            return response.status


@asynccontextmanager
async def mall(folder: Path, **env: str) -> AsyncIterator[Mall]:
    needs("nginx")
    needs("openssl")  # before anything is started
    intakes = [Intake(folder, "1"), Intake(folder, "2")]
    async with AsyncExitStack() as stack:
        for intake in intakes:
            stack.push_async_callback(intake.stop)
            await intake.start(**env)
        nginx = Nginx(folder, [intake.socket for intake in intakes])
        process = await asyncio.create_subprocess_exec(*nginx.command)

        async def quit_nginx() -> None:
            process.send_signal(signal.SIGQUIT)
            await process.wait()

        stack.push_async_callback(quit_nginx)
        trust = ssl.create_default_context(cafile=str(folder / "cert.pem"))
        trust.check_hostname = False
        connector = aiohttp.TCPConnector(ssl=trust)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        there = Mall(session, intakes, nginx)
        async with asyncio.timeout(60):
            while True:
                try:
                    async with session.get(f"{there.base}/v1/time") as response:
                        assert response.status == 200
                        break
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.05)
        yield there


@pytest.fixture
async def sale(redis_server: EmbeddedServer) -> Sale:
    sale = make_sale({"a": 1_000_000})
    async with Engine(redis_server.url, durability="memory", sweep_ms=0) as engine:
        assert (await engine.create(sale)).ok
        assert (await engine.open(sale.id)).ok
    return sale


@pytest.mark.slow
async def test_both_intakes_are_restarted_and_nobody_notices(
    folder: Path, sale: Sale, redis_server: EmbeddedServer
) -> None:
    answers: list[int] = []
    stopping = False
    async with mall(folder) as there:

        async def buy(buyer: str) -> None:
            number = 0
            while not stopping:
                number += 1
                answers.append(await there.order(sale, buyer, f"k{number}"))

        buyers = [asyncio.create_task(buy(f"b{n}")) for n in range(32)]
        for intake in there.intakes:
            before = len(answers)
            await intake.stop()
            await intake.start()
            # It is used again before the other one goes.
            assert len(answers) > before
            await asyncio.sleep(0.5)
        assert set(answers) == {201}
        # Nor that all workers of one are killed: nginx asks the other one, with the same key.
        process = there.intakes[0].process
        assert process is not None
        for worker in workers_of(process.pid):
            os.kill(worker, signal.SIGKILL)
        await asyncio.sleep(1)
        stopping = True
        await asyncio.gather(*buyers)
        assert set(answers) <= {200, 201}
    async with Engine(redis_server.url, durability="memory", sweep_ms=0) as engine:
        assert (await engine.snapshot(sale.id)).orders == len(answers)
        assert (await verify(engine, sale.id)).violations == ()


@pytest.mark.slow
async def test_what_passes_nginx(folder: Path, sale: Sale) -> None:
    """Nobody gets a new address by claiming one, and the mall's own business stays inside."""
    limits = {"SECKILL_LIMITS__ADDRESS_PER_S": "0.001", "SECKILL_LIMITS__ADDRESS_BURST": "2"}
    async with mall(folder, SECKILL_SERVER__WORKERS="1", **limits) as there:
        claims = (f"10.1.2.{number}" for number in range(20))
        said = [
            await there.order(sale, f"x{claim}", "k", **{"X-Forwarded-For": claim})
            for claim in claims
        ]
        # Two intakes, two each; our look at the clock was one of them.
        assert set(said) == {201, 429}
        assert said.count(201) <= 4
        for path in ("/metrics", "/readyz", f"/v1/admin/sales/{sale.id}/report", "/"):
            headers = {"Authorization": f"Bearer {KEY}"}
            async with there.session.get(there.base + path, headers=headers) as response:
                assert response.status == 404
                assert "nginx" in await response.text()
        big = b'{"items": "' + b"x" * 70_000 + b'"}'
        path = f"{there.base}/v1/sales/{sale.id}/orders"
        async with there.session.post(path, data=big) as response:
            assert response.status == 413
            await is_problem(response, "body_too_large")


async def is_problem(response: aiohttp.ClientResponse, code: str) -> None:
    """As an intake would answer, though it is nginx that does."""
    assert response.content_type == "application/problem+json"
    said = await response.json()
    assert (said["code"], said["status"]) == (code, response.status)
    kind = next(kind for kind in every_kind() if kind.code == code)
    assert (said["type"], said["title"]) == (f"urn:seckill:problem:{code}", kind.title)


@pytest.mark.slow
async def test_how_the_malls_own_programs_get_in(folder: Path, sale: Sale) -> None:
    """The backend by one port, Prometheus by one for each intake. When no intake is there, whoever
    asks is told to come again, in words that a program reads."""
    async with mall(folder, SECKILL_SERVER__WORKERS="1") as there:
        headers = {"Authorization": f"Bearer {KEY}"}
        orders = f"{there.inside}/v1/sales/{sale.id}/orders:batch"
        buyers = [
            {
                "buyer": f"i{n}",
                "key": "k",
                "items": [{"sku": "a", "quantity": 1}],
                "attrs": "x" * 99,
            }
            for n in range(500)
        ]
        # More than 64 KiB, which only buyers are held to.
        async with there.session.post(orders, json={"orders": buyers}, headers=headers) as response:
            assert response.status == 200
            assert {answer["status"] for answer in (await response.json())["answers"]} == {201}
        big = BytesIO(b"x" * 1_100_000)
        async with there.session.post(orders, data=big, headers=headers) as response:
            assert response.status == 413
            await is_problem(response, "body_too_large")
        report = f"{there.inside}/v1/admin/sales/{sale.id}/report"
        # The intake itself says so, of a key without the scope.
        for url in (report, *there.metrics):
            async with there.session.get(url, headers=headers) as response:
                assert (await response.json())["code"] == "forbidden"
        async with there.session.get(there.inside + "/readyz") as response:
            assert response.status == 200
        async with there.session.get(there.inside + "/metrics", headers=headers) as response:
            assert response.status == 404
        for intake in there.intakes:
            await intake.stop()
        for base in (there.base, there.inside):
            path = f"{base}/v1/sales/{sale.id}/orders"
            async with there.session.post(path, json={}, headers=headers) as response:
                assert response.status == 503
                assert response.headers["Retry-After"] == "1"
                await is_problem(response, "outcome_unknown")


# -- the guide --------------------------------------------------------------------------------


def commands() -> list[tuple[str, str]]:
    """Every command of the guide's console blocks, with what it printed."""
    found = []
    for block in re.findall(r"(?ms)^```console\n(.*?)^```$", GUIDE):
        for part in re.split(r"(?m)^\$ ", block)[1:]:
            command, _, printed = part.partition("\n")
            found.append((command, printed))
    assert found
    return found


@pytest.mark.parametrize(("command", "printed"), commands(), ids=lambda text: str(text)[:40])
def test_the_guides_commands(command: str, printed: str, folder: Path) -> None:
    words = shlex.split(command.replace("/etc/seckill", str(folder)))
    assert words.pop(0) == "seckill"
    if words[0] == "doctor":
        assert understood(words)
        return
    said = run(sys.executable, "-m", "seckill.cli", *words).replace(str(folder), "/etc/seckill")
    lines = [
        r"(?:.*\n)*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n"
        for line in printed.strip().splitlines()
    ]
    assert re.fullmatch("".join(lines), said), said


def test_every_command_is_understood() -> None:
    text = re.sub(r"(?ms)^```.*?^```$", "", GUIDE)
    spoken = re.findall(r"`(seckill [^`]*)`", text)
    assert spoken
    for command in spoken:
        assert understood(shlex.split(command)[1:]), command


def test_every_file_and_link_is_there() -> None:
    for name in re.findall(r"deploy/([\w@.]+)", GUIDE):
        assert (DEPLOY / name).is_file(), name
    for page, anchor in re.findall(r"\]\(([\w.]*)#?([\w-]*)\)", GUIDE):
        target = ROOT / "docs" / page
        assert target.is_file(), page
        headings = re.findall(r"(?m)^#+ (.*)$", target.read_text(encoding="utf-8"))
        anchors = [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]
        assert not anchor or anchor in anchors, f"{page}#{anchor}"


def test_the_redis_of_the_guide_is_one_that_is_accepted() -> None:
    """What operations.md asks of a server is what deploy.md sets."""
    block = re.search(r"(?ms)^```ini\n# /etc/redis.*?^```$", GUIDE)
    assert block
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for line in ("appendonly yes", "appendfsync always", "no-appendfsync-on-rewrite no"):
        assert line in block[0]
        assert line in operations
