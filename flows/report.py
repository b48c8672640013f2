"""What a person reads after a run: a short table, a name for the run, and a report as an artifact on Prefect's page."""

import asyncio
import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas import State
from ruamel.yaml import YAML

from flows.dvc.dag import Dag, read_dag
from flows.dvc.params_file import flatten, get_param
from flows.plan import Plan
from flows.process import follow

KEY = "lockstep-report"
LONG = 150  # characters of a run's name
WORDS = {"TimedOut": "timed out", "UpToDate": "up to date"}
HINTS = (  # lines that say what to do, and not what happened
    "To track the changes with git",
    "git add ",
    "To enable auto staging",
    "dvc config core.auto",
    "Use `dvc push`",
    "If DVC removed this stage's former outputs",  # stages say so after a problem
)
EXITED = r"^ERROR: .*exited with (\d+)$"  # what DVC says of a command that failed
EMBEDDED = 200_000  # bytes of a picture


@dataclass(frozen=True)
class Row:
    """What became of a stage."""

    stage: str
    state: str
    reason: str
    succeeded: bool
    seconds: float | None  # that DVC took; None if it was not asked

    def __str__(self) -> str:
        took = "" if self.seconds is None else f" after {self.seconds:.1f} s"
        return f"{self.stage:<16}  {self.state}{took}: {last_error_line(self.reason)}"


def row(stage: str, state: State[Any], seconds: float | None) -> Row:
    return Row(stage, state.name or "", state.message or "", state.is_completed(), seconds)


def last_error_line(reason: str) -> str:
    """Its last line that says what happened: of a failed stage's output its own error, and not what DVC makes of it."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(HINTS) and not re.search(EXITED, line)]
    return [*lines[-1:], *telling][-1] if lines else ""


def title(plan: Plan) -> str:
    """A name for a run that begins."""
    stale = plan.stale()
    return shortened(f"{', '.join(stale)}: {plan.reasons[stale[0]]}") if stale else "up to date"


def summary(rows: list[Row]) -> str:
    """A name for a run that has ended: what it did."""
    groups: dict[str, list[Row]] = {}
    for one in rows:
        groups.setdefault(one.state, []).append(one)
    done = groups.get("Ran", [])
    said = [
        f"{', '.join(one.stage for one in of)} {WORDS.get(state, state.lower())}"
        for state, of in groups.items()
        if state not in ("Ran", "UpToDate")
    ]
    if done:
        said.append(f"ran {', '.join(one.stage for one in done)} ({done[0].reason})")
    return shortened("; ".join(said) or "up to date")


def shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONG else f"{line[: LONG - 1]}…"


async def publish(root: Path, rows: list[Row], logs: Path) -> None:
    """The report, under a key that stays, so that the page shows its history."""
    await acreate_markdown_artifact(await report(root, rows, logs), KEY, summary(rows))


async def report(root: Path, rows: list[Row], logs: Path) -> str:
    """Markdown: the result, the stages, the metrics beside the last commit's, and the pictures."""
    dag = read_dag(root)
    ran = [one.stage for one in rows if one.state in ("Ran", "Restored")]
    pictures = [out for name in ran for out in dag.stages[name].outs if Path(out).suffix == ".png"]
    parts = [
        "\n".join(f"- {name}: {text}" for name, text in result(root).items()),
        "## Stages",
        table(["stage", "state", "took", "why"], [cells(one) for one in rows]),
        f"The whole output of each is in `{logs.parent.name}/{logs.name}`." if ran else "",
        "## Metrics, beside those of the last commit",
        await metrics(root),
        "## Pictures" if pictures else "",
        *(picture(root, out) for out in pictures if (root / out).exists()),
    ]
    return "\n\n".join(filter(None, parts))


def cells(one: Row) -> list[str]:
    took = "" if one.seconds is None else f"{one.seconds:.1f} s"
    return [one.stage, one.state, took, html.escape(one.reason.strip()).replace("\n", "<br>")]


def picture(root: Path, out: str) -> str:
    """The picture itself where it is small, otherwise where it is."""
    if (root / out).stat().st_size > EMBEDDED:
        return f"`{root / out}`"
    return f"![{out}](data:image/png;base64,{base64.b64encode((root / out).read_bytes()).decode()})"


async def metrics(root: Path) -> str:
    """Each metric in the last commit, now, and the difference."""
    rows = []
    paths = [Path(file) for stage in read_dag(root).stages.values() for file in stage.metrics]
    for path, before in zip(paths, await asyncio.gather(*(committed(root, path) for path in paths)), strict=True):
        now = numbers((root / path).read_text() if (root / path).exists() else "")
        for name in {**before, **now}:
            pair = [before.get(name), now.get(name)]
            both = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in pair)
            difference = now[name] - before[name] if both else None
            rows.append([f"{path.stem}.{name}", *map(shown, [*pair, difference])])
    return table(["metric", "last commit", "now", "difference"], rows)


async def committed(root: Path, path: Path) -> dict[str, Any]:
    """The metrics in HEAD's file; none without a commit."""
    done = await follow(["git", "show", f"HEAD:./{path.as_posix()}"], root)
    return {} if done.status else numbers("\n".join(done.lines))


def numbers(text: str) -> dict[str, Any]:
    """A metrics file's values by name; JSON is YAML."""
    content = YAML(typ="safe", pure=True).load(text)
    values = flatten(content) if isinstance(content, dict) else {}
    return {name: value for name, value in values.items() if not isinstance(value, list)}


def shown(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def result_table(root: Path) -> str:
    """The result, for a terminal."""
    return "\n".join(f"  {name:<10} {text}" for name, text in result(root).items())


def result(root: Path) -> dict[str, str]:
    """Data set, accuracy with its interval, parity, and where the ONNX file is; empty before all are there."""
    dag = read_dag(root)
    if not {"evaluate", "validate_parity"} <= set(dag.stages) or "classifier" not in dag.artifacts:
        return {}
    model = dag.artifacts["classifier"]
    files = [root / dag.metrics("evaluate"), root / dag.metrics("validate_parity"), root / model]
    if not all(file.exists() for file in files):
        return {}
    quality, parity = map(load, files[:2])
    certificate = certificate_of(root, dag, model)
    verdict = "not proven of this file" if parity["same"] else "FAILED"
    return {
        "data set": get_param(root / "params.yaml", "download.dataset"),
        "accuracy": (
            f"{quality['accuracy']:.2%} on {quality['images']:,} test images "
            f"(95 % interval {quality['accuracy_low']:.2%} to {quality['accuracy_high']:.2%})"
        ),
        "parity": f"{'proven' if certificate else verdict}: {parity_words(parity)}",
        "ONNX file": f"{model} ({(root / model).stat().st_size:,} bytes), {certificate or 'not certified'}",
    }


def parity_words(parity: Mapping[str, Any]) -> str:
    images = f"each on up to {parity['images']:,} images"
    return f"{parity['configurations']} configurations, {images}, within {parity['atol']:g}"


def certificate_of(root: Path, dag: Dag, model: str) -> str:
    """Where the certificate of the ONNX file is; empty if there is none, or one that names another file."""
    found = hashlib.sha256((root / model).read_bytes()).hexdigest()
    outs = [out for out in dag.stages["validate_parity"].outs if Path(out).stem == "certificate"]
    named = [out for out in outs if (root / out).exists() and load(root / out).get("model_sha256") == found]
    return "".join(f"certified in {out}" for out in named)


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
