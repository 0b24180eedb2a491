"""README.txt of a bundle, for whoever finds the folder and knows nothing of it."""

from dataclasses import dataclass

from qwen_edge.bundle.origins import Origins
from qwen_edge.bundle.systems import System
from qwen_edge.runtime.manifest import Manifest

README_NAME = "README.txt"
_WIDTH_OF_COMMAND = 34


@dataclass(frozen=True)
class BundleFacts:
    """What a bundle is, for its README and for programs.

    Args:
        system: What it is for.
        devices: What its libraries are for.
        has_server: It can serve.
        c_library: Oldest glibc that it runs with, as "2.34"; empty on Windows.
        python: Version of its interpreter.
        project: Version of qwen-edge.
        notices: What whoever made it should know; sentences.
        origins: Where its packages are from; None where nobody looked.
    """

    system: System
    devices: tuple[str, ...]
    has_server: bool
    c_library: str
    python: str
    project: str
    notices: tuple[str, ...] = ()
    origins: Origins | None = None


def write_readme(manifest: Manifest, facts: BundleFacts) -> str:
    """Return the text.

    Args:
        manifest: The package's.
        facts: The bundle's.
    """
    program = f"./{facts.system.program}"
    if facts.system.name == "windows":
        program = facts.system.program.removesuffix(".exe")
    commands = [
        (f'{program} run "Why is the sky blue?"', "one answer"),
        (f"{program} chat", "a conversation in the terminal"),
        *([(f"{program} serve", "for programs and browsers of this machine")] * facts.has_server),
        (f"{program} verify", "are all files as they were made?"),
        (f"{program} doctor", "what this machine can do"),
    ]
    shown = [f"  {line:<{_WIDTH_OF_COMMAND}}  {what}" for line, what in commands]
    source = manifest.source
    return "\n".join(
        [
            f"{manifest.name}: a language model with the program that runs it",
            "",
            "Everything it needs is in this folder. Nothing is installed, no administrator is",
            "asked, no network is used. Open a terminal in this folder:",
            "",
            *shown,
            "",
            *_needs(facts),
            "",
            "The folder may lie anywhere and may be moved, also to a disk that cannot be written",
            "to. What the program remembers to start faster goes into the cache folder of whoever",
            "runs it, and nothing else is written. To remove the program, delete this folder.",
            "",
            f"The model was made from {source.id}; its licence, as stated there: {source.license}.",
            "The licences of all parts are in the folder `licences`, the list of parts with their",
            "versions in `sbom.cdx.json` (CycloneDX), the hash of each file in `SHA256SUMS`.",
            "",
            f"Made with qwen-edge {facts.project} and Python {facts.python}, for "
            f"{', '.join(facts.devices)}.",
            "",
        ]
    )


def _needs(facts: BundleFacts) -> list[str]:
    """Return what a machine has to have."""
    if facts.system.name == "windows":
        lines = [
            "It needs Windows 10 or 11 on x86-64 with the Visual C++ runtime (msvcp140.dll),",
            "which nearly every machine has.",
        ]
    else:
        lines = [
            f"It needs Linux on {facts.system.machine} with glibc {facts.c_library} or newer and "
            "a shell.",
        ]
    if len(facts.devices) > 1:
        others = " and ".join(name for name in facts.devices if name != "CPU")
        lines.append(f"For the {others} it needs that device's driver; without it the CPU answers.")
    if not facts.has_server:
        lines.append("It was made without the server: `serve` is not in it.")
    return lines
