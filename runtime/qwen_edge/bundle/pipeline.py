"""From a package to a bundle: `plan_bundle` decides and refuses, `make_bundle` writes.

A step that fails leaves nothing behind; see `target.py`.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.bundle.archive import write_folder_zip
from qwen_edge.bundle.contents import MODEL_FOLDER, Part, size_of_files
from qwen_edge.bundle.distributions import find_distributions
from qwen_edge.bundle.elf import is_elf
from qwen_edge.bundle.interpreter import find_interpreter
from qwen_edge.bundle.launchers import (
    SERVER_LAUNCHER,
    build_windows_launcher,
    find_windows_stub,
    write_linux_launcher,
    write_linux_server_launcher,
    write_windows_server_launcher,
)
from qwen_edge.bundle.licences import write_licences
from qwen_edge.bundle.origins import Origins, find_origins
from qwen_edge.bundle.parts import describe_parts
from qwen_edge.bundle.program_files import LIB, Placed, Program, ProgramFiles
from qwen_edge.bundle.readme import README_NAME, BundleFacts, write_readme
from qwen_edge.bundle.request import BundleRequest, choose_devices
from qwen_edge.bundle.sbom import SBOM_NAME, write_sbom
from qwen_edge.bundle.shared_libraries import find_highest_version
from qwen_edge.bundle.sums import list_files, write_sums
from qwen_edge.bundle.systems import choose_engine_files, find_system
from qwen_edge.bundle.target import (
    FACTS_NAME,
    FORMAT,
    check_space,
    check_target,
    publish,
    stage,
    zip_of,
)
from qwen_edge.bundle.trial import try_bundle
from qwen_edge.errors import OutputFolderError, UsageError
from qwen_edge.runtime.files.opening import inside
from qwen_edge.runtime.files.replacing import replace_file
from qwen_edge.runtime.files.writing import (
    copy_file,
    make_folder,
    write_file,
    write_text,
)
from qwen_edge.runtime.manifest import MANIFEST_NAME, Manifest
from qwen_edge.runtime.package import (
    TUNED_NAME,
    check_report,
    package_hash,
    read_manifest,
    verify_package,
)
from qwen_edge.runtime.signature import find_signature, has_signature

StepProgress = Callable[[str, int, int], None]
"""Called with a step's name, how much of it is done, and how much there is (0: unknown)."""
_SPARE_BYTES = 64_000_000


@dataclass(frozen=True)
class BundlePlan:
    """What will be bundled; everything that can be refused beforehand was.

    Args:
        request: What was asked for.
        manifest: The package's.
        program: What the bundle's program is made of.
        target: The bundle folder to be, as a full path.
        needed_bytes: Free disk that it takes.
    """

    request: BundleRequest
    manifest: Manifest
    program: Program
    target: Path
    needed_bytes: int


@dataclass(frozen=True)
class Bundle:
    """A finished bundle.

    Args:
        folder: Where it is.
        zip_path: Its zip, or None.
        facts: What it is for.
        model_bytes: Size of the model in it.
        program_bytes: Size of all else.
        zip_bytes: Size of the zip, or None.
        sizes: Part → bytes of its own files, largest first.
        golden_tokens: Tokens that it gave as recorded when it was tried.
    """

    folder: Path
    zip_path: Path | None
    facts: BundleFacts
    model_bytes: int
    program_bytes: int
    zip_bytes: int | None
    sizes: dict[str, int]
    golden_tokens: int


