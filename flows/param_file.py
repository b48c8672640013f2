"""params.yaml read and written, with its comments kept."""

import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


def get_param(path: Path, name: str) -> Any:
    section, key = name.split(".")
    return loaded(YAML(typ="safe", pure=True), path, section, key)[section][key]


def set_param(path: Path, name: str, value: object) -> None:
    """Set one param of the file, as `dvc exp run -S` would."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    section, key = name.split(".")
    content = loaded(yaml, path, section, key)
    content[section][key] = value
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    beside.replace(path)


def loaded(yaml: YAML, path: Path, section: str, key: str) -> Any:
    """The file's content, which has the key; else one line and an end."""
    try:
        content = yaml.load(path)
        content[section][key]
    except (OSError, YAMLError) as error:
        sys.exit(f"{path}: {' '.join(str(error).split())}")
    except (KeyError, TypeError):
        sys.exit(f"{path}: has no param {section}.{key}")
    return content
