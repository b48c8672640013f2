"""dvc.yaml as records: the stages, and the artifacts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML


@dataclass(frozen=True)
class Stage:
    name: str
    command: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Dag:
    stages: dict[str, Stage]
    artifacts: dict[str, str]  # name to path

    def metrics(self, stage: str) -> Path:
        """The metrics file of a stage that has one."""
        return Path(self.stages[stage].metrics[0])


def read_dag(root: Path) -> Dag:
    content = YAML(typ="safe", pure=True).load(root / "dvc.yaml")
    stages = {
        name: Stage(name, entry["cmd"], paths(entry.get("metrics", []))) for name, entry in content["stages"].items()
    }
    return Dag(stages, {name: entry["path"] for name, entry in content.get("artifacts", {}).items()})


def paths(entries: list[Any]) -> tuple[str, ...]:
    """Each entry is a path, or a path with its options."""
    return tuple(entry if isinstance(entry, str) else next(iter(entry)) for entry in entries)
