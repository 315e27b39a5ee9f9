"""Settings from file, environment and options: what wins, and every error at once.

docs/settings.md is made from the model: ``python -m tests.unit.test_load > docs/settings.md``
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel, SecretStr

from seckill.errors import InvalidInput
from seckill.server.describe import dotted, is_secret, names, rows, takes
from seckill.server.load import Loaded, SettingError, SettingsErrors, load, read, wanted
from seckill.server.settings import ApiKey, Settings

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "settings.md"
SECRET = "a-secret-that-must-never-be-shown-anywhere"  # noqa: S105 - of these tests only
HASH = "sha256:" + "0123456789abcdef" * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def a_file(folder: Path, text: str, name: str = "seckill.toml", mode: int = 0o600) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return path


def read_it(
    folder: Path, text: str = "", options: dict[str, tuple[str, Any]] | None = None, **env: str
) -> Loaded:
    return read(a_file(folder, text), env, options)


def errors_of(folder: Path, text: str = "", **env: str) -> list[str]:
    """Every error, without the path of the file."""
    with pytest.raises(SettingsErrors) as raised:
        read_it(folder, text, **env)
    assert SECRET not in str(raised.value)
    return [str(error).replace(f"{folder}/", "") for error in raised.value.errors]


# -- what wins --------------------------------------------------------------------------------


def test_nothing_said_is_the_defaults() -> None:
    assert load(None, {}) == Settings()


def test_options_beat_the_environment_which_beats_the_file(folder: Path) -> None:
    loaded = read_it(
        folder,
        "[server]\nport = 1\nworkers = 2\nmax_in_flight = 3\n",
        {"server.port": ("--port", 7)},
        SECKILL_SERVER__PORT="5",
        SECKILL_SERVER__WORKERS="6",
    )
    server = loaded.settings.server
    assert (server.port, server.workers, server.max_in_flight) == (7, 6, 3)
    assert server.keepalive_s == Settings().server.keepalive_s
    assert loaded.sources == {
        "server.port": "--port",
        "server.workers": "SECKILL_SERVER__WORKERS",
        "server.max_in_flight": str(folder / "seckill.toml"),
    }


def test_every_kind_of_value_in_a_variable() -> None:
    settings = load(
        None,
        {
            "SECKILL_SERVER__HOST": "0.0.0.0",  # noqa: S104 - it is only read
            "SECKILL_SERVER__READ_TIMEOUT_S": "2",
            "SECKILL_SERVER__TRUSTED_PROXIES": '["10.0.0.0/8", "unix"]',
            "SECKILL_REDIS__ALLOW_UNVERIFIED": "true",
            "SECKILL_REDIS__DURABILITY": "memory",
            "SECKILL_USERS__SECRETS": f'["{SECRET}"]',
            "SECKILL_USERS__ISSUER": "123",
            "SECKILL_KEYS": f'[{{"name": "a", "hash": "{HASH}", "scopes": ["admin"]}}]',
        },
    )
    assert settings.server.host == "0.0.0.0"  # noqa: S104 - as above
    assert settings.server.read_timeout_s == 2.0
    assert settings.server.trusted_proxies == ("10.0.0.0/8", "unix")
    assert settings.redis.allow_unverified is True
    assert settings.redis.durability == "memory"
    assert settings.users.secrets == (SecretStr(SECRET),)
    assert settings.users.issuer == "123"
    assert settings.keys == (ApiKey(name="a", hash=HASH, scopes=("admin",)),)


@pytest.mark.parametrize(
    ("text", "env", "server"),
    [
        ("", {"SECKILL_REDIS": "redis://a"}, ("redis://a", "")),
        ("", {"SECKILL_DATA": "d"}, ("", "d")),
        ("", {"SECKILL_DATA": "d", "SECKILL_REDIS": "redis://a"}, ("redis://a", "")),
        ("", {"SECKILL_DATA": "d", "SECKILL_REDIS": ""}, ("", "d")),
        ('[redis]\nurl = "redis://f"\n', {"SECKILL_DATA": "d"}, ("", "d")),
        ('[redis]\ndata = "f"\n', {"SECKILL_REDIS__URL": "redis://a"}, ("redis://a", "")),
        ('[redis]\ndata = "f"\n', {}, ("", "f")),
    ],
)
def test_a_server_replaces_the_one_below(
    folder: Path, text: str, env: dict[str, str], server: tuple[str, str]
) -> None:
    loaded = read_it(folder, text, **env)
    redis = loaded.settings.redis
    assert (redis.url, redis.data) == server
    assert len(loaded.sources) == 1


def test_an_option_replaces_the_server_of_the_environment(folder: Path) -> None:
    option = {"redis.data": ("--embedded", "dir")}
    redis = read_it(folder, "", option, SECKILL_REDIS="redis://a").settings.redis
    assert (redis.url, redis.data) == ("", "dir")


def test_the_environment_names_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_file(folder, "[server]\nport = 1\n")
    assert load(None, {"SECKILL_CONFIG": str(path)}).server.port == 1
    other = a_file(folder, "[server]\nport = 2\n", "other.toml")
    assert load(other, {"SECKILL_CONFIG": str(path)}).server.port == 2
    monkeypatch.setenv("SECKILL_CONFIG", str(path))
    assert load(None).server.port == 1


# -- errors -----------------------------------------------------------------------------------


def test_all_errors_at_once(folder: Path) -> None:
    text = f"""
        port = 80
        [serverr]
        [server]
        prot = 80
        port = "8000"
        workers = 0
        read_timeout_s = nan
        host = "example.com"
        trusted_proxies = ["10.0.0.0/8", "somewhere"]
        [redis]
        url = "redis://h/0"
        data = "d"
        durability = "fsync"
        [users]
        secrets = ["{SECRET}", "{SECRET[:12]}"]
        secret = "{SECRET}"
        jwks_url = "http://mall.example/keys"
        [[keys]]
        nmae = "a"
        hash = "{HASH[:20]}"
        scopes = []
        [gate]
        secrets = "{SECRET}"
        work_bits = true
    """
    env = {
        "SECKILL_SERVER__PROT": "1",
        "SECKILL_PORT": "8000",
        "SECKILL_REDDIS": "redis://h",
        "SECKILL_LIMITS__BUYER_PER_S": "often",
        "SECKILL_SERVER__CORS_ORIGINS": "https://mall.example",
        "SECKILL_WEBHOOK__SECRETS": SECRET,
    }
    file = "seckill.toml: "
    assert sorted(errors_of(folder, text, **env)) == sorted(
        [
            f"{file}port: is no setting; did you mean server.port?",
            f"{file}serverr: is no setting; did you mean server?",
            f"{file}server.prot: is no setting; did you mean server.port?",
            f'{file}server.port: "8000" is refused; write 0 to 65,535',
            f"{file}server.workers: 0 is refused; write 1 to 64",
            f"{file}server.read_timeout_s: null is refused; write above 0 to 300",
            (
                f"{file}server.host: 'example.com' is not an address; write 127.0.0.1, ::1, or"
                " another IP address of this machine (0.0.0.0 is all of them)"
            ),
            (
                f"{file}server.trusted_proxies[1]: 'somewhere' does not appear to be an IPv4 or"
                ' IPv6 network; write an address, a network such as 10.0.0.0/8, or "unix"'
            ),
            f"{file}redis.url, redis.data: are both given; give one of the two",
            (
                f'{file}redis.durability: \'fsync\' is unknown; pass "aof", "memory" or'
                ' "replicas:N" with N from 1 to 9'
            ),
            (
                f"{file}users.secrets[1]: is 12 bytes long; use at least 32 random bytes:"
                " openssl rand -base64 48"
            ),
            f"{file}users.secret: is no setting; did you mean users.secrets?",
            f"{file}users.jwks_url: is not https; write https://host/path",
            f"{file}keys[0].name: is missing; add it",
            f"{file}keys[0].nmae: is no setting; did you mean keys[0].name?",
            f"{file}keys[0].hash: this is refused; write what `seckill key new` prints",
            f"{file}keys[0].scopes: this is refused; write one or more of backend, admin, metrics",
            f"{file}gate.secrets: this is refused; write a list of secrets, or file:PATH for each",
            f"{file}gate.work_bits: this is refused; write 0 to 32",
            "SECKILL_SERVER__PROT: is no setting; did you mean SECKILL_SERVER__PORT?",
            "SECKILL_PORT: is no setting; did you mean SECKILL_SERVER__PORT?",
            "SECKILL_REDDIS: is no setting; did you mean SECKILL_REDIS?",
            'SECKILL_LIMITS__BUYER_PER_S: "often" is refused; write 0 to 10,000',
            (
                'SECKILL_SERVER__CORS_ORIGINS: "https://mall.example" is refused;'
                ' write a list of texts, as JSON: ["…", "…"]'
            ),
            (
                "SECKILL_WEBHOOK__SECRETS: this is refused;"
                ' write a list of secrets, or file:PATH for each, as JSON: ["…", "…"]'
            ),
        ]
    )


def test_what_only_all_settings_together_tell(folder: Path) -> None:
    """These are checked even where another section has errors."""
    key = f'[[keys]]\nname = "a"\nhash = "{HASH}"\nscopes = ["admin"]\n'
    text = f'[redis]\nurl = "http://h"\n[gate]\nwork_bits = 8\n[log]\nlevel = 5\n{key}{key}'
    found = errors_of(folder, text)
    assert [error.partition(": ")[2].partition(":")[0] for error in found] == [
        "log.level",
        "redis.url",
        "keys",
        "gate.secrets",
    ]


def test_a_password_is_in_no_error(folder: Path) -> None:
    for url in (f"http://u:{SECRET}@h", f"redis://u:{SECRET}@h/db", f"redis://h?password={SECRET}"):
        for text in (f'[redis]\nurl = "{url}"\n', f'[redis]\nurl = ["{url}"]\n'):
            if "?" not in url or "[" in text[8:]:
                assert len(errors_of(folder, text)) == 1


RAW = "sk_0123456789abcdefghijklmnopqrstuvwxyzABCD"
PEM = f"-----BEGIN PUBLIC KEY-----\n{SECRET}\n-----END PUBLIC KEY-----\n"


@pytest.mark.parametrize(
    ("text", "env"),
    [
        (f'[[keys]]\nname = "a"\nhash = "{RAW}"\nscopes = ["admin"]', {}),
        (f'[[keys]]\nname = "{RAW}"\nhash = "{HASH}"\nscopes = ["{RAW}"]', {}),
        (f'keys = "{RAW}"', {}),
        (f'keys = ["{RAW}"]', {}),
        (f'keys = {{a = "{RAW}"}}', {}),
        ("", {"SECKILL_KEYS": RAW}),
        ("", {"SECKILL_KEYS": f'["{RAW}"]'}),
        (f'users = "{RAW}"', {}),
        (f'users = ["{RAW}"]', {}),
        (f'users.leeway_s = "{RAW}"', {}),
        (f'users.issuer = ["{RAW}"]', {}),
        (f'users.jwks_url = "{RAW}"', {}),
        (f'users.key_files = "{RAW}"', {}),
        (f'users.key_files = ["{RAW}"]', {}),
        (f"users.key_files = ['''{PEM}''']", {}),
        (f'users.key_files = ["/{RAW * 10}"]', {}),
        (f"users.secrets = ['''file:{PEM}''']", {}),
        (f'gate = "{RAW}"', {}),
        (f'gate.life_s = "{RAW}"', {}),
        (f'webhook = "{RAW}"', {}),
        (f'webhook.url = ["{RAW}"]', {}),
        (f'webhook.url = "{RAW}"', {}),
        ("", {"SECKILL_WEBHOOK__URL": f"ftp://h/{RAW}"}),
        (f'webhook.url = "https://h/{RAW}"', {}),
    ],
)
def test_what_is_pasted_in_the_wrong_place_is_in_no_error(
    folder: Path, text: str, env: dict[str, str]
) -> None:
    """`errors_of` looks for the other secret, which is in the PEM."""
    said = str(errors_of(folder, text, **env))
    assert RAW[:12] not in said


def test_the_name_of_a_key_is_in_no_error(folder: Path) -> None:
    key = f'[[keys]]\nname = "{RAW[:40]}"\nhash = "{HASH}"\nscopes = ["admin"]\n'
    (error,) = errors_of(folder, key + key)
    assert "keys: hold the same hash twice; write all scopes" in error
    assert RAW[:12] not in error


def test_a_file_that_can_be_one_is_named(folder: Path) -> None:
    (error,) = errors_of(folder, 'users.key_files = ["/nowhere/mall.pem"]')
    assert "users.key_files[0]: /nowhere/mall.pem cannot be read: No such file" in error


@pytest.mark.parametrize(
    "url", ["mall.example/hook", "ftp://mall.example/", "https://", "http://[x"]
)
def test_a_webhook_that_nothing_can_be_sent_to(folder: Path, url: str) -> None:
    (error,) = errors_of(folder, f'webhook = {{url = "{url}", secrets = ["{SECRET}"]}}')
    assert error == (
        "seckill.toml: webhook.url: is not an http or https URL; write https://host/path"
    )


def test_a_webhook_is_signed(folder: Path) -> None:
    (error,) = errors_of(folder, 'webhook.url = "https://mall.example/hook"')
    assert "webhook.secrets: is empty, and webhook.url wants signed deliveries; give" in error
    read_it(folder, f'webhook = {{url = "https://mall.example/hook", secrets = ["{SECRET}"]}}')


def test_what_an_intake_still_wants(folder: Path) -> None:
    """This is no error: it may come from the command line, and the relay does without."""
    keys, server = wanted(read_it(folder, "server.port = 5").settings)
    assert "`seckill key new`" in keys
    assert "--redis URL" in server
    users = f'users.secrets = ["{SECRET}"]\n'
    assert wanted(read_it(folder, users).settings) == (server,)
    assert wanted(read_it(folder, users, SECKILL_DATA="d").settings) == ()
    assert wanted(read_it(folder, "", SECKILL_REDIS="redis://h").settings) == (keys,)


def test_a_variable_of_a_wrong_section_is_known_by_its_name(folder: Path) -> None:
    (error,) = errors_of(folder, "[redis]\nwork_bits = 5\n")
    assert error.endswith("redis.work_bits: is no setting; did you mean gate.work_bits?")


def test_sections_that_are_none(folder: Path) -> None:
    text = 'server = 5\nusers = [1]\nkeys = "k"\n'
    errors = errors_of(folder, text, SECKILL_SERVER__PORT="5", SECKILL_USERS__SECRETS="[1]")
    assert [error.partition("; ")[2] for error in errors] == [
        "write a table",
        "write a table",
        "write a list of tables with name, hash, scopes",
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[server\nport = 1\n", "is not TOML: Expected ']' at the end of a table declaration"),
        (b"\xff", "is not UTF-8"),
        (b"#" * ((1 << 20) + 1), "is larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_none(folder: Path, data: bytes, problem: str) -> None:
    path = folder / "seckill.toml"
    path.write_bytes(data)
    with pytest.raises(SettingsErrors) as raised:
        read(path, {"SECKILL_PORT": "1"})
    # What the environment says is looked at all the same.
    first, second = raised.value.errors
    assert problem in first.problem
    assert first.where == str(path)
    assert second.where == "SECKILL_PORT"


def test_no_such_file(folder: Path) -> None:
    with pytest.raises(SettingsErrors, match="No such file or directory; name a TOML file"):
        load(folder / "nowhere.toml", {})
    with pytest.raises(SettingsErrors, match="cannot be read: Is a directory"):
        load(folder, {})
    with pytest.raises(SettingsErrors, match="cannot be read: no such path"):
        load(Path("a\0b"), {})


def test_one_error_is_an_invalid_input_like_any_other() -> None:
    error = SettingsErrors([SettingError("--port", "70000 is refused", "write 0 to 65,535")])
    assert isinstance(error, InvalidInput)
    assert (error.field, error.problem, error.remedy) == (
        "--port",
        "70000 is refused",
        "write 0 to 65,535",
    )
    assert str(error) == "--port: 70000 is refused; write 0 to 65,535"


def test_variables_that_are_no_settings() -> None:
    """Ours for other things, and what Kubernetes sets for services of such names."""
    fine = {
        "SECKILL_CONFIG": "",
        "SECKILL_KEY": "sk_x",
        "SECKILL_TOKEN": "eyJ",
        "SECKILL_URL": "http://127.0.0.1:8000",
        "SECKILL_SALE": "evening-2026-11-28",
        "SECKILL_REDIS_SERVER": "/usr/bin/redis-server",
        "SECKILL_PORT": "tcp://10.0.0.1:8000",
        "SECKILL_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "SECKILL_PORT_8000_TCP_ADDR": "10.0.0.1",
        "SECKILL_PORT_8000_TCP_PORT": "8000",
        "SECKILL_PORT_8000_TCP_PROTO": "tcp",
        "SECKILL_SERVICE_HOST": "10.0.0.1",
        "SECKILL_SERVICE_PORT": "8000",
        "SECKILL_SERVICE_PORT_HTTP": "8000",
        "SECKILL_REDIS_SERVICE_HOST": "10.0.0.2",
        "SECKILL_REDIS_PORT_6379_TCP_ADDR": "10.0.0.2",
        "SECKILL_REDIS_PORT": "tcp://10.0.0.2:6379",
        "PATH": "/bin",
    }
    assert load(None, fine) == Settings()


# -- secrets ----------------------------------------------------------------------------------


def test_secrets_in_files(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = a_file(folder, f"{SECRET}\n", "secret")
    text = f'[users]\nsecrets = ["file:{path}", "{SECRET}-2"]\n[redis]\nurl = "file:{folder}/url"\n'
    a_file(folder, f"redis://:{SECRET}@h/0\n", "url")
    settings = load(a_file(folder, text), {})
    assert [s.get_secret_value() for s in settings.users.secrets] == [SECRET, f"{SECRET}-2"]
    assert settings.redis.url == f"redis://:{SECRET}@h/0"
    assert caplog.messages == []
    assert SECRET not in repr(settings.users)
    by_environment = load(None, {"SECKILL_USERS__SECRETS": f'["file:{path}"]'})
    assert [s.get_secret_value() for s in by_environment.users.secrets] == [SECRET]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff" * 40, "is not UTF-8"),
        (b"s" * 70_000, "is larger than 65536 bytes"),
        (SECRET[:12].encode(), "is 12 bytes long"),
    ],
)
def test_bad_files_of_secrets(folder: Path, content: bytes | None, problem: str) -> None:
    path = folder / "secret"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    (error,) = errors_of(folder, f'[users]\nsecrets = ["file:{path}"]\n')
    assert "seckill.toml: users.secrets[0]: " in error
    assert problem in error


def test_what_everybody_can_read_is_seen(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = a_file(folder, SECRET, "secret", 0o644)
    by_file = a_file(folder, f'[users]\nsecrets = ["file:{secret}"]\n', mode=0o644)
    (warning,) = read(by_file, {}).warnings
    assert f"users.secrets[0]: everybody on this machine can read {secret}; chmod o-r" in warning
    inline = a_file(folder, f'[users]\nsecrets = ["{SECRET}"]\n', "inline.toml", 0o644)
    (warning,) = read(inline, {}).warnings
    assert f"{inline} holds secrets and everybody" in warning
    password = a_file(folder, '[redis]\nurl = "redis://:p@h"\n', "password.toml", 0o644)
    assert len(read(password, {}).warnings) == 1
    harmless = a_file(folder, '[redis]\nurl = "redis://h"\n', "harmless.toml", 0o644)
    assert read(harmless, {}).warnings == ()
    load(inline, {})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert SECRET not in caplog.text


def test_no_row_shows_a_secret() -> None:
    env = {
        "SECKILL_REDIS": f"redis://u:{SECRET}@h/0",
        "SECKILL_USERS__SECRETS": f'["{SECRET}", "{SECRET}-2"]',
        "SECKILL_KEYS": f'[{{"name": "a", "hash": "{HASH}", "scopes": ["admin", "metrics"]}}]',
        "SECKILL_USERS__JWKS_URL": f"https://u:{SECRET}@login.example/keys?key={SECRET}",
        "SECKILL_WEBHOOK__URL": f"https://u:{SECRET}@mall.example:444/{SECRET}?key={SECRET}",
        "SECKILL_WEBHOOK__SECRETS": f'["{SECRET}"]',
    }
    loaded = read(None, env)
    shown = {row.name: row for row in rows(loaded.settings, loaded.sources)}
    assert SECRET not in str(shown)
    assert shown["redis.url"].value == '"redis://***@h/0"'
    assert shown["users.jwks_url"].value == '"https://***@login.example/keys?…"'
    assert shown["webhook.url"].value == '"https://mall.example:444"'
    assert shown["users.secrets"].value == "2 secrets"
    assert shown["keys"].value == "[a (admin, metrics)]"
    assert shown["redis.url"].source == "SECKILL_REDIS"
    assert shown["server.port"].source == "default"
    assert list(shown) == [
        dotted((section, name)) if name else section for section, name in names()
    ]


def test_what_holds_a_secret_is_known() -> None:
    secret = {f"{s}.{n}" for s, n in names() if n and is_secret((s, n))}
    assert secret == {
        *("redis.url", "ledger.url"),
        *("users.secrets", "gate.secrets", "webhook.secrets"),
    }
    # A mistyped name may stand for one of them.
    assert is_secret(("users", "secretz"))
    assert is_secret(("nothing",))
    assert not is_secret(("keys", 0, "hash"))


# -- the guide --------------------------------------------------------------------------------


INTRODUCTION = """\
# Settings

