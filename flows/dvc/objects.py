"""The objects in DVC's cache, held against their hashes: DVC itself does not hash what it takes from there.

Only the standard library is imported, since the doctor uses this where packages are missing.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BLOCK = 1 << 20  # bytes


def object_path(cache: Path, digest: str) -> Path:
    return cache / "files" / "md5" / digest[:2] / digest[2:]


def list_objects(cache: Path, entries: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Of each object that dvc.lock names, and of each file in a folder: its hash, the path it is of, and the stage."""
    for stage, entry in entries.items():
        for out in entry.get("outs", []):
            digest = out.get("md5", "")
            if "md5" in out:
                yield digest, out["path"], stage
            if digest.endswith(".dir"):
                try:
                    files = json.loads(object_path(cache, digest).read_text(encoding="utf-8"))
                    yield from ((file["md5"], f"{out['path']}/{file['relpath']}", stage) for file in files)
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # absent or broken, as object_state says


def object_state(file: Path, digest: str, deadline: float | None = None) -> str:
    """intact, broken, absent, or unread if the deadline (of time.monotonic) has passed."""
    if not file.exists():
        return "absent"
    md5 = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as content:
        while block := content.read(BLOCK):
            if deadline is not None and time.monotonic() > deadline:
                return "unread"
            md5.update(block)
    return "intact" if md5.hexdigest() == digest.removesuffix(".dir") else "broken"


def remove_broken_outs(root: Path, cache: Path, entries: Mapping[str, Any]) -> list[str]:
    """Remove the outs whose objects have other bytes than their name says, with the objects; returns the paths."""
    removed = []
    for digest, path, _ in list_objects(cache, entries):
        file = object_path(cache, digest)
        if object_state(file, digest) == "broken":
            file.unlink(missing_ok=True)
            if (root / path).is_dir() and not (root / path).is_symlink():
                shutil.rmtree(root / path)
            else:
                (root / path).unlink(missing_ok=True)
            removed.append(path)
    return removed
