"""Reads and validates a section of params.yaml: a wrong key, type or value becomes one line that names the key."""

import difflib
from pathlib import Path
from reprlib import Repr
from typing import Any, ClassVar, Literal, TypeVar

import pydantic
from ruamel.yaml import YAML

from stages.core.errors import StageError


class Section(pydantic.BaseModel):
    """Base class of the sections of params.yaml: frozen, without defaults, unknown keys forbidden."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    renamed: ClassVar[dict[str, str]] = {}  # previous name of a param: its name now


SectionT = TypeVar("SectionT", bound=Section)
SHARED_SECTIONS = ("machine", "promote")  # `promote` is read by flows/comparison.py
SHORT = Repr()  # of a value in a message, which may be a nested structure of any size
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 80
SHORT.maxlist = 20
sections_read: dict[tuple[Path, str], Any] = {}  # by file and section: its content when it was read


class Machine(Section):
    """The section that stages share. `threads` applies to torch, OpenMP, BLAS and ONNX Runtime."""

    arithmetic: Literal["portable", "native"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: int = pydantic.Field(ge=1, le=1024)


def read_section(path: Path, name: str, section: type[SectionT]) -> SectionT:
    """Validate the section `name` of the file. An unknown section anywhere in the file is an error too."""
    content = load_params(path)
    known = sorted({*stage_names(), *SHARED_SECTIONS})
    for key in content:
        if key not in known:
            raise StageError(f"{path}: unknown section {SHORT.repr(key)}{suggest(str(key), known)}")
    if name not in content:
        raise StageError(f"{path}: the section {name!r} is missing")
    sections_read[path.absolute(), name] = content[name]
    try:
        return section.model_validate(content[name])
    except pydantic.ValidationError as error:
        messages = describe_errors(name, section, error.errors())
        raise StageError("; ".join(f"{path}: {message}" for message in messages)) from None


def changed_params() -> list[str]:
    """The params that this process has read, and that have another value in the file now."""
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
    except OSError:
        raise
    except Exception as error:  # of many types: ValueError for a wrong date, RecursionError for deep nesting
        raise StageError(f"{path}: not valid YAML: {' '.join(str(error).split()):.500}") from None
    if not isinstance(content, dict):
        raise StageError(f"{path}: must hold sections, each with its keys")
    return content


def stage_names() -> list[str]:
    """The modules of stages/. The section of a stage, if it has params, has the same name."""
    modules = Path(__file__).parent.parent.glob("*.py")
    return sorted(module.stem for module in modules if not module.stem.startswith("__"))


def describe_errors(name: str, section: type[Section], errors: list[Any]) -> list[str]:
    """One message for each error. If there is an unknown key, only that: often it is a missing key, misspelt."""
    unknown = [error["loc"][-1] for error in errors if error["type"] == "extra_forbidden"]
    if renamed := [key for key in unknown if key in section.renamed]:
        return [f"{name}.{key} is now called {name}.{section.renamed[key]}: rename it" for key in renamed]
    if unknown:
        return [f"unknown param {name}.{show_key(key)}{suggest(key, list(section.model_fields))}" for key in unknown]
    return [describe_error(".".join([name, *map(str, error["loc"])]), error) for error in errors]


def describe_error(param: str, error: Any) -> str:
    if error["type"] == "missing":
        return f"the param {param} is missing"
    value, message = error["input"], error["msg"].removeprefix("Value error, ")
    value = "" if isinstance(value, dict) else f", not {SHORT.repr(value)}"
    return f"{show_key(param)}: {message[0].lower()}{message[1:]}{value}"


def show_key(key: str) -> str:
    """On one line, and not longer than it."""
    return key if key.isprintable() and len(key) < 100 else SHORT.repr(key)


def suggest(word: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else f" (known: {', '.join(known)})"
