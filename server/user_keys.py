"""The keys that user tokens are verified with: shared secrets, PEM files, and JWKs.

Each key knows the one algorithm it is for, and a token is checked by the algorithm of a key, never
by the one that its own header names. So a public key, which everybody may read, can never be taken
for the secret of an HS256 token, and ``none`` is no algorithm at all.
"""

from __future__ import annotations

import base64
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWK, PyJWTError
from jwt.algorithms import HMACAlgorithm, get_default_algorithms
from pydantic import SecretStr
from yarl import URL

from seckill.errors import InvalidInput

__all__ = [
    "PUBLIC",
    "Jwk",
    "Key",
    "checked_file",
    "checked_secret",
    "checked_url",
    "from_file",
    "from_jwk",
    "from_secret",
    "shown_path",
    "signed_with",
    "unpadded",
]

SECRET_BYTES_MIN: Final = 32
# A key below this is weak; one far above makes every forged token expensive to refuse.
RSA_BITS: Final = range(2048, 8193)
PEM_BYTES_MAX: Final = 64 * 1024
PATH_CHARS_MAX: Final = 255

PUBLIC: Final = frozenset({"RS256", "PS256", "ES256", "EdDSA"})
# What a JWK of each type may be for. The first is meant when it does not say.
_JWK_ALGORITHMS: Final = {"RSA": ("RS256", "PS256"), "EC": ("ES256",), "OKP": ("EdDSA",)}


# PyJWT's own, by which it verifies. Keys were prepared and checked when the intake started, and
# user_tokens.py has taken the token apart; PyJWT would do both again, for four times the cost.
_ALGORITHMS: Final = {name: get_default_algorithms()[name] for name in (*PUBLIC, "HS256")}


class Key(msgspec.Struct, frozen=True):
    """A key and the one algorithm it is for. ``kid`` is its name in a JWKS, "" if it has none; a
    key with a name is only for tokens that name it."""

    algorithm: str
    key: Any
    kid: str = ""

    def fits(self, algorithm: str, kid: str) -> bool:
        """Whether a token with this header may have been signed with this key."""
        return algorithm == self.algorithm and (not self.kid or kid == self.kid)


class Jwk(msgspec.Struct, frozen=True):
    """The public part of a JWK (RFC 7517). A private part that somebody published by mistake is not
    even read."""

    kty: str
    kid: str = ""
    alg: str = ""
    use: str = "sig"
    key_ops: tuple[str, ...] = ("verify",)
    crv: str = ""
    n: str = ""
    e: str = ""
    x: str = ""
    y: str = ""


def signed_with(key: Key, token: str) -> bytes | None:
    """The payload of a token (three parts of base64url without padding) that was signed with this
    key, otherwise None. Of the token's header nothing is read."""
    signed, _, spelled = token.rpartition(".")
    try:
        signature = unpadded(spelled)
        if not _ALGORITHMS[key.algorithm].verify(signed.encode(), key.key, signature):
            return None
        # The last character has bits to spare, and one token is to have one spelling.
        if base64.urlsafe_b64encode(signature).rstrip(b"=") != spelled.encode():
            return None
        return unpadded(signed.partition(".")[2])
    except (PyJWTError, ValueError):
        return None


def unpadded(text: str) -> bytes:
    """What base64url without padding stands for. Raises ValueError."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def from_secret(secret: str) -> Key:
    """The key of a shared secret. Raises InvalidInput, without the secret in it."""
    data = secret.encode()
    if len(data) < SECRET_BYTES_MIN:
        raise InvalidInput(
            "users.secrets",
            f"is {len(data)} bytes long",
            f"use at least {SECRET_BYTES_MIN} random bytes: openssl rand -base64 48",
        )
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(data)
    except PyJWTError:
        remedy = "name the file of a public key in users.key_files"
        raise InvalidInput("users.secrets", "is a key file and no secret", remedy) from None
    return Key("HS256", data)


def from_file(path: str) -> Key:
    """The public key in a PEM file. Raises InvalidInput."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(PEM_BYTES_MAX)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "no such path"
        raise _bad_file(path, f"cannot be read: {reason}", "name a PEM file") from None
    if b"PRIVATE KEY-----" in text:
        problem = "holds a private key, which must stay with the mall"
        raise _bad_file(path, problem, "take openssl pkey -pubout -in private.pem")
    try:
        key = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm):
        remedy = "it begins with -----BEGIN PUBLIC KEY-----"
        raise _bad_file(path, "is not the PEM file of a public key", remedy) from None
    algorithm = _algorithm_of(key)
    if algorithm is None:
        raise _bad_file(
            path,
            "holds a key of another kind or size",
            f"use RSA of {RSA_BITS.start} to {RSA_BITS.stop - 1} bits, Ed25519 or P-256",
        )
    return Key(algorithm, key)


def from_jwk(jwk: Jwk) -> Key | None:
    """The key of a JWK, or None if it is of no use here."""
    if jwk.use != "sig" or "verify" not in jwk.key_ops:
        return None
    algorithms = _JWK_ALGORITHMS.get(jwk.kty, ())
    if not algorithms or (jwk.alg and jwk.alg not in algorithms):
        return None
    fields = {name: value for name, value in msgspec.structs.asdict(jwk).items() if value}
    try:
        key = PyJWK(fields, jwk.alg or algorithms[0]).key
    except (PyJWTError, UnsupportedAlgorithm, ValueError, TypeError):
        return None
    return Key(jwk.alg or algorithms[0], key, jwk.kid) if _algorithm_of(key) else None


def _algorithm_of(key: object) -> str | None:
    """What a public key is for unless it says more, or None if it is not to be used."""
    if isinstance(key, RSAPublicKey) and key.key_size in RSA_BITS:
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256"
    return "EdDSA" if isinstance(key, Ed25519PublicKey) else None


def checked_secret(secret: SecretStr) -> SecretStr:
    """For settings: raises InvalidInput unless this can be a secret."""
    from_secret(secret.get_secret_value())
    return secret


def checked_file(path: str) -> str:
    """For settings: raises InvalidInput unless a public key can be read there."""
    from_file(path)
    return path


def checked_url(url: str) -> str:
    """For settings: raises InvalidInput unless keys may be fetched there. Whoever can change them
    on their way can be any buyer, so that takes https, except on this machine."""
    if not url:
        return url
    try:
        parts = URL(url)
        host = parts.host or ""
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("https", "http"):
        raise InvalidInput("users.jwks_url", "is not a URL", "write https://host/path")
    if parts.scheme == "http" and not _is_loopback(host):
        raise InvalidInput("users.jwks_url", "is not https", "write https://host/path")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def shown_path(path: str) -> str:
    """A path as an error may repeat it. What looks like none may be the key itself, pasted where
    its file should have been named."""
    is_path = len(path) <= PATH_CHARS_MAX and path.isprintable() and ("/" in path or "." in path)
    return path if is_path else "this"


def _bad_file(path: str, problem: str, remedy: str) -> InvalidInput:
    return InvalidInput("users.key_files", f"{shown_path(path)} {problem}", remedy)
