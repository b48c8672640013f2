"""params.yaml read and written, with its comments kept."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML


def get_param(path: Path, name: str) -> Any:
    section, key = name.split(".")
    return YAML(typ="safe", pure=True).load(path)[section][key]


def set_param(path: Path, name: str, value: object) -> None:
    """Set one param of the file, as `dvc exp run -S` would."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    content = yaml.load(path)
    section, key = name.split(".")
    content[section][key] = value
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    beside.replace(path)
