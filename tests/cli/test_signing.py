"""`qwen-edge sign` and `verify --public-key`: only what the key's owner signed is accepted.

Keys are real, and the other program is OpenSSF's own: `model-signing` accepts what we sign, we
accept what it signs.
"""

import base64
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from qwen_edge.errors import PackageError, UsageError
from qwen_edge.runtime import signature as module
from qwen_edge.runtime.package import (
    SIGNATURE_NAME,
    hash_file,
    package_hash,
    read_manifest,
    verify_package,
    write_manifest,
)
from qwen_edge.runtime.signature import check_signature, sign_package

pytestmark = pytest.mark.trust("T-SUP-02")
ROOT = Path(__file__).parents[2]
# A process that ends where anything asks for a socket, also in an imported library.
WITHOUT_SOCKETS = """
import os, sys
def watch(event, args):
    if event.startswith("socket."):
        os._exit(99)
sys.addaudithook(watch)
from qwen_edge.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


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


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Return somebody else's."""
    return write_keys(
        tmp_path_factory.mktemp("other") / "keys", ec.generate_private_key(ec.SECP256R1())
    )


@pytest.fixture
def package(demo_package: Path, tmp_path: Path) -> Path:
    """Return a package that a test may sign and change."""
    return Path(shutil.copytree(demo_package, tmp_path / "das Paket ü"))


def no_password() -> str:
    """Fail: the key is not encrypted."""
    raise AssertionError("the key has no password")


def sign_with(package: Path, keys: Keys) -> module.Signature:
    """Sign a package."""
    return sign_package(package, keys.private, ask_password=no_password)


def rename(package: Path, name: str) -> None:
    """Make another package of it: another name in the manifest, sealed again."""
    write_manifest(package, dataclasses.replace(read_manifest(package), name=name))


