"""The keys that packages are signed with: ECDSA on NIST's curves, in PEM files.

All cryptography is the package `cryptography`'s. This module knows no package and no signature's
format; read `signature.py` for those.
"""

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qwen_edge.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        ECDSA,
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

_CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
_MAX_KEY_BYTES = 1 << 16


def sign(key: "EllipticCurvePrivateKey", message: bytes) -> bytes:
    """Return the signature of a message, DER."""
    return key.sign(message, _method(key.public_key()))


def is_signed(key: "EllipticCurvePublicKey", signature: bytes, message: bytes) -> bool:
    """Return whether the private key that belongs to this one made a signature of a message."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message, _method(key))
    except InvalidSignature:
        return False
    return True


def hash_key(key: "EllipticCurvePublicKey") -> str:
    """Return what names a key: the SHA-256 of its PEM text."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    text = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(text).hexdigest()


def load_public_key(path: Path) -> "EllipticCurvePublicKey":
    """Read a public key.

    Raises:
        UsageError: The file cannot be read, or holds something else.
        MissingExtraError: `cryptography` is not installed.
    """
    _check_installed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key: Any = load_pem_public_key(_read_key(path))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "public") from error
    _check_curve(path, key, "public")
    return cast("EllipticCurvePublicKey", key)


def load_private_key(path: Path, ask_password: Callable[[], str]) -> "EllipticCurvePrivateKey":
    """Read a private key.

    Args:
        path: The PEM file.
        ask_password: Called where the key is encrypted.

    Raises:
        UsageError: The file cannot be read, or holds something else, or the password is another.
        MissingExtraError: `cryptography` is not installed.
    """
    _check_installed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = _read_key(path)
    try:
        try:
            key: Any = load_pem_private_key(text, None)
        except TypeError:  # an encrypted one
            key = load_pem_private_key(text, ask_password().encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "private") from error
    _check_curve(path, key, "private")
    return cast("EllipticCurvePrivateKey", key)


def _check_installed() -> None:
    try:
        importlib.import_module("cryptography")
    except ImportError as error:
        raise MissingExtraError(
            "Signatures need 'cryptography', which is not installed.",
            "pip install 'qwen-edge[signing]'",
            package="cryptography",
        ) from error


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise UsageError(
            f"The key {str(path)!r} cannot be read: {error.strerror or error}.",
            "give the path of a PEM file",
            path=str(path),
        ) from error


def _check_curve(path: Path, key: Any, what: str) -> None:
    if getattr(getattr(key, "curve", None), "name", None) not in _CURVES:
        raise _no_key(path, what)


def _no_key(path: Path, what: str) -> UsageError:
    return UsageError(
        f"{str(path)!r} is no {what} key that signs packages: expected PEM, ECDSA on P-256, P-384 "
        "or P-521, and the right password where it has one.",
        "make one as docs/signing.md shows",
        path=str(path),
    )


def _method(key: "EllipticCurvePublicKey") -> "ECDSA":
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.ECDSA(getattr(hashes, _CURVES[key.curve.name])())
