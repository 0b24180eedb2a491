"""The folder `lib` of a bundle: interpreter, packages, engine, and libraries of the system.

Everything is copied and nothing is changed but three things: debugging symbols are taken out of
what this system compiled, absolute folders out of what looks for libraries, and OpenBLAS is
replaced (`blas.py`). Read `pipeline.py` for what comes before and after.
"""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from qwen_edge.bundle.archive import write_module_zip
from qwen_edge.bundle.blas import (
    LEFT_OUT_LIBRARIES,
    LINEAR_ALGEBRA,
    LINEAR_ALGEBRA_STUB,
    REPLACED_LIBRARY,
    build_plain_blas,
    can_be_replaced,
    find_unmet,
)
from qwen_edge.bundle.bytecode import Module, compile_modules
from qwen_edge.bundle.distributions import PROJECT, WITHOUT_DOCSTRINGS, Distribution
from qwen_edge.bundle.elf import is_elf
from qwen_edge.bundle.interpreter import (
    BUILD_FACTS,
    MODULES,
    PACKAGES,
    PACKAGES_ZIP,
    STANDARD_LIBRARY_ZIP,
    Interpreter,
    name_build_facts,
    write_search_path,
)
from qwen_edge.bundle.launchers import CXX_FOLDER
from qwen_edge.bundle.shared_libraries import (
    C_LIBRARY,
    CXX_LIBRARIES,
    DRIVER_LIBRARIES,
    LibraryGatherer,
    SystemLibrary,
    forget_machine_paths,
)
from qwen_edge.bundle.systems import System
from qwen_edge.runtime.files.opening import inside
from qwen_edge.runtime.files.writing import (
    copy_file,
    make_folder,
    remove,
    remove_file,
    rename,
    write_text,
)

LIB = "lib"
INTERPRETER = "Python"
ENGINE_FOLDER = "openvino/libs"
_COMPILED = ".compiled"
# Less is not worth running a tool over a file that its makers have finished.
_MIN_SHARE_STRIPPED = 0.08


@dataclass(frozen=True)
class Program:
    """What the program of a bundle is made of.

    Args:
        system: What it is for.
        devices: What the engine's libraries are for.
        interpreter: The Python.
        distributions: The project first.
        engine: Folder of the engine's libraries here.
        engine_files: Names of those that are wanted.
    """

    system: System
    devices: tuple[str, ...]
    interpreter: Interpreter
    distributions: tuple[Distribution, ...]
    engine: Path
    engine_files: tuple[str, ...]

    @property
    def for_drivers(self) -> bool:
        """Whether a device has a driver of its own, which must not meet our C++ library."""
        return self.devices != ("CPU",)


