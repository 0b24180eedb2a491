"""Remember that a package was fully hashed, so that the next load need not do it again.

One record per package path, holding the package hash with size and times of every file. This
module knows no engine; read `package.py` for the check that is remembered, and `records.py` for
how.
"""

import logging
import time
from pathlib import Path

from qwen_edge.runtime.manifest import MANIFEST_NAME, Manifest
from qwen_edge.runtime.package import Progress, check_report, package_hash, verify_package
from qwen_edge.runtime.records import Record, is_recorded, read_stamps, write_record

_LOGGER = logging.getLogger(__name__)
_KIND = "verified"


def check_verified(
    folder: Path | str,
    manifest: Manifest,
    *,
    cache_dir: Path | None,
    progress: Progress | None = None,
) -> bool:
    """Hash the package unless a record says that these very files were hashed before.

    Args:
        folder: The package folder.
        manifest: What `read_manifest` returned for it.
        cache_dir: Where records are kept; None to hash every time.
        progress: As for `verify_package`.

    Returns:
        True when the files were hashed now, False when the record was enough.

    Raises:
        PackageError: The package is not as it was sealed.

    State:
        Writes or replaces one record under `cache_dir` after a full check that passed.
    """
    folder = Path(folder)
    names = (*manifest.files, MANIFEST_NAME)
    sealed = package_hash(folder)
    record = Record(_KIND, folder, {"package_hash": sealed}, read_stamps(folder, names))
    if is_recorded(record, cache_dir):
        return False
    started_s = time.monotonic()
    report = verify_package(folder, progress)
    check_report(report)
    taken_s = time.monotonic() - started_s
    _LOGGER.info("Checked %d files of %s in %.1f s", report.num_files, folder, taken_s)
    if read_stamps(folder, names) == record.stamps:
        write_record(record, cache_dir)
    return True