def test_a_good_signature(cli: Any, package: Path, keys: Keys) -> None:
    before = sorted(path.name for path in package.iterdir())
    done = cli("sign", package, "--key", keys.private)
    assert (done.code, done.out) == (0, f"{package / SIGNATURE_NAME}\n")
    assert sorted(path.name for path in package.iterdir()) == sorted([*before, SIGNATURE_NAME])
    assert verify_package(package).is_intact
    made = check_signature(package, keys.public)
    assert made.package_hash == package_hash(package) and made.num_files == len(before)
    envelope = json.loads((package / SIGNATURE_NAME).read_bytes())["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert [entry["name"] for entry in statement["predicate"]["resources"]] == before
    assert [entry["name"] for entry in statement["subject"]] == [read_manifest(package).name]
    shown = cli("verify", package, "--public-key", keys.public)
    assert shown.code == 0
    assert f", intact, signed with your key {made.key_hash[:16]}, all " in shown.out
    data = json.loads(
        cli("verify", package, "--public-key", keys.public, "--files-only", "--json").out
    )
    assert data["signature"] == {"checked": True, "key_hash": made.key_hash}
    # Signed again, by another key: the earlier signature is replaced.
    again = json.loads(cli("sign", package, "--key", keys.private, "--json").out)
    assert (again["key_hash"], again["num_files"]) == (made.key_hash, made.num_files)


def test_without_a_key_nothing_is_called_checked(cli: Any, package: Path, keys: Keys) -> None:
    assert json.loads(cli("verify", package, "--files-only", "--json").out)["signature"] is None
    sign_with(package, keys)
    shown = cli("verify", package, "--files-only")
    assert shown.code == 0
    assert "signed (not checked, which takes --public-key)" in shown.out
    data = json.loads(cli("verify", package, "--files-only", "--json").out)
    assert data["signature"] == {"checked": False, "key_hash": None}


def test_another_key_is_refused(cli: Any, package: Path, keys: Keys, others: Keys) -> None:
    sign_with(package, keys)
    refused = cli("verify", package, "--public-key", others.public)
    assert (refused.code, refused.out) == (3, "")
    assert "is not that of your key: it names another key" in refused.err
    # One that pretends to be of the key that is trusted.
    document = json.loads((package / SIGNATURE_NAME).read_bytes())
    document["verificationMaterial"]["publicKey"]["hint"] = module.hash_key(
        module.load_public_key(others.public)
    )
    (package / SIGNATURE_NAME).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(PackageError, match="this key did not make it"):
        check_signature(package, others.public)


def test_a_stripped_signature_is_refused(cli: Any, package: Path, keys: Keys) -> None:
    sign_with(package, keys)
    (package / SIGNATURE_NAME).unlink()
    refused = cli("verify", package, "--public-key", keys.public, "--json")
    assert (refused.code, refused.out) == (3, "")
    assert "is not signed" in json.loads(refused.err)["problem"]


def test_another_packages_signature_is_refused(package: Path, keys: Keys, tmp_path: Path) -> None:
    other = Path(shutil.copytree(package, tmp_path / "other"))
    rename(other, "other")
    sign_with(other, keys)
    shutil.copyfile(other / SIGNATURE_NAME, package / SIGNATURE_NAME)
    with pytest.raises(PackageError, match=r"genuine, but that of another package") as refused:
        check_signature(package, keys.public)
    [problem] = refused.value.facts["problems"]
    assert problem.startswith("'manifest.json' was signed as SHA-256 ")


def test_an_earlier_states_signature_is_refused(cli: Any, package: Path, keys: Keys) -> None:
    """Replayed: the signature of the package before a file of it was exchanged and sealed again."""
    sign_with(package, keys)
    (package / "chat_template.jinja").write_text("other", encoding="utf-8")
    manifest = read_manifest(package)
    facts = hash_file(package / "chat_template.jinja")
    files = {**manifest.files, "chat_template.jinja": facts}
    write_manifest(package, dataclasses.replace(manifest, files=files))
    assert verify_package(package).is_intact
    refused = cli("verify", package, "--files-only", "--public-key", keys.public)
    assert refused.code == 3
    assert "another state of this one" in refused.err and "'chat_template.jinja'" in refused.err
    sign_with(package, keys)
    assert check_signature(package, keys.public).package_hash == package_hash(package)


def test_a_changed_file_under_a_good_signature(cli: Any, package: Path, keys: Keys) -> None:
    """The manifest is as it was signed; what it lists is not what lies there."""
    sign_with(package, keys)
    with (package / "openvino_model.bin").open("r+b") as stream:
        stream.seek(1000)
        byte = stream.read(1)[0]
        stream.seek(1000)
        stream.write(bytes([byte ^ 1]))
    check_signature(package, keys.public)
    refused = cli("verify", package, "--public-key", keys.public)
    assert refused.code == 3 and "'openvino_model.bin' has other contents" in refused.err
    with pytest.raises(PackageError, match="not as it was sealed"):
        sign_with(package, keys)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
@pytest.mark.parametrize("kind", ["pipe", "link", "dangling link", "folder"])
def test_what_must_not_be_opened(cli: Any, package: Path, keys: Keys, kind: str) -> None:
    """A pipe would block for ever; loading a package opens none of them."""
    path = package / SIGNATURE_NAME
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(keys.public if kind == "link" else "nowhere")
    refused = cli("verify", package, "--public-key", keys.public)
    assert refused.code == 3 and "no signature that can be checked: it is a" in refused.err
    assert cli("verify", package, "--files-only").code == 0


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_the_other_program_and_ours_accept_each_other(
    cli: Any, package: Path, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    pair = write_keys(tmp_path / "keys", ec.generate_private_key(curve))
    path = package / SIGNATURE_NAME
    tool = [sys.executable, "-m", "model_signing"]
    (package / ".DS_Store").write_bytes(b"litter")  # of no account to either
    sign_with(package, pair)
    verify = [*tool, "verify", "key", str(package), "--signature", str(path)]
    verify += ["--public_key", str(pair.public)]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "Verification succeeded"), done.stderr
    path.unlink()
    (package / ".DS_Store").unlink()
    theirs = [*tool, "sign", "key", str(package), "--signature", str(path)]
    subprocess.run([*theirs, "--private_key", str(pair.private)], check=True, capture_output=True)
    shown = cli("verify", package, "--files-only", "--public-key", pair.public)
    assert shown.code == 0 and "signed with your key" in shown.out


def test_signing_and_checking_open_no_socket(package: Path, keys: Keys) -> None:
    paths = os.pathsep.join(str(ROOT / top) for top in ("runtime", "profiles"))
    for line in (
        ("sign", package, "--key", keys.private),
        ("verify", package, "--files-only", "--public-key", keys.public),
    ):
        command = [sys.executable, "-c", WITHOUT_SOCKETS, *map(str, line)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False)
        assert done.returncode == 0, line


def test_a_key_with_a_password(cli: Any, package: Path, tmp_path: Path) -> None:
    pair = write_keys(tmp_path / "keys", ec.generate_private_key(ec.SECP256R1()), b"open \xc3\xbc")
    with pytest.raises(UsageError, match="right password"):
        sign_package(package, pair.private, ask_password=lambda: "wrong")
    refused = cli("sign", package, "--key", pair.private)
    assert refused.code == 2 and "no terminal to ask for its password" in refused.err
    assert not (package / SIGNATURE_NAME).exists()
    sign_package(package, pair.private, ask_password=lambda: "open ü")
    check_signature(package, pair.public)
