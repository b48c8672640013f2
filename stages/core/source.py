"""The source that a stage runs: as it was when the process began, and as it is now.

DVC takes the checksums of a stage's deps when its command has ended. A file that was edited meanwhile would be recorded
as what made the outputs, though it did not.
"""

import hashlib
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
hashes_at_start: dict[Path, str] = {}


def snapshot_source() -> None:
    """Called before a stage's own module is read."""
    hashes_at_start.update({path: file_hash(path) for path in PACKAGE.rglob("*.py")})


def changed_source() -> list[str]:
    """The files that this process has loaded and that are not what they were."""
    known = [path for path in sorted(loaded_source_files()) if path in hashes_at_start]
    changed = [path for path in known if not path.exists() or file_hash(path) != hashes_at_start[path]]
    return [path.relative_to(PACKAGE.parent).as_posix() for path in changed]


def loaded_source_files() -> set[Path]:
    """The files of this package that this process has loaded, its own command's among them."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return {Path(file) for file in files if file and file.startswith(f"{PACKAGE}/")}  # of thousands: no Path for each


def file_hash(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
