"""`qwen-edge sign`: put a signature into a package, for those who have the public key."""

import sys
from pathlib import Path

import click

from qwen_edge.cli.options import find_package
from qwen_edge.cli.output import Output
from qwen_edge.errors import UsageError


@click.command("sign")
@click.argument("package")
@click.option(
    "--key",
    "key",
    metavar="FILE",
    required=True,
    help="Your private key: PEM, ECDSA on P-256, P-384 or P-521.",
)
@click.option("--quiet", is_flag=True, help="No progress, no notices.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(package: str, key: str, quiet: bool, as_json: bool) -> None:
    """Sign the folder PACKAGE, so that others can tell that it is yours.

    Every file is hashed; the signature of the list goes into `model.sig` in the package, in the
    place of an earlier one. Others check it with `qwen-edge verify --public-key`, or with any tool
    for OpenSSF Model Signing. Nothing leaves this machine. docs/signing.md shows how to make keys.

    \b
    Examples:
      qwen-edge sign ./qwen3-4b-core-ultra-int4 --key ~/keys/models.pem
    """
    from qwen_edge.runtime.package import SIGNATURE_NAME, read_manifest
    from qwen_edge.runtime.signature import sign_package

    out = Output(is_quiet=quiet, as_json=as_json)
    folder = find_package(package)
    total = sum(facts.size_bytes for facts in read_manifest(folder).files.values())
    hashed = 0
    with out.steps() as bars:

        def report_bytes(num_bytes: int) -> None:
            nonlocal hashed
            hashed += num_bytes
            bars("hash files", hashed, total)

        signature = sign_package(
            folder, Path(key), ask_password=_ask_password, progress=report_bytes
        )
    path = folder / SIGNATURE_NAME
    if as_json:
        out.result_json(
            {
                "signature": str(path),
                "key_hash": signature.key_hash,
                "package_hash": signature.package_hash,
                "num_files": signature.num_files,
            }
        )
        return
    out.notice(f"{signature.num_files} files signed with the key {signature.key_hash[:16]}.")
    out.result(str(path))


def _ask_password() -> str:
    if not sys.stdin.isatty():
        raise UsageError(
            "The key is encrypted, and there is no terminal to ask for its password.",
            "run this in a terminal, or give a key that is not encrypted",
        )
    password: str = click.prompt("Password of the key", hide_input=True, err=True)
    return password
