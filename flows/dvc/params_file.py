"""params.yaml read and changed, with its comments kept."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.errors import FlowError


def get_param(path: Path, name: str) -> Any:
    section, key = split(name)
    return found(read_params(path), path, section, key)[section][key]


def set_param(path: Path, name: str, value: object) -> None:
    """Set one param of the file, as `dvc exp run -S` would."""
    write_params(path, with_changes(path, {name: value}))


def read_params(path: Path) -> dict[str, Any]:
    return dict(load(YAML(typ="safe", pure=True), path))


def with_changes(path: Path, changes: Mapping[str, object]) -> str:
    """The file's text with these params changed, {"train.epochs": 5}; each must be there."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    content = load(yaml, path)
    for name, value in changes.items():
        section, key = split(name)
        found(content, path, section, key)[section][key] = value
    text = io.StringIO()
    yaml.dump(content, text)
    return text.getvalue()


def write_params(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"train": {"epochs": 5}} as {"train.epochs": 5}."""
    names: dict[str, Any] = {}
    for name, value in params.items():
        inner = flatten(value) if isinstance(value, Mapping) and value else None
        names |= {name: value} if inner is None else {f"{name}.{key}": of for key, of in inner.items()}
    return names


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """["train.epochs=5"] as {"train.epochs": 5}, values read as YAML."""
    changes: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise FlowError(f"-S {word}: say which param and its value, as in -S train.epochs=5")
        try:
            changes[name.strip()] = YAML(typ="safe", pure=True).load(value)
        except YAMLError as error:
            raise FlowError(f"-S {word}: the value is not valid YAML") from error
        if changes[name.strip()] is None:
            raise FlowError(f"-S {word}: has no value")
    return changes


def split(name: str) -> tuple[str, str]:
    section, _, key = name.partition(".")
    return section, key


def load(yaml: YAML, path: Path) -> Any:
    try:
        content = yaml.load(path)
    except (OSError, YAMLError) as error:
        raise FlowError(f"{path.name}: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise FlowError(f"{path.name}: must hold sections, each with its keys")
    return content


def found(content: Any, path: Path, section: str, key: str) -> Any:
    """The content, which has the param."""
    if not isinstance(content.get(section), Mapping) or key not in content[section]:
        raise FlowError(f"{path.name}: has no param {section}.{key}")
    return content