Every setting of `seckill serve` and `seckill relay`. This page is made from the code:
`python -m tests.unit.test_load > docs/settings.md`.

They come from one TOML file (`--config FILE`, or `SECKILL_CONFIG`) and from the environment, which
wins; options of the command line win over both. `users.issuer` is `issuer` under `[users]` in the
file and `SECKILL_USERS__ISSUER` in the environment, where anything but text is JSON:
`SECKILL_USERS__SECRETS='["file:/run/secrets/users"]'`. `SECKILL_REDIS` and `SECKILL_DATA` are short
for `redis.url` and `redis.data`, and a server that is named there replaces the file's.

All errors are told at once, each with its place and what to write instead, and nothing starts.
`seckill settings` shows what is in force and where it comes from; `seckill settings --check FILE`
only looks for errors. SIGHUP reads everything again, see [Deployment](deploy.md#new-settings).

**Secrets** are lists, so that they can be replaced: the first signs, all are accepted. A secret,
and `redis.url`, may be written as `file:PATH`; then the text of that file is meant. A file that
everybody can read is warned of. No error and no table shows a secret."""


def guide() -> Iterator[str]:
    """The lines of docs/settings.md."""
    yield INTRODUCTION
    for section, field in Settings.model_fields.items():
        model = field.annotation
        is_list = not (isinstance(model, type) and issubclass(model, BaseModel))
        shape: type[BaseModel] = ApiKey if is_list else model  # type: ignore[assignment]
        yield ""
        yield f"## {'[[keys]]' if is_list else f'[{section}]'}"
        yield ""
        yield (shape.__doc__ or "").replace("``", "`")
        yield ""
        yield "| setting | value | default | |"
        yield "| --- | --- | --- | --- |"
        for name, part in shape.model_fields.items():
            at = (section, 0, name) if is_list else (section, name)
            default = "required" if part.is_required() else f"`{as_toml(part.default)}`"
            about = (part.description or "").replace("|", r"\|").replace("``", "`")
            yield f"| `{name}` | {takes(at)} | {default} | {about} |"


def as_toml(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def test_the_guide_says_what_the_model_says() -> None:
    assert GUIDE.read_text(encoding="utf-8") == "\n".join([*guide(), ""])


def test_every_setting_has_words() -> None:
    for row in rows(Settings(), {}):
        assert row.about or row.name == "keys", row.name


if __name__ == "__main__":
    sys.stdout.write("\n".join([*guide(), ""]))