def plan_bundle(request: BundleRequest) -> BundlePlan:
    """Decide what goes into a bundle.

    Args:
        request: What was asked for.

    Raises:
        EdgeError: It cannot be made; nothing was written.
    """
    manifest = read_manifest(request.package)
    system = find_system()
    devices = choose_devices(request.devices, manifest)
    # Not `resolve`, which would follow a link at the target to what must not be replaced.
    target = Path(os.path.abspath(request.output))  # noqa: PTH100
    package = request.package.resolve()
    if target == package or package.is_relative_to(target) or target.is_relative_to(package):
        raise OutputFolderError(
            "The bundle cannot be put into its own package, nor around it.",
            "choose another place with --output DIR",
            folder=str(target),
        )
    check_target(target, force=request.force, as_zip=request.as_zip)
    engine = _find_engine()
    program = Program(
        system,
        devices,
        find_interpreter(system, with_server=request.with_server),
        tuple(find_distributions(with_server=request.with_server)),
        engine,
        tuple(choose_engine_files(system, devices, {path.name for path in engine.iterdir()})),
    )
    sources = [file.source for entry in program.distributions for file in entry.files]
    sources += [engine / name for name in program.engine_files]
    model_bytes = size_of_files(request.package.iterdir())
    needed_bytes = model_bytes + size_of_files(sources) + _SPARE_BYTES
    needed_bytes *= 2 if request.as_zip else 1
    check_space(target.parent, needed_bytes)
    return BundlePlan(request, manifest, program, target, needed_bytes)


def _find_engine() -> Path:
    spec = importlib.util.find_spec("openvino")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            "A bundle runs its model with OpenVINO, which is not installed.",
            "pip install qwen-edge on a system that OpenVINO has wheels for",
            package="openvino",
        )
    return Path(next(iter(spec.submodule_search_locations))) / "libs"


def make_bundle(plan: BundlePlan, progress: StepProgress) -> Bundle:
    """Make a bundle and try it.

    Args:
        plan: From `plan_bundle`.
        progress: Told of each step.

    Raises:
        EdgeError: The package is damaged, the disk full, or the bundle does not work. The target
            is as it was.
    """
    package = plan.request.package
    check_report(verify_package(package, _counted(progress, "check the package", plan)))
    origins = _find_origins(plan, progress)
    with stage(plan.target) as root:
        _copy_model(package, root / MODEL_FOLDER, plan, progress)
        progress("put the program together", 0, 0)
        placed = ProgramFiles(plan.program, root).place_all()
        facts = _describe(plan, root, placed, origins)
        parts = _write_papers(plan, root, placed, facts)
        progress("hash files", 0, 0)
        write_sums(root)
        progress("try the bundle", 0, 0)
        golden_tokens = try_bundle(root, plan.program.system.program)
        sizes = _measure(root, parts)
        zip_path = _publish(plan, root, progress)
    model_bytes = size_of_files((plan.target / MODEL_FOLDER).iterdir())
    total_bytes = size_of_files(plan.target / name for name in list_files(plan.target))
    return Bundle(
        folder=plan.target,
        zip_path=zip_path,
        facts=facts,
        model_bytes=model_bytes,
        program_bytes=total_bytes - model_bytes,
        zip_bytes=zip_path.stat().st_size if zip_path else None,
        sizes=sizes,
        golden_tokens=golden_tokens,
    )


