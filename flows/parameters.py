"""What the flow takes, as types that make a form: the stages of dvc.yaml to choose from, each param of params.yaml."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from flows.dvc.dag import read_dag
from flows.dvc.params_file import load
from flows.errors import FlowError
from flows.process import follow

PLAIN: dict[type, Any] = {bool: bool, str: str, list: list[Any]}  # ruamel reads texts and numbers as types of its own


class Overrides(BaseModel):
    """Params that the run changes first. {"train": {"epochs": 5}} and {"train.epochs": 5} say the same."""

    model_config = ConfigDict(extra="allow")


def stage_names(root: Path) -> Any:
    """The type of a stage's name; any text where dvc.yaml cannot be read, which the run itself then says."""
    try:
        return Literal[tuple(read_dag(root).stages)]
    except FlowError:
        return str


def overrides(root: Path) -> type[Overrides]:
    """Overrides with a field for each param, which says what it does and what it is now."""
    try:
        content = load(YAML(), root / "params.yaml")
    except FlowError:
        return Overrides
    sections: dict[str, Any] = {
        name: (create_model(name, __base__=Overrides, **fields(keys)) | None, None)
        for name, keys in content.items()
        if isinstance(keys, CommentedMap)
    }
    return create_model("Overrides", __base__=Overrides, **sections)


def fields(section: CommentedMap) -> dict[str, Any]:
    return {
        key: (kind(value) | None, Field(None, description=f"{comment(section, key)} [{value}]".strip()))
        for key, value in section.items()
        if isinstance(key, str)
    }


def kind(value: object) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int | float
    return next((plain for type_, plain in PLAIN.items() if isinstance(value, type_)), Any)


def comment(section: CommentedMap, key: str) -> str:
    tokens = section.ca.items.get(key)
    return tokens[2].value.strip("# \n") if tokens and tokens[2] else ""


async def validate_params(root: Path, text: str, stages: Sequence[str]) -> None:
    """Hold a params file's text against the sections of these stages."""
    if not stages:
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        file.write_text(text, encoding="utf-8")
        done = await follow(["python", "-m", "stages", "--params", str(file), *stages], root)
    if done.status:
        raise FlowError("\n".join(done.lines).replace(str(file), file.name))
