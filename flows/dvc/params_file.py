"""Reads experiments.yaml, and reads and changes params.yaml. A param is named as for `dvc exp run -S`: train.epochs."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.errors import FlowError

Experiments = dict[str, dict[str, Any]]  # the params of each experiment, by its name


def get_param(path: Path, name: str) -> Any:
    section, key = find_section(load_yaml(YAML(typ="safe", pure=True), path), path, name)
    return section[key]


def set_param(path: Path, name: str, value: object) -> None:
    write_params(path, edit_params_text(path, {name: value}))


def read_params(path: Path) -> dict[str, Any]:
    return dict(load_yaml(YAML(typ="safe", pure=True), path))


def read_experiments(root: Path) -> Experiments:
    content = load_yaml(YAML(typ="safe", pure=True), root / "experiments.yaml")
    if not all(isinstance(params, dict | None) for params in content.values()):
        raise FlowError("experiments.yaml: each entry is a set of params, as in 'name: {train.epochs: 3}'")
    return {str(name): params or {} for name, params in content.items()}


def edit_params_text(path: Path, changes: Mapping[str, object]) -> str:
    """The file's text, with its comments and these params changed, as in {"train.epochs": 5}; each must exist."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    content = load_yaml(yaml, path)
    for name, value in changes.items():
        section, key = find_section(content, path, name)
        section[key] = value
    text = io.StringIO()
    yaml.dump(content, text)
    return text.getvalue()


def write_params(path: Path, text: str) -> None:
    tmp = path.with_name(f".{path.name}.partial")
    tmp.write_text(text, encoding="utf-8")
    tmp.replace(path)


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"train": {"epochs": 5}} as {"train.epochs": 5}."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{name}.{key}": inner for key, inner in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def parse_overrides(flags: Sequence[str]) -> dict[str, Any]:
    """["train.epochs=5"] as {"train.epochs": 5}, with values read as YAML."""
    changes: dict[str, Any] = {}
    for flag in flags:
        name, equals, value = flag.partition("=")
        if not equals:
            raise FlowError(f"-S {show(flag)}: give a param and its value, as in -S train.epochs=5")
        try:
            changes[name.strip()] = YAML(typ="safe", pure=True).load(value)
        except Exception as error:  # of many types, as above
            raise FlowError(f"-S {show(flag)}: the value is not valid YAML") from error
        if changes[name.strip()] is None:
            raise FlowError(f"-S {show(flag)}: has no value")
    return changes


def load_yaml(yaml: YAML, path: Path) -> Any:
    try:
        content = yaml.load(path) or {}
    except Exception as error:  # of many types: ValueError for a wrong date, RecursionError for deep nesting
        raise FlowError(f"{path.name}: {' '.join(str(error).split()):.500}") from error
    if not isinstance(content, Mapping):
        raise FlowError(f"{path.name}: must be a mapping, as in {{train: {{epochs: 5}}}}")
    return content


def find_section(content: Any, path: Path, name: str) -> tuple[Any, str]:
    """The section that has the param, and the param's key in it."""
    *sections, key = name.split(".")
    section = content
    for one in sections:
        section = section.get(one) if isinstance(section, Mapping) else None
    if not sections or not isinstance(section, Mapping) or key not in section:
        raise FlowError(f"{path.name}: has no param {show(name)}")
    return section, key


def show(text: str) -> str:
    """A text of the command line in a message of one line."""
    return text if text.isprintable() and len(text) < 200 else f"{text[:200]!r}"
