"""Fuzz targets: params.yaml, dvc.yaml, dvc.lock and what is given on the command line of the flow."""

import asyncio
import json
from pathlib import Path
from random import Random
from typing import Any

from conftest import ROOT
from fuzz_target import Target
from mutations import mutate_bytes, mutate_json, serialize
from ruamel.yaml import YAML
from valid_inputs import YAML_TOKENS


def params(folder: Path) -> Target:
    """params.yaml, by the stages that validate their sections and by the flow that edits it."""
    from flows.dvc.params_file import edit_params_text, flatten, read_params
    from flows.errors import FlowError
    from stages.core.errors import StageError
    from stages.core.params import changed_params, read_section, sections_read

    path = folder / "params.yaml"
    sections = read_sections()
    content = {name: section for name, (section, _) in sections.items()}
    small = {name: content[name] for name in ("machine", "download", "preprocess")}
    comments = b"download:\n  dataset: mnist  # a comment\nmachine: {arithmetic: native, device: cpu, threads: 2}\n"
    valid = [json.dumps(content).encode(), comments]

    def make(generator: Random) -> bytes:
        if generator.random() < 0.2:
            return mutate_bytes(generator, [comments, json.dumps(small).encode()], YAML_TOKENS)
        name = generator.choice([name for name in content if name != "machine"])
        return serialize(generator, mutate_json(generator, {key: content[key] for key in ("machine", name)}), 200)

    def use(data: bytes) -> None:
        path.write_bytes(data)
        flatten(read_params(path))
        edit_params_text(path, {})
        sections_read.clear()
        for name, (_, section) in sections.items():
            if section and name.encode() in data:
                read_section(path, name, section)
        assert not changed_params()

    return Target(valid, make, use, (StageError, FlowError))


def overrides(_: Path) -> Target:
    """-S PARAM=VALUE, as the flow's command line takes it."""
    from flows.dvc.params_file import edit_params_text, flatten, parse_overrides
    from flows.errors import FlowError

    path = ROOT / "params.yaml"
    valid = ["train.epochs=5", "train.betas=[0.9, 0.99]", "preprocess.fit=crop", "train.start_from=''"]

    def make(generator: Random) -> str:
        data = mutate_bytes(generator, [text.encode() for text in valid], YAML_TOKENS)
        if generator.random() < 0.3:
            data = b"train.epochs=" + serialize(generator, mutate_json(generator, [1]), 200)
        return data.decode("utf-8", "surrogateescape").replace("\0", "")  # as sys.argv has it

    def use(text: str) -> None:
        changes = flatten(parse_overrides([text]))
        if len(text) % 20 == 0:  # reading the whole file takes some milliseconds
            edit_params_text(path, changes)

    return Target(valid, make, use, (FlowError,))


def dag(folder: Path) -> Target:
    """dvc.yaml as the flow reads it."""
    from flows.dvc.dag import parse_dag, read_dag
    from flows.errors import FlowError

    content = {
        "stages": {
            "a": {"cmd": "run a", "deps": ["x"], "outs": ["y", {"z": {"cache": False}}], "params": ["a"]},
            "b": {
                "cmd": ["run b", "again"], "desc": "the stage b", "deps": ["y"], "metrics": [{"m": None}],
                "meta": {"prefect": {"retries": 3, "retry_delay_seconds": [5], "tags": ["gpu"], "timeout_seconds": 9}},
            },
        },
        "artifacts": {"model": {"path": "y"}},
    }  # fmt: skip
    valid = json.dumps(content).encode()

    def make(generator: Random) -> bytes:
        if generator.random() < 0.2:
            return mutate_bytes(generator, [valid], YAML_TOKENS)
        return serialize(generator, mutate_json(generator, content), 200)

    def use(data: bytes) -> None:
        parse_dag.cache_clear()
        (folder / "dvc.yaml").write_bytes(data)
        stages = read_dag(folder)
        stages.select((), next(iter(stages.stages), None))

    return Target([valid], make, use, (FlowError,))


def lock_file(folder: Path) -> Target:
    """dvc.lock as the flow reads, sorts and repairs it."""
    from flows.dvc import lock_file
    from flows.dvc.dag import read_dag
    from flows.errors import FlowError

    text = (ROOT / "dvc.lock").read_text()
    stages = read_dag(ROOT)
    parts = lock_file.split_lock(text)
    short = lock_file.LockText(parts.header, dict(list(parts.entries.items())[-1:]))
    valid = "".join([short.header, *short.entries.values()]).encode()
    (folder / ".dvc").mkdir(exist_ok=True)

    def use(data: bytes) -> None:
        (folder / "dvc.lock").write_bytes(data)
        lock_file.describe_truncation(lock_file.read_lock_text(folder), short, stages)
        asyncio.run(lock_file.read_lock(folder))

    return Target([valid], lambda generator: mutate_bytes(generator, [valid], YAML_TOKENS), use, (FlowError,))


def read_sections() -> dict[str, tuple[dict[str, Any], Any]]:
    """The sections of the committed params.yaml, each with the model that its stage validates it by."""
    from stages.__main__ import declared_sections
    from stages.core.params import Machine, stage_names

    models: dict[str, Any] = {"machine": Machine}
    for name in stage_names():
        models |= dict.fromkeys([name], next(iter(declared_sections(name)), None))
    content = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    return {name: (section, models.get(name)) for name, section in content.items()}