def _counted(progress: StepProgress, step: str, plan: BundlePlan) -> Callable[[int], None]:
    """Return what counts bytes of the package for one step."""
    total = sum(facts.size_bytes for facts in plan.manifest.files.values())
    done = 0

    def report(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(step, done, total)

    return report


def _copy_model(package: Path, target: Path, plan: BundlePlan, progress: StepProgress) -> None:
    """Copy the package as it is, and prove that the copy is the sealed one."""
    make_folder(target)
    report = _counted(progress, "copy the model", plan)
    names = [*plan.manifest.files, MANIFEST_NAME]
    if TUNED_NAME not in names and (package / TUNED_NAME).is_file():
        names.append(TUNED_NAME)
    if has_signature(package):
        names.append(find_signature(package).name)
    for name in names:
        copy_file(inside(package, name), inside(target, name))
        report((target / name).stat().st_size)
    check_report(verify_package(target, _counted(progress, "check the copy", plan)))


def _find_origins(plan: BundlePlan, progress: StepProgress) -> Origins:
    """Compare what goes in with what was pinned and installed."""
    done = 0

    def report(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress("check the program's packages", done, 0)

    program = plan.program
    libraries = [program.engine / name for name in program.engine_files]
    return find_origins(program.distributions, libraries, report)


def _describe(plan: BundlePlan, root: Path, placed: Placed, origins: Origins) -> BundleFacts:
    files = [path for path in (root / LIB).rglob("*") if path.is_file() and is_elf(path)]
    request = plan.request
    return BundleFacts(
        plan.program.system,
        plan.program.devices,
        request.with_server,
        find_highest_version(files, "GLIBC"),
        plan.program.interpreter.version,
        plan.program.distributions[0].version,
        tuple(placed.notices),
        origins,
    )


def _write_papers(plan: BundlePlan, root: Path, placed: Placed, facts: BundleFacts) -> list[Part]:
    """Write launchers, licences, bill of materials and README; returns the parts."""
    launchers = _write_launchers(plan, root)
    parts = describe_parts(plan.manifest, plan.program, placed, root, launchers)
    write_licences(root, parts)
    system = facts.system
    properties = {
        "devices": ",".join(facts.devices),
        "system": f"{system.name}-{system.machine}",
        "server": str(facts.has_server).lower(),
    }
    if facts.c_library:
        properties["glibc"] = facts.c_library
    origins = facts.origins
    assert origins is not None
    model_hash = package_hash(root / MODEL_FOLDER)
    write_file(
        root / SBOM_NAME,
        write_sbom(
            plan.manifest,
            parts,
            package_hash=model_hash,
            properties={**properties, **origins.properties},
        ),
    )
    readme = write_readme(plan.manifest, facts)
    write_text(root / README_NAME, readme)
    content = {
        "format": FORMAT,
        "format_version": 1,
        "name": plan.manifest.name,
        "model": {"path": MODEL_FOLDER, "package_hash": model_hash},
        "qwen_edge": facts.project,
        "python": facts.python,
        **properties,
        "devices": list(facts.devices),
        "server": facts.has_server,
        "requirements": origins.as_json,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_text(root / FACTS_NAME, text)
    return parts


def _write_launchers(plan: BundlePlan, root: Path) -> list[str]:
    """Write what is started; returns the names."""
    system, with_server = plan.program.system, plan.request.with_server
    written: dict[str, bytes] = {}
    if system.name == "windows":
        written[system.program] = build_windows_launcher(find_windows_stub())
        server = write_windows_server_launcher(system.program)
        server_name = f"{SERVER_LAUNCHER}.cmd"
    else:
        for_drivers = plan.program.for_drivers
        text = write_linux_launcher(system.python, for_drivers=for_drivers)
        written[system.program] = text.encode()
        server, server_name = write_linux_server_launcher(system.program), SERVER_LAUNCHER
    if with_server:
        written[server_name] = server.encode()
    for name, content in written.items():
        write_file(root / name, content)
        (root / name).chmod(0o755)
    return list(written)


def _measure(root: Path, parts: list[Part]) -> dict[str, int]:
    """Return the bytes of each part but the model, largest first."""
    sizes = {
        part.name: size_of_files(root / name for name in part.digests if "!/" not in name)
        for part in parts
        if part.kind != "model"
    }
    papers = [
        root / name
        for name in list_files(root)
        if not name.startswith((f"{LIB}/", f"{MODEL_FOLDER}/"))
    ]
    sizes["licences and papers"] = size_of_files(papers)
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _publish(plan: BundlePlan, root: Path, progress: StepProgress) -> Path | None:
    """Put the bundle in its place, and its zip beside it."""
    request, target = plan.request, plan.target
    # A second look: making it took a while, in which anything may have appeared there.
    check_target(target, force=request.force, as_zip=request.as_zip)
    publish(root, target)
    if not request.as_zip:
        return None
    final = zip_of(target)
    total, done = size_of_files(target / name for name in list_files(target)), 0

    def report(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress("write the zip", done, total)

    replace_file(final, lambda file: write_folder_zip(target, file, report))
    return final
