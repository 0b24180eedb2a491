"""Who sealed a package: `model.sig` is made with a private key and checked with its public one.

The format is that of OpenSSF Model Signing, so that its tools accept our signatures and we theirs:
a Sigstore bundle, in it a DSSE envelope, in it an in-toto statement of every file's name and
SHA-256. Only its method with a key is here: no certificate, no identity, no network. Key files and
ECDSA are the package `cryptography`'s. This module knows who signed, not whether files are whole;
read `package.py` for that, and `signing_keys.py` for keys.

Source:
    OpenSSF Model Signing, predicate v1.0, as model-signing 1.1.1 writes and reads it; DSSE 1.0;
    Sigstore bundle v0.3.
"""

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_edge.errors import PackageError, format_bytes, join_problems
from qwen_edge.runtime.files.opening import why_not_regular
from qwen_edge.runtime.files.replacing import write_atomically
from qwen_edge.runtime.manifest import MANIFEST_NAME, Manifest
from qwen_edge.runtime.package import (
    SIGNATURE_NAME,
    check_report,
    package_hash,
    read_manifest,
    verify_package,
)
from qwen_edge.runtime.schema import SchemaError, parse_json
from qwen_edge.runtime.signing_keys import (
    hash_key,
    is_signed,
    load_private_key,
    load_public_key,
    sign,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

Progress = Callable[[int], None]
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
# What others' tools are told to pass over, as ours do: litter that no engine opens.
_IGNORED = [
    SIGNATURE_NAME, ".DS_Store", ".cache", ".git", ".gitattributes", ".github", ".gitignore",
    "Thumbs.db", "desktop.ini",
]  # fmt: skip
_MAX_SIGNATURE_BYTES = 4 << 20  # a real one has under 10 kB
_SIGN_AGAIN = "ask whoever made the package for the one that they signed, or do not use it"


@dataclass(frozen=True)
class Signature:
    """A signature that was checked, or made.

    Args:
        key_hash: SHA-256 of the public key's PEM text, which names the key.
        package_hash: SHA-256 of the signed manifest.
        num_files: How many files it covers, the manifest among them.
    """

    key_hash: str
    package_hash: str
    num_files: int


def has_signature(folder: Path) -> bool:
    """Return whether a package holds something called a signature; it is not opened."""
    return os.path.lexists(folder / SIGNATURE_NAME)


def find_signature(folder: Path) -> Path:
    """Return the path of a package's signature.

    Raises:
        PackageError: There is none, or something that must not be opened.
    """
    path = folder / SIGNATURE_NAME
    if not has_signature(folder):
        raise PackageError(
            f"The package {str(folder)!r} is not signed: it holds no {SIGNATURE_NAME!r}.",
            _SIGN_AGAIN,
            path=str(folder),
        )
    what = why_not_regular(path)
    if what:
        raise _not_understood(path, f"it {what}")
    return path


def sign_package(
    folder: Path,
    key_path: Path,
    *,
    ask_password: Callable[[], str],
    progress: Progress | None = None,
) -> Signature:
    """Hash every file of a package and sign the list, in the place of an earlier signature.

    Args:
        folder: The package.
        key_path: A private key for ECDSA on NIST's curves, PEM.
        ask_password: Called where the key is encrypted.
        progress: Called with bytes hashed since the last call.

    Raises:
        PackageError: The package is not as it was sealed.
        UsageError: The key cannot be read or is of another kind, or nothing may be written there.
        MissingExtraError: `cryptography` is not installed.
    """
    key = load_private_key(key_path, ask_password)
    report = verify_package(folder, progress)
    check_report(report)
    manifest = read_manifest(folder)
    digests = _digests(manifest, report.package_hash)
    statement = _write_statement(manifest.name, digests)
    key_hash = hash_key(key.public_key())
    signature = sign(key, _encode(statement))
    document = {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": key_hash}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(statement).decode(),
            "payloadType": _PAYLOAD,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    text = json.dumps(document).encode()
    write_atomically(folder / SIGNATURE_NAME, lambda stream: stream.write(text))
    return Signature(key_hash, report.package_hash, len(digests))


def check_signature(folder: Path, public_key: Path) -> Signature:
    """Check that a key signed this manifest and every file that it lists, by their hashes.

    The files are not read: `verify_package` compares them with the manifest.

    Args:
        folder: The package.
        public_key: The one that belongs to the signer's private key, PEM.

    Raises:
        PackageError: It is not signed, by another key, or what was signed is something else.
        UsageError: The key cannot be read or is of another kind.
        MissingExtraError: `cryptography` is not installed.
    """
    key = load_public_key(public_key)
    path = find_signature(folder)
    statement = _check_envelope(path, key)
    signed = _read_statement(path, statement)
    manifest = read_manifest(folder)
    manifest_hash = package_hash(folder)
    _compare(folder, signed, _digests(manifest, manifest_hash))
    return Signature(hash_key(key), manifest_hash, len(signed))


def _digests(manifest: Manifest, package_hash: str) -> dict[str, str]:
    files = {name: facts.sha256 for name, facts in manifest.files.items()}
    return dict(sorted({**files, MANIFEST_NAME: package_hash}.items()))


def _compare(folder: Path, signed: Mapping[str, str], expected: Mapping[str, str]) -> None:
    problems = [f"{name!r} was not signed" for name in sorted(expected.keys() - signed.keys())]
    problems += [
        f"{name!r} was signed and is not listed" for name in sorted(signed.keys() - expected.keys())
    ]
    problems += [
        f"{name!r} was signed as SHA-256 {signed[name]}, listed is {expected[name]}"
        for name in sorted(signed.keys() & expected.keys())
        if signed[name] != expected[name]
    ]
    if problems:
        raise PackageError(
            f"The signature in {str(folder)!r} is genuine, but that of another package or of "
            f"another state of this one: {join_problems(problems)}.",
            f"{_SIGN_AGAIN}; if you changed it yourself, sign it again",
            path=str(folder),
            problems=tuple(problems),
        )


def _write_statement(name: str, digests: Mapping[str, str]) -> bytes:
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": _hash_list(digests)}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": _IGNORED,
            },
            "resources": [
                {"name": file, "algorithm": "sha256", "digest": sha256}
                for file, sha256 in digests.items()
            ],
        },
    }
    return json.dumps(statement, ensure_ascii=False).encode()


