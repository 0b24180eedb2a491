"""`model.sig`: whatever lies there, and whatever the right key signed, nothing else is accepted."""

import base64
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from trust_rows import Cases

from qwen_edge.errors import MissingExtraError, PackageError, UsageError
from qwen_edge.runtime import signature as module
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.package import (
    SIGNATURE_NAME,
    hash_file,
    package_hash,
    read_manifest,
    write_manifest,
)
from qwen_edge.runtime.signature import check_signature, sign_package
from qwen_edge.runtime.signing_keys import load_private_key, sign

pytestmark = pytest.mark.trust("T-SUP-02")
SAMPLE = Path(__file__).parents[1] / "data" / "manifest.json"


@dataclasses.dataclass(frozen=True)
class Keys:
    """A pair of keys in files."""

    private: Path
    public: Path


def write_keys(folder: Path, key: Any, password: bytes | None = None) -> Keys:
    """Write a pair as openssl does."""
    folder.mkdir()
    pem, style = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    hidden = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password)
    )
    keys = Keys(folder / "key.pem", folder / "key.pub")
    keys.private.write_bytes(key.private_bytes(pem, style, hidden))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    keys.public.write_bytes(key.public_key().public_bytes(pem, spki))
    return keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Return the signer's keys."""
    return write_keys(
        tmp_path_factory.mktemp("signer") / "keys", ec.generate_private_key(ec.SECP256R1())
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a sealed package whose files are short; nobody loads it."""
    folder = tmp_path / "package"
    folder.mkdir()
    sample = Manifest.from_bytes(SAMPLE.read_bytes())
    for name in sample.files:
        (folder / name).write_text(name, encoding="utf-8")
    files = {name: hash_file(folder / name) for name in sample.files}
    write_manifest(folder, dataclasses.replace(sample, files=files))
    return folder


def no_password() -> str:
    """Fail: the key is not encrypted."""
    raise AssertionError("the key has no password")


def sign_with(package: Path, keys: Keys) -> module.Signature:
    """Sign a package."""
    return sign_package(package, keys.private, ask_password=no_password)


def write_signed(package: Path, keys: Keys, statement: bytes, **changes: Any) -> None:
    """Write a signature by the right key of whatever statement.

    Args:
        package: Where to.
        keys: The signer's.
        statement: What is signed.
        changes: Keys of the whole document that are replaced.
    """
    key = load_private_key(keys.private, no_password)
    document = {
        "mediaType": module._BUNDLE,
        "verificationMaterial": {"publicKey": {}},
        "dsseEnvelope": {
            "payload": base64.b64encode(statement).decode(),
            "payloadType": module._PAYLOAD,
            "signatures": [
                {"sig": base64.b64encode(sign(key, module._encode(statement))).decode()}
            ],
        },
    }
    (package / SIGNATURE_NAME).write_text(json.dumps(document | changes), encoding="utf-8")


def statement_of(package: Path) -> dict[str, Any]:
    """Return the statement that a signature would make of a package."""
    digests = module._digests(read_manifest(package), package_hash(package))
    statement: dict[str, Any] = json.loads(module._write_statement("x", digests))
    return statement


def test_a_damaged_signature_never_says_more(package: Path, keys: Keys, cases: Cases) -> None:
    """One bit of every eleventh byte: refused, or what it says is as it was (a key's name)."""
    expected = sign_with(package, keys)
    path = package / SIGNATURE_NAME
    text = path.read_bytes()
    places = range(0, len(text), 11)
    accepted = 0
    for place in places:
        path.write_bytes(text[:place] + bytes([text[place] ^ 4]) + text[place + 1 :])
        try:
            assert check_signature(package, keys.public) == expected
            accepted += 1
        except PackageError as error:
            assert error.fix
    assert accepted < len(places) / 20
    cases(len(places))


# What a statement may not be, though the right key signed it.
STATEMENTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a file is left out": lambda s: s["predicate"]["resources"].pop(0),
    "only one file is signed": lambda s: s["predicate"].update(
        resources=s["predicate"]["resources"][:1]
    ),
    "no file is signed": lambda s: s["predicate"].update(resources=[]),
    "a file is signed that is not there": lambda s: s["predicate"]["resources"].append(
        {"name": "more.txt", "algorithm": "sha256", "digest": "0" * 64}
    ),
    "a file twice": lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]),
    "another digest": lambda s: s["predicate"]["resources"][0].update(digest="0" * 64),
    "no digest": lambda s: s["predicate"]["resources"][0].update(digest="x"),
    "another algorithm": lambda s: s["predicate"]["resources"][0].update(algorithm="blake3"),
    "other hashes": lambda s: s["predicate"]["serialization"].update(hash_type="blake2b"),
    "shards": lambda s: s["predicate"]["serialization"].update(method="shards"),
    "another predicate": lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"),
    "another type": lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
    "names that are no texts": lambda s: s["predicate"]["resources"][0].update(name=["x"]),
    "two subjects": lambda s: s["subject"].append(s["subject"][0]),
    "no predicate": lambda s: s.pop("predicate"),
}


