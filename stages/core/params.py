"""params.yaml in, one checked section out: a wrong key, type or value is one line that names the key."""

import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.core.errors import StageError


class Section(pydantic.BaseModel):
    """What each section of params.yaml is: frozen, without defaults, unknown keys forbidden."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


T = TypeVar("T", bound=Section)
sections_read: dict[tuple[Path, str], Any] = {}  # by file and section: its content when it was read


class Machine(Section):
    """The section that stages share. `threads` governs torch, OpenMP, BLAS and ONNX Runtime."""

    arithmetic: Literal["portable", "native"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: int = pydantic.Field(ge=1, le=1024)


def read_section(path: Path, name: str, section: type[T]) -> T:
    """The section `name` of the file, once the names of all sections are known to be right."""
    content = load_params(path)
    known = sorted({*stage_names(), "machine"})
    for key in content:
        if key not in known:
            raise StageError(f"{path}: unknown section {key!r}{suggest(str(key), known)}")
    if name not in content:
        raise StageError(f"{path}: the section {name!r} is missing")
    sections_read[path.absolute(), name] = content[name]
    try:
        return section.model_validate(content[name])
    except pydantic.ValidationError as error:
        wrongs = error.errors()
        unknown = [wrong for wrong in wrongs if wrong["type"] == "extra_forbidden"]  # else a typo is named twice
        raise StageError(
            "; ".join(f"{path}: {describe_error(name, section, wrong)}" for wrong in unknown or wrongs)
        ) from None


def changed_params() -> list[str]:
    """The params that this process has read and that are not what they were."""
    changed, missing = [], object()
    for (path, name), before in sections_read.items():
        now = load_params(path).get(name)
        now = now if isinstance(now, dict) else {}
        changed += [f"{name}.{key}" for key in {**before, **now} if before.get(key, missing) != now.get(key, missing)]
    return changed


def load_params(path: Path) -> dict[str, Any]:
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path}: there is no such params file") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise StageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise StageError(f"{path}: must hold sections, each with its keys")
    return content


def stage_names() -> list[str]:
    """A stage is a module of stages/; its section has the same name."""
    return [module.stem for module in Path(__file__).parent.parent.glob("*.py") if not module.stem.startswith("__")]


def describe_error(name: str, section: type[Section], wrong: Any) -> str:
    keys = [str(key) for key in wrong["loc"]]
    where = ".".join([name, *keys])
    if wrong["type"] == "extra_forbidden":
        return f"unknown param {where}{suggest(keys[-1], list(section.model_fields))}"
    if wrong["type"] == "missing":
        return f"the param {where} is missing"
    given = wrong["input"]
    message = wrong["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}" + ("" if isinstance(given, dict) else f", not {given!r}")


def suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(known)})"
