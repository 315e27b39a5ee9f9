"""What a Redis URL may say, and that no message about one repeats a password."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection

from seckill.address import Address, read_address, spoken
from seckill.errors import InvalidInput

pytestmark = pytest.mark.once


def problem_of(url: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_address(url)
    assert caught.value.field == "url"
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "node", "options"),
    [
        ("redis://", ("localhost", 6379), {}),
        ("redis://h", ("h", 6379), {}),
        ("redis://h:7000/3", ("h", 7000), {"db": 3}),
        ("redis://h?db=2&client_name=a@b", ("h", 6379), {"db": 2, "client_name": "a@b"}),
        ("redis://:p%40%2F@h", ("h", 6379), {"password": "p@/"}),
        ("redis://mall:p@[::1]:7000", ("::1", 7000), {"username": "mall", "password": "p"}),
        ("redis://h?username=mall&password=p", ("h", 6379), {"username": "mall", "password": "p"}),
        ("unix:///run/redis.sock?db=1", ("/run/redis.sock", 0), {"db": 1}),
        ("unix://mall:p@/r.sock", ("/r.sock", 0), {"username": "mall", "password": "p"}),
    ],
)
def test_one_server(url: str, node: tuple[str, int], options: dict[str, object]) -> None:
    address = read_address(url)
    kind = Connection if node[1] else UnixDomainSocketConnection
    assert (address.kind, address.nodes) == ("single", (node,))
    assert address.options == {"connection_class": kind, **options}


@pytest.mark.parametrize(
    ("url", "nodes", "name", "options"),
    [
        ("redis+sentinel://h/sale", [("h", 26379)], "sale", {}),
        ("redis+sentinel://h/sale/", [("h", 26379)], "sale", {}),
        ("redis+sentinel://a:3,[::1]:2/sale/3", [("a", 3), ("::1", 2)], "sale", {"db": 3}),
        ("redis+sentinel://:p@h/sale", [("h", 26379)], "sale", {"password": "p"}),
        ("redis+sentinel://a,a,b/%E7%A7%92?db=4", [("a", 26379), ("b", 26379)], "秒", {"db": 4}),
    ],
)
def test_sentinels(url: str, nodes: list[object], name: str, options: dict[str, object]) -> None:
    address = read_address(url)
    assert (address.kind, list(address.nodes)) == ("sentinel", nodes)
    assert address.master_name == name
    assert address.options == {"connection_class": Connection, **options}
    assert address.sentinel_options == {"connection_class": Connection}


def test_the_sentinels_have_users_of_their_own(tmp_path: Path) -> None:
    for name in ("mall", "watch"):
        (tmp_path / name).write_text(f"{name}'s password\n")
    own = f"sentinel_username=w&sentinel_password_file={tmp_path}/watch&client_name=engine"
    url = f"redis+sentinel://mall@h/sale/2?password_file={tmp_path}/mall&{own}"
    address = read_address(url)
    assert address.options == {
        "connection_class": Connection,
        "username": "mall",
        "password": "mall's password",
        "client_name": "engine",
        "db": 2,
    }
    assert address.sentinel_options == {
        "connection_class": Connection,
        "username": "w",
        "password": "watch's password",
        "client_name": "engine",
    }
    assert "password" not in repr(address)


def test_a_cluster() -> None:
    address = read_address("redis+cluster://mall:p%2C%40@a,b:7000,[fe80::1%25eth0]:7001/")
    assert address.kind == "cluster"
    assert address.nodes == (("a", 6379), ("b", 7000), ("fe80::1%eth0", 7001))
    assert {"password": "p,@"}.items() <= address.options.items()
    assert [spoken(node) for node in address.nodes[1:]] == ["b:7000", "[fe80::1%eth0]:7001"]


@pytest.mark.parametrize(
    "url", ["rediss://h", "rediss+sentinel://h/sale", "rediss+cluster://h", "rediss://h?password=p"]
)
def test_tls_checks_who_answers_unless_told_otherwise(url: str) -> None:
    address = read_address(url)
    assert address.options["connection_class"] is SSLConnection
    assert (address.tls.get().check_hostname, address.tls.get().verify_mode.name) == (
        True,
        "CERT_REQUIRED",
    )
    if address.kind == "sentinel":
        assert address.sentinel_options["connection_class"] is SSLConnection
    more = "&" if "?" in url else "?"
    lax = read_address(f"{url}{more}ssl_cert_reqs=none")
    assert lax.tls.get().verify_mode.name == "CERT_NONE"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "'' is not a Redis URL; write redis://host:6379/0, rediss://"),
        ("127.0.0.1:6379", "'127.0.0.1:6379' is not a Redis URL"),
        ("http://h", "'http://h' is not a Redis URL"),
        ("redis+sentinels://h/sale", "is not a Redis URL"),
        ("redis://h:port", "its host or port can't be read"),
        ("redis://h:70000", "its host or port can't be read"),
        ("redis://[bold]", "its host or port can't be read"),
        ("redis://h/sale", "'/sale' is not a database; write its number"),
        ("unix://run/redis.sock", "its path can't be told; write unix:///path/to/socket"),
        ("redis://h?db=x", "Invalid value for"),
        ("redis://h/0#x", "it has a # in it"),
        ("redis://h?socket_timeout=1", "'socket_timeout' can't be set in a URL; write one of cli"),
        ("redis://h?sentinel_username=u", "'sentinel_username' can't be set"),
        ("redis://h?ssl_ca_certs=/x", "ssl_ca_certs: only with TLS; write rediss://"),
        ("unix:///s?ssl_keyfile=/x", "ssl_keyfile: only with TLS"),
        ("rediss://h?ssl_ca_certs=/nowhere", "ssl_ca_certs can't be used: No such file"),
        (
            "rediss://h?ssl_cert_reqs=maybe",
            "ssl_cert_reqs is none of its words; write none",
        ),
        ("redis://:p@h?password_file=/x", "password_file /x cannot be read: No such file"),
        ("redis+sentinel://h", "the name of the master is missing"),
        ("redis+sentinel://h/", "the name of the master is missing"),
        ("redis+sentinel://h/sale/x", "the name of the master is missing, or"),
        ("redis+sentinel:///sale", "its hosts can't be read; write them as host:port"),
        ("redis+sentinel://a,,b/sale", "its hosts can't be read"),
        ("redis+sentinel://a:0/sale", "its hosts can't be read"),
        ("redis+sentinel://a:x/sale", "its hosts can't be read"),
        ("redis+sentinel://::1/sale", "its hosts can't be read"),
        ("redis+sentinel://h/sale?sentinel_username=u", "add sentinel_password_file=PATH"),
        ("redis+cluster://h/1", "a cluster has one database only; leave its number out"),
        ("redis+cluster://h?db=0", "a cluster has one database only"),
        ("redis+cluster://h?sentinel_username=u", "'sentinel_username' can't be set"),
        ("redis+cluster://h:99999", "its hosts can't be read"),
    ],
)
def test_what_can_not_be_read(url: str, text: str) -> None:
    assert text in problem_of(url)


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "is empty"), (b"\n\n", "is empty"), (b"\xff\xfe", "is not UTF-8")],
)
def test_files_without_a_password(tmp_path: Path, content: bytes, text: str) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    assert f"password_file {file} {text}" in problem_of(f"redis://h?password_file={file}")


def test_a_password_stands_in_one_place(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(" a password\r\n")
    options = read_address(f"redis://h?password_file={file}").options
    assert {"password": " a password"}.items() <= options.items()
    assert "leave one of them out" in problem_of(f"redis://:p@h?password_file={file}")


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command")
def test_nobody_is_asked_for_the_password_of_a_key(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = f"openssl req -x509 -newkey rsa:2048 -passout pass:secret -keyout {key} -out {cert}"
    subprocess.run([*made.split(), "-subj", "/CN=x"], check=True, capture_output=True)
    url = f"rediss://h?ssl_keyfile={key}&ssl_certfile={cert}"
    assert read_address(f"{url}&ssl_password=secret").tls is not None
    assert "ssl_certfile, ssl_keyfile can't be used: one of them is refused" in problem_of(url)
    assert "can't be used" in problem_of(f"rediss://h?ssl_keyfile={key}&ssl_password=secret")
    assert "can't be used" in problem_of(f"{url}&ssl_password=wrong")


# -- passwords ------------------------------------------------------------------------------------

FRONTS = ("redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+cluster://", "http://")
BACKS = ("h", "h/0", "h:x", "h/x", "h/sale", "h/sale/x", "h?x=1", "h?db=x", "h:99999", "", "/s")
words = st.text("@:/?#[]%&=, +\\'\"Aa1é秒", max_size=4)


@given(st.sampled_from(FRONTS), words, words, st.sampled_from(BACKS), st.booleans())
@example("redis://", "", "&", "h", True)
@example("redis://", "", "/", "h", False)
@example("redis://", "1", "?", "h", False)
@example("redis+sentinel://", "1", "/", "h", False)
@example("unix://", "", "@/", "h", False)
@example("unix://", "/", "", "/s", False)
def test_no_message_repeats_a_password(
    front: str, before: str, between: str, back: str, in_query: bool
) -> None:
    parts = ("Zq7Wx", "Kv9Pm")
    password = before + between.join(parts)
    place = f"?password={password}" if in_query else ""
    login = "" if in_query else f"u:{password}@"
    try:
        address = read_address(f"{front}{login}{back}{place}")
    except InvalidInput as error:
        said = str(error)
    else:
        said = f"{address!r} {[spoken(node) for node in address.nodes]} {address.master_name}"
    assert not [part for part in parts if part in said]


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_user_and_password_can_be_written(user: str, password: str) -> None:
    try:
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    except UnicodeEncodeError:
        return  # A lone surrogate is no text.

    def login_of(address: Address) -> tuple[str, str]:
        return address.options["username"], address.options["password"]

    for rest in ("redis://{}@h/1", "redis+sentinel://{}@h,i/sale/1", "redis+cluster://{}@h,i"):
        assert login_of(read_address(rest.format(login))) == (user, password)