def _hash_list(digests: Mapping[str, str]) -> str:
    """Return one SHA-256 for all, as the format wants it: of the digests one after another."""
    return hashlib.sha256(b"".join(bytes.fromhex(digests[name]) for name in digests)).hexdigest()


def _read_statement(path: Path, text: bytes) -> dict[str, str]:
    """Return what was signed: file → SHA-256, in the statement's order.

    Raises:
        PackageError: It is a statement of something else, or was made in a way we do not read.
    """
    try:
        statement = parse_json(text)
        if statement["_type"] != _STATEMENT or statement["predicateType"] != _PREDICATE:
            raise _not_understood(path, "it states something else than a model's files")
        predicate = statement["predicate"]
        method, kind = predicate["serialization"]["method"], predicate["serialization"]["hash_type"]
        if (method, kind) != ("files", "sha256"):
            raise _not_understood(path, f"it hashed {method!r:.80} with {kind!r:.80}")
        signed: dict[str, str] = {}
        for entry in predicate["resources"]:
            if entry["name"] in signed or entry["algorithm"] != "sha256":
                raise _not_understood(path, f"it lists {entry['name']!r:.80} in a way of its own")
            signed[entry["name"]] = entry["digest"]
        [subject] = statement["subject"]
        is_consistent = subject["digest"]["sha256"] == _hash_list(signed)
    except (SchemaError, LookupError, TypeError, ValueError) as error:
        raise _not_understood(path, "it is not a list of files") from error
    if not is_consistent:
        raise _not_understood(path, "its sum is not that of its list")
    return signed


def _check_envelope(path: Path, key: "EllipticCurvePublicKey") -> bytes:
    """Return what was signed; refuse it where it was not, or not with this key."""
    size_bytes = path.stat().st_size
    if size_bytes > _MAX_SIGNATURE_BYTES:
        raise _not_understood(path, f"it has {format_bytes(size_bytes)}, more than any signature")
    try:
        document = parse_json(path.read_bytes())
        material, envelope = document["verificationMaterial"], document["dsseEnvelope"]
        if document["mediaType"] != _BUNDLE or "publicKey" not in material:
            raise _not_understood(path, "it was not made with a key, or is of another version")
        hint = material["publicKey"].get("hint")
        payload = base64.b64decode(envelope["payload"], validate=True)
        [entry] = envelope["signatures"]
        signature = base64.b64decode(entry["sig"], validate=True)
        payload_type = envelope["payloadType"]
    except (SchemaError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise _not_understood(path, "it is no Sigstore bundle") from error
    except OSError as error:
        raise _not_understood(path, f"it cannot be read ({error.strerror or error})") from error
    if payload_type != _PAYLOAD:
        raise _not_understood(path, f"it holds {payload_type!r:.80}")
    if hint is not None and hint != hash_key(key):
        raise _wrong(path, f"it names another key, {hint!r:.80}, yours is {hash_key(key)!r}")
    if not is_signed(key, signature, _encode(payload)):
        raise _wrong(path, "this key did not make it, or its text has changed")
    return payload


def _wrong(path: Path, what: str) -> PackageError:
    return PackageError(
        f"The signature {str(path)!r} is not that of your key: {what}.",
        f"check that the public key is the signer's; {_SIGN_AGAIN}",
        path=str(path),
    )


def _not_understood(path: Path, what: str) -> PackageError:
    return PackageError(
        f"{str(path)!r} is no signature that can be checked: {what}.", _SIGN_AGAIN, path=str(path)
    )


def _encode(payload: bytes) -> bytes:
    """Return what is signed of a payload: DSSE's encoding before it is signed."""
    return f"DSSEv1 {len(_PAYLOAD)} {_PAYLOAD} {len(payload)} ".encode() + payload
