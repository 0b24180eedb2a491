"""Set up everything the tests need and run them all.

    python scripts/test.py [--without-torch] [--trust] [arguments for pytest …]

Makes the virtual environment `.venv-test`, installs the project, its test dependencies, the
programs it is compared with, and a CPU build of torch (only the comparison with Transformers
needs it), checks format, lint and types, and runs the tests. Where it may, on Debian as root, it
installs a browser for the chat page's tests, what Qt loads and Node for the samples', and strace.
Without them tests are skipped and say so, or (strace) see Python's sockets only.
"""

import argparse
import os
import shutil
import subprocess

from environment import ROOT, make_environment, run

TORCH = "torch==2.13.0"
# What packages are compared with: both GenAIs open them, NNCF quantises the same weights.
PEERS = ("openvino-genai==2026.4.1.0", "onnxruntime-genai==0.18.0", "nncf==3.4.0")

# A browser to drive, the system's libraries that Qt loads though it shows nothing, and what tells
# which sockets a process opens.
DEBIAN_PACKAGES = (
    "chromium",
    "chromium-driver",
    "libegl1",
    "libgl1",
    "libxkbcommon0",
    "libdbus-1-3",
    "libfontconfig1",
    "strace",
)


def find_missing_packages() -> list[str]:
    """Return which of them this Debian has not."""
    asked = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n"]
    known = subprocess.run([*asked, *DEBIAN_PACKAGES], capture_output=True, text=True, check=False)
    installed = {
        line.split()[0] for line in known.stdout.splitlines() if line.endswith(" installed")
    }
    missing = [name for name in DEBIAN_PACKAGES if name not in installed]
    return missing if shutil.which("node") else [*missing, "nodejs"]


def install_debian_packages() -> None:
    """Install what tests need of the system, where it is Debian and this is its root."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if not is_root or shutil.which("apt-get") is None:
        return
    missing = find_missing_packages()
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
        # Not a failure of the tests: those that need it are skipped, with the reason.
        if missing:
            subprocess.run(
                ["apt-get", "-qq", *arguments], env=quiet, check=False, stdout=subprocess.DEVNULL
            )


def main() -> None:
    """Read the command line, set up, run the checks and the tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--without-torch", action="store_true", help="leave out the comparison with Transformers"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="only what docs/reliability.md promises, with its table",
    )
    parser.add_argument("--tests-only", action="store_true", help="no format, lint or type checks")
    arguments, pytest_arguments = parser.parse_known_args()
    requirements = [["--editable", ".[export-onnx,serve,dev]", *PEERS]]
    if not arguments.without_torch:
        requirements.insert(0, [TORCH])
    name = ".venv-test-without-torch" if arguments.without_torch else ".venv-test"
    python = str(make_environment(ROOT / name, requirements))
    run(
        [python, "scripts/build_kernels.py"]
    )  # installed before, but their sources may have changed
    install_debian_packages()
    if not arguments.tests_only:
        run([python, "-m", "ruff", "format", "--check", "."])
        run([python, "-m", "ruff", "check", "."])
        run([python, "-m", "mypy"])
    if arguments.trust:
        pytest_arguments = ["-m", "trust", "--trust-table", *pytest_arguments]
    # A process per core; who has nothing left to do takes from the other.
    run([python, "-m", "pytest", "-n", "auto", "--dist", "worksteal", *pytest_arguments])


if __name__ == "__main__":
    main()
