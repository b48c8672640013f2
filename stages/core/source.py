"""Finds source files that were edited while a stage ran.

DVC hashes the deps of a stage after its command has ended. If one was edited while the command ran, DVC would record a
version that has not made the outputs.
"""

import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = tuple(ROOT / name for name in ("stages", "lockstep"))
hashes_at_start: dict[Path, str] = {}


def snapshot_source() -> None:
    """Record the hash of every source file; called before the module of the stage is imported."""
    hashes_at_start.update({path: file_hash(path) for package in PACKAGES for path in package.rglob("*.py")})


def changed_source() -> list[str]:
    """The files that this process has imported and that have changed since."""
    known = [path for path in sorted(loaded_source_files()) if path in hashes_at_start]
    changed = [path for path in known if not path.exists() or file_hash(path) != hashes_at_start[path]]
    return [path.relative_to(ROOT).as_posix() for path in changed]


def loaded_source_files() -> set[Path]:
    """The files of PACKAGES that this process has imported, including the module that runs as a command."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    folders = tuple(f"{package}/" for package in PACKAGES)
    return {Path(file) for file in files if file and file.startswith(folders)}  # no Path for thousands of others


def file_hash(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
