"""The predictions of the test images that evaluate wrote: those in the folder, or of a revision or an experiment."""

import csv
import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.dvc.dag import Dag, read_dag
from flows.environment import environment
from flows.errors import FlowError
from flows.statistics import wilson_interval

WORKSPACE = "workspace"  # the name that `dvc metrics diff` has for the files in the folder
EXPERIMENT_FORMAT = "--format=%(refname) %(objectname)"


@dataclass(frozen=True)
class Prediction:
    image: str  # the file's path, or the index in the test split
    label: str
    predicted: str
    confidence: float | None  # None: of a commit from before it was written

    @property
    def is_correct(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True)
class Predictions:
    revision: str  # as a person names it
    commit: str  # empty: the files in the folder
    rows: tuple[Prediction, ...]  # in the order of the test split
    has_names: bool  # whether the images' names were written
    dataset: str  # empty: not written
    test_sha256: str  # of the test split's files; empty: not written

    @property
    def title(self) -> str:
        is_hash = self.commit.startswith(self.revision)
        return self.revision if not self.commit or is_hash else f"{self.revision} ({self.commit[:7]})"

    @property
    def correct(self) -> int:
        return sum(row.is_correct for row in self.rows)

    @property
    def accuracy(self) -> float:
        return self.correct / len(self.rows)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return wilson_interval(self.correct, len(self.rows))


def read_predictions(root: Path, revision: str) -> Predictions:
    """Read the predictions of a commit, branch, tag or DVC experiment, or of the WORKSPACE.

    Their path is that of dvc.yaml as it is now in the folder.
    """
    table_path, report_path = find_outs(read_dag(root))
    commit = "" if revision == WORKSPACE else resolve_model_revision(root, revision)
    table, report = (read_version(root, commit, path) for path in (table_path, report_path))
    if not table:
        hint = f"`git show {revision} --stat` says what it has" if commit else "run `dvc repro evaluate`"
        raise FlowError(f"{revision}: has no {table_path}, the predictions to compare; {hint}")
    try:
        content = [*csv.DictReader(io.StringIO(table, newline=""), strict=True)]
        rows = tuple(parse_row(index, row) for index, row in enumerate(content))
        metrics = json.loads(report or "{}")
    except (csv.Error, KeyError, TypeError, ValueError, AttributeError) as error:
        raise FlowError(f"{revision}: {table_path} or {report_path} is not what evaluate writes: {error!r}") from error
    if not rows:
        raise FlowError(f"{revision}: {table_path} has no rows")
    dataset, test_sha256 = (str(metrics.get(key, "")) for key in ("dataset", "test_sha256"))
    return Predictions(revision, commit, rows, "image" in content[0], dataset, test_sha256)


def parse_row(index: int, row: dict[str, Any]) -> Prediction:
    confidence = float(row["confidence"]) if row.get("confidence") else None
    return Prediction(row.get("image", str(index)), row["actual"], row["predicted"], confidence)


def find_outs(dag: Dag) -> tuple[str, str]:
    """The paths of the predictions and of the report in dvc.yaml."""
    stage = dag.stages.get("evaluate")
    tables = [out for out in stage.outs if Path(out).stem == "predictions"] if stage else []
    if not stage or not tables or not stage.metrics:
        raise FlowError("dvc.yaml: has no stage evaluate that writes predictions and metrics")
    return tables[0], stage.metrics[0]


def has_predictions(dag: Dag) -> bool:
    """Whether the pipeline writes predictions that can be compared."""
    try:
        find_outs(dag)
    except FlowError:
        return False
    return True


def resolve_model_revision(root: Path, revision: str) -> str:
    """The hash of the commit that a revision, or the name of a DVC experiment, stands for."""
    flags = ("rev-parse", "--verify", "--quiet", "--end-of-options")
    if commit := run_git(root, *flags, f"{revision}^{{commit}}"):
        return commit.strip()
    refs = dict(
        line.split() for line in (run_git(root, "for-each-ref", EXPERIMENT_FORMAT, "refs/exps") or "").splitlines()
    )
    # refs/exps/12/3456…/name: an experiment that started from the commit 123456…
    found = {ref: commit for ref, commit in refs.items() if ref.count("/") == 4 and ref.split("/")[4] == revision}
    head = (run_git(root, "rev-parse", "HEAD") or "").strip()
    of_head = [commit for ref, commit in found.items() if "".join(ref.split("/")[2:4]) == head]
    if len(commits := of_head or [*found.values()]) == 1:
        return commits[0]
    if commits:
        raise FlowError(f"{revision}: {len(commits)} experiments have this name; give the commit of the one you mean")
    raise FlowError(f"there is no revision or experiment {revision!r} here; `dvc exp list --all` lists the experiments")


def read_version(root: Path, commit: str, path: str) -> str | None:
    """The text of a file in a commit, or in the folder; None if there is no such file."""
    if commit:
        return run_git(root, "show", f"{commit}:./{path}")
    try:
        return (root / path).read_bytes().decode(errors="replace")
    except OSError:
        return None


def run_git(root: Path, *arguments: str) -> str | None:
    """What the command prints, to the byte, unlike a log's lines; None if it fails."""
    try:
        result = subprocess.run(["git", *arguments], cwd=root, env=environment(), capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return None if result.returncode else result.stdout.decode(errors="replace")