@dataclass
class Placed:
    """What was put where, by part.

    Args:
        files: Part → names in the bundle.
        zipped: Part → name in a zip, as "lib/packages.zip!/click/core.pyc" → SHA-256.
        libraries: Libraries of this system that were added.
        notices: What did not go as it should; sentences.
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    zipped: dict[str, dict[str, str]] = field(default_factory=dict)
    libraries: list[SystemLibrary] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


class ProgramFiles:
    """Fills the folder `lib`.

    Args:
        program: What goes in.
        root: The bundle's folder.

    State:
        Collects what was placed; each method is called once, in the order of `place_all`.
    """

    def __init__(self, program: Program, root: Path) -> None:
        self.placed = Placed()
        self._program = program
        self._root = root
        self._lib = root / LIB
        self._origins: dict[Path, Path] = {}
        self._modules: list[Module] = []
        # Zip → name in it → (compiled file, part).
        self._zips: dict[str, dict[str, tuple[Path, str]]] = {}

    def place_all(self) -> Placed:
        """Put everything in its place and return what that was.

        Raises:
            DeviceError: A library is nowhere on this system.
            ResourceError: Modules could not be compiled.
            OSError: The disk is full.
        """
        make_folder(self._lib)
        self._place_interpreter()
        for distribution in self._program.distributions:
            self._place_distribution(distribution)
        for name in self._program.engine_files:
            source = self._program.engine / name
            self._copy(source, f"{PACKAGES}/{ENGINE_FOLDER}/{name}", "openvino")
        self._replace_blas()
        compile_modules(self._modules)
        self._write_zips()
        if self._program.system.name == "linux":
            self._add_libraries()
            self._strip()
        return self.placed

    def _copy(self, source: Path, name: str, part: str, *, is_program: bool = False) -> None:
        target = inside(self._lib, name)
        make_folder(target.parent)
        copy_file(source, target)
        target.chmod(0o755 if is_program else 0o644)
        self._note(target, part)
        if is_elf(target):
            self._origins[target] = source.resolve()

    def _note(self, target: Path, part: str) -> None:
        name = target.relative_to(self._root).as_posix()
        self.placed.files.setdefault(part, []).append(name)

    def _compile(self, source: Path, name: str, part: str, archive: str | None) -> None:
        """Have a module compiled, into a zip or into the folder of packages."""
        compiled = f"{name.removesuffix('.py')}.pyc"
        if archive is None:
            target = inside(self._lib / PACKAGES, compiled)
        else:
            target = inside(self._root / _COMPILED / archive, compiled)
            self._zips.setdefault(archive, {})[compiled] = (target, part)
        make_folder(target.parent)
        keeps_texts = part != INTERPRETER and part not in WITHOUT_DOCSTRINGS
        self._modules.append(Module(source, target, name, keeps_texts))

    def _place_interpreter(self) -> None:
        interpreter, system = self._program.interpreter, self._program.system
        self._copy(interpreter.program, system.python, INTERPRETER, is_program=True)
        for path in interpreter.libraries:
            self._copy(path, path.name, INTERPRETER)
        folder = "" if system.name == "windows" else f"{MODULES}/"
        for path in interpreter.modules:
            self._copy(path, f"{folder}{path.name}", INTERPRETER)
        for source, name in interpreter.sources:
            self._compile(source, name, INTERPRETER, STANDARD_LIBRARY_ZIP)
        if system.name == "linux":
            stub = self._root / _COMPILED / "build_facts.py"
            write_text(stub, BUILD_FACTS)
            self._compile(stub, name_build_facts(), INTERPRETER, STANDARD_LIBRARY_ZIP)
        search_path = self._lib / f"{system.python.removesuffix('.exe')}._pth"
        write_text(search_path, write_search_path(system))
        self._note(search_path, INTERPRETER)

    def _place_distribution(self, distribution: Distribution) -> None:
        is_zipped = distribution.is_pure
        folder, header = distribution.metadata
        for file in distribution.files:
            if file.name.endswith(".py"):
                archive = PACKAGES_ZIP if is_zipped else None
                self._compile(file.source, file.name, distribution.name, archive)
            else:
                self._copy(file.source, f"{PACKAGES}/{file.name}", distribution.name)
        if is_zipped:
            target = self._root / _COMPILED / PACKAGES_ZIP / folder / "METADATA"
            entry = (target, distribution.name)
            self._zips.setdefault(PACKAGES_ZIP, {})[f"{folder}/METADATA"] = entry
        else:
            target = self._lib / PACKAGES / folder / "METADATA"
            self._note(target, distribution.name)
        make_folder(target.parent)
        write_text(target, header)

    def _replace_blas(self) -> None:
        """Put the small library in the place of OpenBLAS, if NumPy came with that."""
        packages = self._lib / PACKAGES
        found = sorted((packages / "numpy.libs").glob(f"{REPLACED_LIBRARY}*"))
        if not can_be_replaced() or len(found) != 1:
            return
        modules = [path for path in self._origins if path.is_relative_to(packages / "numpy")]
        inside = {path: path.relative_to(packages).as_posix() for path in modules}
        dropped = [path for path in modules if inside[path].startswith(LINEAR_ALGEBRA)]
        plain = self._root / "plain_blas.so"
        reason = build_plain_blas(plain)
        if reason is None:
            unmet = find_unmet(plain, [path for path in modules if path not in dropped], found[0])
            reason = f"NumPy wants {unmet[0]} of it, which the small one has not" if unmet else None
        if reason is not None:
            remove_file(plain)
            self.placed.notices.append(f"OpenBLAS stays, 26 MB: {reason}.")
            return
        plain.replace(found[0])
        found[0].chmod(0o644)
        self._origins[found[0]] = found[0]
        useless = [
            path
            for path in (packages / "numpy.libs").iterdir()
            if path.name.startswith(LEFT_OUT_LIBRARIES)
        ]
        for path in [*dropped, *useless]:
            remove_file(path)
            del self._origins[path]
            self.placed.files["numpy"].remove(path.relative_to(self._root).as_posix())
        stub = self._root / _COMPILED / "stub.py"
        write_text(stub, LINEAR_ALGEBRA_STUB)
        self._compile(stub, "numpy/linalg/_umath_linalg.py", "numpy", None)
        name = found[0].relative_to(self._root).as_posix()
        self.placed.files["numpy"].remove(name)
        self.placed.files[PROJECT].append(name)

    def _write_zips(self) -> None:
        for archive, entries in self._zips.items():
            content = {
                name: path.read_bytes() for name, (path, _) in entries.items() if path.is_file()
            }
            path = self._lib / archive
            write_module_zip(path, content)
            for name, data in content.items():
                part = entries[name][1]
                digests = self.placed.zipped.setdefault(part, {})
                digests[f"{LIB}/{archive}!/{name}"] = hashlib.sha256(data).hexdigest()
            self._note(path, INTERPRETER if archive == STANDARD_LIBRARY_ZIP else PROJECT)
        remove(self._root / _COMPILED)
        for module in self._modules:
            if module.target.is_relative_to(self._lib) and module.target.is_file():
                part = self._part_of(module)
                self._note(module.target, part)

    def _part_of(self, module: Module) -> str:
        """Return whose a module in the folder of packages is: that of its neighbours' metadata."""
        top = module.name.split("/")[0]
        for distribution in self._program.distributions:
            if any(file.name.split("/")[0] == top for file in distribution.files):
                return distribution.name
        raise AssertionError(module.name)

    def _add_libraries(self) -> None:
        """Copy what the files need of this system, and what that needs."""
        allowed = C_LIBRARY | (DRIVER_LIBRARIES if self._program.for_drivers else frozenset())
        for library in LibraryGatherer(allowed).find_missing(self._origins):
            if library.name.startswith("libpython"):
                self._copy(library.source, library.name, INTERPRETER)
                continue
            is_shared = self._program.for_drivers and library.name in CXX_LIBRARIES
            name = f"{CXX_FOLDER}/{library.name}" if is_shared else library.name
            self._copy(library.source, name, library.name)
            self.placed.libraries.append(library)
        for path in self._origins:
            forget_machine_paths(path)

    def _strip(self) -> None:
        """Take symbols that only debuggers read out of files, where that is worth it."""
        tool = shutil.which("strip")
        if tool is None:
            self.placed.notices.append(
                "Debugging symbols stay, up to 30 MB: there is no `strip` "
                "(Debian: apt install binutils)."
            )
            return
        for path in self._origins:
            stripped = path.with_name(f"{path.name}.stripped")
            command = [tool, "--strip-unneeded", "-o", str(stripped), str(path)]
            done = subprocess.run(command, capture_output=True, check=False)
            if done.returncode == 0:
                saved = 1 - stripped.stat().st_size / path.stat().st_size
                if saved >= _MIN_SHARE_STRIPPED:
                    stripped.chmod(path.stat().st_mode)
                    rename(stripped, path)
            remove_file(stripped)
