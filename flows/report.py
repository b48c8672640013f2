"""What a person reads after a run: a table in the terminal, a name for the flow run, and a report as an artifact."""

import base64
import hashlib
import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.comparison import compare_with_head
from flows.dvc.command import run_dvc
from flows.dvc.dag import Dag, read_dag
from flows.dvc.messages import last_error_line
from flows.dvc.params_file import get_param
from flows.plan import Plan

if TYPE_CHECKING:
    from prefect.client.schemas import State

ARTIFACT_KEY = "lockstep-report"
MAX_TITLE = 150  # characters
UNCHANGED = ("UpToDate", "Skipped")
STATE_WORDS = {"TimedOut": "timed out", "UpToDate": "up to date"}
MAX_EMBEDDED = 200_000  # bytes of a picture inside the report
MARKUP = re.compile(r"[\\`*~\[]|\b_|_\b")


@dataclass(frozen=True)
class StageResult:
    stage: str
    state: str  # the name of its task's state
    reason: str
    succeeded: bool
    seconds: float | None  # that `dvc repro` took; None if it was not run

    @classmethod
    def of(cls, stage: str, state: "State[Any]", seconds: float | None) -> "StageResult":
        return cls(stage, state.name or "", state.message or "", state.is_completed(), seconds)

    @property
    def duration(self) -> str:
        return "" if self.seconds is None else f"{self.seconds:.1f} s"

    def __str__(self) -> str:
        after = f" after {self.duration}" if self.duration else ""
        return f"{self.stage:<16}  {self.state}{after}: {last_error_line(self.reason)}"


def plan_title(plan: Plan) -> str:
    """The flow run's name when it starts."""
    stale = {name: reason for name, reason in plan.reasons.items() if reason}
    return shorten(f"{', '.join(stale)}: {next(iter(stale.values()))}") if stale else "up to date"


def run_title(results: list[StageResult]) -> str:
    """The flow run's name when it has ended: the stages by state, and why the first of those that ran did."""
    stages: dict[str, list[str]] = {}
    for result in results:
        stages.setdefault(result.state, []).append(result.stage)
    parts = [
        f"{', '.join(names)} {STATE_WORDS.get(state, state.lower())}"
        for state, names in stages.items()
        if state not in ("Ran", "UpToDate")
    ]
    if ran := [result for result in results if result.state == "Ran"]:
        parts.append(f"ran {', '.join(stages['Ran'])} ({ran[0].reason})")
    return shorten("; ".join(parts) or "up to date")


def shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_TITLE else f"{line[: MAX_TITLE - 1]}…"


async def publish_report(root: Path, results: list[StageResult], log_dir: Path) -> None:
    """Publish the report under the same key as those before, so that Prefect's page shows their history."""
    from prefect.artifacts import acreate_markdown_artifact  # takes a second, and the result of no run needs it

    description = escape_markdown(run_title(results))
    await acreate_markdown_artifact(await make_report(root, results, log_dir), ARTIFACT_KEY, description)


async def make_report(root: Path, results: list[StageResult], log_dir: Path) -> str:
    """Markdown: the result, the stages, the metrics compared with the last commit's, and the new pictures."""
    stages = read_dag(root).stages
    ran = [result.stage for result in results if result.state in ("Ran", "Restored")]
    # Also if evaluate failed: below its gate it has written its predictions.
    is_new = any(result.stage == "evaluate" and result.state not in UNCHANGED for result in results)
    comparison = compare_with_head(root) if is_new else ""
    pictures = [root / out for name in ran for out in stages[name].outs if out.endswith(".png")]
    lines = (await run_dvc(["metrics", "diff", "--all", "--md"], root)).lines if ran else ()
    metrics = "\n".join(line for line in lines if line.startswith("|"))
    rows = [[result.stage, result.state, result.duration, escape_markdown(result.reason.strip())] for result in results]
    parts = [
        "\n".join(f"- {name}: {escape_markdown(text)}" for name, text in read_result(root).items()),
        "## Stages",
        markdown_table(["stage", "state", "took", "why"], rows),
        f"The whole output of each is in `{log_dir.parent.name}/{log_dir.name}`." if ran else "",
        "## Compared with the last commit" if metrics or comparison else "",
        f"The model is {escape_markdown(comparison)} (McNemar's exact test)." if comparison else "",
        metrics,
        "## Pictures" if pictures else "",
        *(embed_picture(root, path) for path in pictures if path.exists()),
    ]
    return "\n\n".join(filter(None, parts))


def embed_picture(root: Path, path: Path) -> str:
    """The picture itself if it is small, else its path."""
    if path.stat().st_size > MAX_EMBEDDED:
        return f"`{path}`"
    data = base64.b64encode(path.read_bytes()).decode()
    return f"![{path.relative_to(root).as_posix()}](data:image/png;base64,{data})"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[cell.replace("|", "/").replace("\n", "<br>") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def escape_markdown(text: str) -> str:
    """Markdown that shows the text as it is: names of classes and files in it may look like markup."""
    return MARKUP.sub(lambda match: f"\\{match[0]}", html.escape(text, quote=False))


def format_result(root: Path) -> str:
    """The result as lines for a terminal."""
    result = read_result(root)
    if result and (comparison := compare_with_head(root)):
        result["model"] = comparison
    lines = [f"  {name:<10} {text}" for name, text in result.items()]
    return "\n".join(lines) or "There is no result yet: not all stages have run"


def result_stages(dag: Dag) -> list[str]:
    """The stages whose outs the result is read from."""
    artifacts = set(dag.artifacts.values())
    return [name for name, stage in dag.stages.items() if artifacts & set(stage.outs) or name == "validate_parity"]


def read_result(root: Path) -> dict[str, str]:
    """Data set, accuracy with its interval, parity, and the ONNX file; empty until all of them exist."""
    dag = read_dag(root)
    if not {"evaluate", "validate_parity"} <= set(dag.stages) or "classifier" not in dag.artifacts:
        return {}
    model = dag.artifacts["classifier"]
    reports = [root / dag.stages[name].metrics[0] for name in ("evaluate", "validate_parity")]
    if not all(path.exists() for path in (*reports, root / model)):
        return {}
    quality, parity = map(read_json, reports)
    certificate = find_certificate(root, dag, model)
    verdict = "proven" if certificate else "not proven of this file" if parity["same"] else "FAILED"
    return {
        "data set": get_param(root / "params.yaml", "download.dataset"),
        "accuracy": (
            f"{quality['accuracy']:.2%} on {quality['images']:,} test images "
            f"(95 % interval {quality['accuracy_low']:.2%} to {quality['accuracy_high']:.2%})"
        ),
        "parity": (
            f"{verdict}: {parity['configurations']} configurations, each on up to {parity['images']:,} images, "
            f"within {parity['atol']:g}"
        ),
        "ONNX file": (
            f"{model} ({(root / model).stat().st_size:,} bytes), "
            f"{f'certified in {certificate}' if certificate else 'not certified'}"
        ),
    }


def find_certificate(root: Path, dag: Dag, model: str) -> str:
    """The path of the certificate that names the ONNX file's hash; empty if there is none."""
    digest = hashlib.sha256((root / model).read_bytes()).hexdigest()
    for out in dag.stages["validate_parity"].outs:
        is_certificate = Path(out).stem == "certificate" and (root / out).exists()
        if is_certificate and read_json(root / out).get("model_sha256") == digest:
            return out
    return ""


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