@pytest.mark.parametrize("case", STATEMENTS)
def test_a_signed_statement_of_something_else(package: Path, keys: Keys, case: str) -> None:
    statement = statement_of(package)
    STATEMENTS[case](statement)
    resources = statement.get("predicate", {}).get("resources", [])
    digests = {str(entry["name"]): entry["digest"] for entry in resources}
    if "no digest" not in case and "two" not in case:  # the sum is right, so it is not the reason
        statement["subject"][0]["digest"]["sha256"] = module._hash_list(digests)
    write_signed(package, keys, json.dumps(statement).encode())
    with pytest.raises(PackageError) as refused:
        check_signature(package, keys.public)
    assert "genuine, but" in refused.value.problem or "no signature that" in refused.value.problem


def test_a_list_with_another_sum(package: Path, keys: Keys) -> None:
    statement = statement_of(package)
    write_signed(package, keys, json.dumps(statement).encode())
    check_signature(package, keys.public)  # else this test would say nothing
    statement["subject"][0]["digest"]["sha256"] = "0" * 64
    write_signed(package, keys, json.dumps(statement).encode())
    with pytest.raises(PackageError, match="its sum is not that of its list"):
        check_signature(package, keys.public)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"mediaType": 1}',
        b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}',
        b" " * (5 << 20),
    ],
    ids=lambda text: f"{text[:12]!r}",
)
def test_files_that_are_no_signature(package: Path, keys: Keys, text: bytes) -> None:
    (package / SIGNATURE_NAME).write_bytes(text)
    with pytest.raises(PackageError, match="no signature that can be checked"):
        check_signature(package, keys.public)


@pytest.mark.parametrize(
    "changes",
    [
        {"mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1"},
        {"verificationMaterial": {"certificate": {"rawBytes": "AA=="}}},
        {"verificationMaterial": {"publicKey": "x"}},
        {"dsseEnvelope": {"payload": "e30=", "payloadType": "text", "signatures": []}},
        {"dsseEnvelope": {"payload": "e30=", "payloadType": "text", "signatures": [{"sig": "AA"}]}},
        {"dsseEnvelope": {"payload": "?", "payloadType": "text", "signatures": [{"sig": "AA=="}]}},
    ],
)
def test_bundles_of_another_kind(package: Path, keys: Keys, changes: dict[str, Any]) -> None:
    write_signed(package, keys, b"{}", **changes)
    with pytest.raises(PackageError, match="no signature that can be checked"):
        check_signature(package, keys.public)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate,
        lambda: ec.generate_private_key(ec.SECP256K1()),
    ],
    ids=["rsa", "ed25519", "another curve"],
)
def test_keys_of_another_kind(package: Path, tmp_path: Path, make: Callable[[], Any]) -> None:
    pair = write_keys(tmp_path / "keys", make())
    with pytest.raises(UsageError, match="no private key that signs packages"):
        sign_with(package, pair)
    with pytest.raises(UsageError, match="no public key that signs packages"):
        check_signature(package, pair.public)


def test_files_that_are_no_key(package: Path, keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello", encoding="utf-8")
    for path in (tmp_path / "text", keys.private, tmp_path / "missing"):
        with pytest.raises(UsageError):
            check_signature(package, path)
    for path in (tmp_path / "text", keys.public, tmp_path):
        with pytest.raises(UsageError):
            sign_package(package, path, ask_password=no_password)
    assert not (package / SIGNATURE_NAME).exists()


def test_without_the_extra(package: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for call in (lambda: sign_with(package, keys), lambda: check_signature(package, keys.public)):
        with pytest.raises(MissingExtraError) as refused:
            call()
        assert refused.value.fix == "pip install 'qwen-edge[signing]'"
