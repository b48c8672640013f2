"""The types of the flow's parameters, from which Prefect makes a form: the stages of dvc.yaml, and each param."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from flows.dvc.dag import group_name, read_dag
from flows.dvc.params_file import load_yaml
from flows.errors import FlowError
from flows.process import stream_command


class Overrides(BaseModel):
    """Params that the run changes first: {"train": {"epochs": 5}}, or {"train.epochs": 5}."""

    model_config = ConfigDict(extra="allow")


def stage_name_type(root: Path) -> Any:
    """A choice of the stages; any text if dvc.yaml cannot be read, which the run then reports."""
    try:
        names = [*read_dag(root).stages]
    except FlowError:
        return str
    groups = [group for name in names if (group := group_name(name)) != name]
    choice: Any = Literal[tuple(dict.fromkeys([*names, *groups]))]
    return choice | str if groups else choice  # a changed param may add stages to a `foreach` or `matrix`


def make_overrides_model(root: Path) -> type[Overrides]:
    """Overrides with a field for each param, described by its comment and its present value."""
    try:
        content = load_yaml(YAML(), root / "params.yaml")
    except FlowError:
        return Overrides
    sections: dict[str, Any] = {
        name: (create_model(name, __base__=Overrides, **section_fields(section)) | None, None)
        for name, section in content.items()
        if isinstance(section, CommentedMap)
    }
    return create_model("Overrides", __base__=Overrides, **sections)


def section_fields(section: CommentedMap) -> dict[str, Any]:
    """A field for each param of a section."""

    def field(key: str, value: object) -> tuple[Any, Any]:
        return param_type(value) | None, Field(None, description=f"{param_comment(section, key)} [{value}]".strip())

    return {key: field(key, value) for key, value in section.items() if isinstance(key, str)}


def param_type(value: object) -> Any:
    """The type of a form's field. ruamel.yaml reads texts and numbers as subclasses of str, int and float."""
    if isinstance(value, bool):
        return bool
    if isinstance(value, int | float):
        return int | float
    return str if isinstance(value, str) else list[Any] if isinstance(value, list) else Any


def param_comment(section: CommentedMap, key: str) -> str:
    tokens = section.ca.items.get(key)
    return tokens[2].value.strip("# \n") if tokens and tokens[2] else ""


async def validate_params(root: Path, text: str, stages: Sequence[str]) -> None:
    """Check the text of a params.yaml against the sections of these stages."""
    if not stages:
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        file.write_text(text, encoding="utf-8")
        names = dict.fromkeys(map(group_name, stages))
        result = await stream_command(["python", "-m", "stages", "--params", str(file), *names], root)
    if result.returncode:
        raise FlowError("\n".join(result.lines).replace(str(file), file.name))
