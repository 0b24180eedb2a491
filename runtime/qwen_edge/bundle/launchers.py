"""What a person or a program starts in a bundle.

On Linux a shell script: it needs nothing but a shell, and everyone can read what it does. On
Windows a program that pip's own launcher is made into: the launcher, a line that names the
interpreter beside it, and a zip with what to run. Neither needs a compiler.
"""

import importlib.metadata
import io
import sys
import zipfile
from pathlib import Path

from qwen_edge.errors import UsageError

MODULE = "qwen_edge.cli.bundled"
SERVER_LAUNCHER = "start-server"
_LAUNCHER = "pip/_vendor/distlib/t64.exe"
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)

_FIND_OWN_FOLDER = """\
self=$0
if [ -h "$self" ]; then self=$(readlink -f -- "$self"); fi
case $self in
    */*) here=${self%/*} ;;
    *) here=. ;;
esac
here=$(CDPATH='' cd -- "$here" && pwd -P) || exit 1
"""
_LINUX = """\
#!/bin/sh
# Starts the program in this folder, with the Python and the libraries that lie beside it.
# Nothing is installed, and nothing of this system's Python is used.
{find}case $here in
    *:* | *";"*)
        echo "Error: the folder '$here' has a ':' or ';' in its name, where a list of folders" \\
            "would be cut." >&2
        echo "Fix: rename it, or move it elsewhere" >&2
        exit 2
        ;;
esac
# OpenVINO looks for the processors there, and without it never ends looking.
if [ ! -r {processors} ]; then
    echo "Error: {processors} is not there, which tells the processors of this machine." >&2
    echo "Fix: mount /proc, or copy that file into this root" >&2
    exit 6
fi
# -I: some of Python's variables would be read before it knows that this one reads none.
# The loader looks here first, so another program's list of folders is replaced, not extended.
LD_LIBRARY_PATH=$here/lib
{drivers}export LD_LIBRARY_PATH
exec "$here/lib/{python}" -I -B -m {module} "$@"
"""
# The driver of a GPU or an NPU is C++ as well, and made for the system's own library.
_DRIVERS = """\
has_cxx=
for folder in /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/lib /lib/x86_64-linux-gnu /lib64; do
    if [ -e "$folder/libstdc++.so.6" ]; then has_cxx=yes; fi
done
if [ -z "$has_cxx" ]; then LD_LIBRARY_PATH=$here/lib:$here/lib/cxx; fi
"""
_LINUX_SERVER = """\
#!/bin/sh
# Serves the model in this folder to programs and browsers of this machine; Ctrl-C ends it.
{find}exec "$here/{program}" serve "$@"
"""
_WINDOWS_SERVER = """\
@echo off
rem Serves the model in this folder to programs and browsers of this machine; Ctrl-C ends it.
"%~dp0{program}" serve %*
if errorlevel 1 pause
"""
_WINDOWS_LINE = b"#!<launcher_dir>\\lib\\python.exe\r\n"
CXX_FOLDER = "cxx"
"""Folder of the C++ library in bundles for GPU and NPU, used where the system has none."""


def write_linux_launcher(
    python: str, *, for_drivers: bool, processors: str = "/proc/cpuinfo"
) -> str:
    """Return the shell script that starts the program.

    Args:
        python: File name of the interpreter in the folder `lib`.
        for_drivers: The bundle is for a device with a driver of its own.
        processors: The system's file about its processors, for tests.
    """
    return _LINUX.format(
        find=_FIND_OWN_FOLDER,
        drivers=_DRIVERS if for_drivers else "",
        python=python,
        module=MODULE,
        processors=processors,
    )


def write_linux_server_launcher(program: str) -> str:
    """Return the shell script that starts the server with the bundle's model."""
    return _LINUX_SERVER.format(find=_FIND_OWN_FOLDER, program=program)


def write_windows_server_launcher(program: str) -> str:
    """Return the batch file that starts the server with the bundle's model."""
    return _WINDOWS_SERVER.format(program=program).replace("\n", "\r\n")


def build_windows_launcher(stub: bytes) -> bytes:
    """Return a program for Windows that starts the bundle's.

    Args:
        stub: pip's launcher for console programs.

    Source:
        simple_launcher of the distlib project: the program is the launcher, a line as of a
        script, and a zip that the interpreter is given; "<launcher_dir>" is its own folder.
    """
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        code = f"import runpy\nrunpy.run_module({MODULE!r}, run_name='__main__')\n"
        bundle.writestr(zipfile.ZipInfo("__main__.py", _FIXED_TIME), code)
    return stub + _WINDOWS_LINE + archive.getvalue()


def find_windows_stub() -> bytes:
    """Return pip's launcher for console programs.

    Raises:
        UsageError: This environment has no pip.
    """
    # By its files: looking for the module would let setuptools replace distutils in this process.
    try:
        path = Path(str(importlib.metadata.distribution("pip").locate_file(_LAUNCHER)))
    except importlib.metadata.PackageNotFoundError:
        path = Path()
    if path.is_file():
        return path.read_bytes()
    raise UsageError(
        "A bundle for Windows starts with pip's launcher, and this environment has no pip.",
        f"{Path(sys.executable).name} -m ensurepip, then bundle again",
    )
