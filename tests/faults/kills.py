"""Kills stages, DVC and the flow at seeded random moments in a real pipeline, and counts what came of it.

    PYTHONPATH=.:tests:tests/faults python tests/faults/kills.py --kills 10 --runner dvc --seed 1

After one to three kills of a stage a plain `dvc repro` must give the dvc.lock of a run without kills, and leave no
process, lock or temporary file. DVC's caches forget the stage before each kill, so that it really runs again.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil
from repositories import DIGITS_PARAMS, STAGES, command_environment, commit_all, create_project, run_command, run_dvc
from ruamel.yaml import YAML
from toys import (
    free_port,
    is_locked,
    post_api,
    prefect_server,
    stage_processes,
    wait_until,
    wait_until_no_processes,
)

SMALL = {
    **DIGITS_PARAMS,
    "train.epochs": 4,
    "evaluate.tsne_images": 30,
    "evaluate.label_check_images": 0,
    "validate_parity.reference_images": 1,
    "validate_parity.batch_sizes": [1, 7],
}
COMMANDS = {
    "dvc": ("dvc", "repro", "--single-item", "--force"),
    "flow": (sys.executable, "-m", "flows.pipeline", "--force", "--only"),
    "deployment": (sys.executable, "-c", "from flows.pipeline import pipeline; pipeline.serve('kills')"),
}
TARGETS = {
    "dvc": ("stage", "dvc", "group"),
    "flow": ("stage", "dvc", "flow", "group"),
    "deployment": ("stage", "dvc", "flow", "group"),
}
MOMENTS = ("starting", "running", "running", "writing", "saving")
END_SECONDS = 30.0  # until all processes must be gone
TEMPORARY = ("*.partial", ".*.incoming", "tmp*", "torchelastic_*", "*.tmp")


@dataclass(frozen=True)
class Kill:
    stage: str
    runner: str
    target: str  # the process that gets the signal; group: the process group of the runner
    signal: str
    moment: str


@dataclass
class Campaign:
    project: Path
    runner: str
    stages: list[str]  # to kill
    generator: Random
    env: dict[str, str]
    expected_lock: bytes = b""
    seconds: dict[str, float] = field(default_factory=dict)  # how long each stage's process lived
    outcomes: Counter[tuple[Kill, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Run the pipeline once without kills."""
        with self.start("dvc", "repro") as process:
            alive: dict[str, list[float]] = {}
            while process.poll() is None:
                for stage in filter(None, map(stage_of, stage_processes(self.project))):
                    alive.setdefault(stage, []).append(time.monotonic())
                time.sleep(0.05)
        assert process.returncode == 0, self.output()
        self.seconds = {stage: times[-1] - times[0] + 0.1 for stage, times in alive.items()}
        self.expected_lock = (self.project / "dvc.lock").read_bytes()
        commit_all(self.project)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start the command in a process group of its own, as a terminal does."""
        with (self.project.parent / "output").open("wb") as file:
            return subprocess.Popen(command, cwd=self.project, env=self.env, stdout=file, stderr=file, process_group=0)

    def output(self) -> str:
        return (self.project.parent / "output").read_text(errors="replace")

    def run(self, kills: int) -> None:
        while sum(self.outcomes.values()) < kills and len(self.failures) < 10:
            stage = self.generator.choice(self.stages)
            wanted = min(self.generator.choice((1, 2, 3)), kills - sum(self.outcomes.values()))
            done = [kill for _ in range(wanted) if (kill := self.kill_once(stage))]
            if done:
                outcome = self.recover(done)
                self.outcomes.update((kill, outcome) for kill in done)

    def kill_once(self, stage: str) -> Kill | None:
        """Start the stage and send one signal; None if the process had ended before."""
        self.forget(stage)
        choose = self.generator.choice
        kill = Kill(
            stage, self.runner, choose(TARGETS[self.runner]), choose(("SIGKILL", "SIGKILL", "SIGTERM")), choose(MOMENTS)
        )
        if self.runner == "deployment":
            self.request_run(stage)
        words = [] if self.runner == "deployment" else [stage]
        with self.start(*COMMANDS[self.runner], *words) as process:
            self.wait_for_moment(kill, process)
            is_sent = send(kill, process, self.project)
            if self.runner == "deployment":  # which serves on
                with suppress(AssertionError):
                    wait_until_no_processes(self.project, END_SECONDS)
                process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS + 2 * self.seconds[stage])
            if process.poll() is None:
                self.fail(kill, f"{self.runner} has not ended: {self.output()[-300:]}")
                os.killpg(process.pid, signal.SIGKILL)
        try:
            wait_until_no_processes(self.project, END_SECONDS)
        except AssertionError as error:
            self.fail(kill, str(error))
            for left in stage_processes(self.project):
                left.kill()
        if is_locked(self.project / ".dvc" / "tmp" / "lock"):
            self.fail(kill, "DVC's lock is held")
        return kill if is_sent else None

    def forget(self, stage: str) -> None:
        """Remove the stage's results from DVC's caches, so that DVC cannot restore them: the stage has to run."""
        cache = self.project / ".dvc" / "cache"
        shutil.rmtree(cache / "runs", ignore_errors=True)
        entry = YAML(typ="safe", pure=True).load(self.expected_lock)["stages"][stage]
        for digest in (out["md5"] for out in entry.get("outs", [])):
            (cache / "files" / "md5" / digest[:2] / digest[2:]).unlink(missing_ok=True)

    def request_run(self, stage: str) -> None:
        """Schedule a run of the deployment, which is made if there is none yet."""
        api = self.env["PREFECT_API_URL"]
        if not (found := post_api(api, "deployments/filter")):
            with self.start(*COMMANDS["deployment"]) as process:
                found = wait_until(lambda: post_api(api, "deployments/filter"), 60)
                process.terminate()
        parameters = {"only": [stage], "force": True}
        post_api(
            api, f"deployments/{found[0]['id']}/create_flow_run", parameters=parameters, state={"type": "SCHEDULED"}
        )

    def wait_for_moment(self, kill: Kill, process: subprocess.Popen[bytes]) -> None:
        """Wait until the moment of the kill, or until the runner has ended."""
        if kill.moment == "starting":
            time.sleep(self.generator.uniform(0, {"dvc": 1.5, "flow": 5, "deployment": 10}[self.runner]))
            return
        deadline = time.monotonic() + 60  # a deployment whose run never comes serves for ever
        wait_while(process, lambda: not self.stage_runs(kill.stage) and time.monotonic() < deadline, 0.1)
        if kill.moment == "running":
            time.sleep(self.generator.uniform(0, self.seconds[kill.stage]))
        elif kill.moment == "writing":
            time.sleep(self.generator.choice((0, 0.5)) * self.seconds[kill.stage])
            end = time.monotonic() + 2 * self.seconds[kill.stage]
            data = self.project / "data"
            wait_while(process, lambda: not any(partial_files(data)) and time.monotonic() < end, 0.001)
        elif kill.moment == "saving":
            wait_while(process, lambda: self.stage_runs(kill.stage), 0.05)
            time.sleep(self.generator.uniform(0, 0.3))

    def stage_runs(self, stage: str) -> bool:
        return any(stage_of(process) == stage for process in stage_processes(self.project))

    def recover(self, kills: list[Kill]) -> str:
        """Run a plain `dvc repro`; returns the outcome."""
        outcome = "same dvc.lock"
        done = run_dvc(self.project, "repro", status=None)
        if done.returncode and is_torn(self.project / "dvc.lock", self.expected_lock):
            # DVC rewrites dvc.lock in place. The flow repairs that (flows/dvc/lock_file.py), `git checkout` too.
            outcome = "same dvc.lock, after DVC's write of it was cut and git restored it"
            subprocess.run(["git", "checkout", "-q", "dvc.lock"], cwd=self.project, check=True)
            done = run_dvc(self.project, "repro", status=None)
        if done.returncode and "Unable to read RWLock-file" in done.stderr:
            # DVC rewrites its list of used paths in place, too. The flow removes it (flows/dvc/command.py).
            outcome = "same dvc.lock, after DVC's write of rwlock was cut and it was removed, as make doctor says"
            subprocess.run(self.doctors_fix("locks"), cwd=self.project, shell=True, check=True)
            done = run_dvc(self.project, "repro", status=None)
        problems = []
        if done.returncode:
            problems.append(f"dvc repro ended with {done.returncode}: {(done.stdout + done.stderr)[-500:]}")
        elif (self.project / "dvc.lock").read_bytes() != self.expected_lock:
            problems.append("another dvc.lock")
        if left := left_files(self.project):
            problems.append(f"left: {left}")
        if left := left_files(Path(self.env["TMPDIR"])):  # of processes that train together, and of the flow's commands
            if all(kill.signal != "SIGKILL" for kill in kills):
                problems.append(f"left in TMPDIR: {left}")
            outcome = f"{outcome}; a folder left in TMPDIR, which nothing can remove after SIGKILL"
            self.empty_temporary_folder()
        if not problems:
            return outcome
        self.fail(kills[-1], f"{problems} after {kills}")
        self.restore()
        return "failure"

    def doctors_fix(self, check: str) -> str:
        """The command that the doctor names for the one error that this check finds."""
        done = run_command(self.project, sys.executable, "-m", "flows.doctor", "--json", check, status=1)
        (fix,) = [finding["fix"] for finding in json.loads(done.stdout) if finding["status"] == "error"]
        return str(fix)

    def empty_temporary_folder(self) -> None:
        for path in Path(self.env["TMPDIR"]).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def restore(self) -> None:
        """As after the run without kills, so that the next kills are judged alone."""
        shutil.rmtree(self.project / "data" / "checkpoints", ignore_errors=True)
        (self.project / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
        subprocess.run(["git", "checkout", "-q", "."], cwd=self.project, check=True)
        for path in partial_files(self.project / "data"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        run_dvc(self.project, "repro", status=None)

    def fail(self, kill: Kill, problem: str) -> None:
        self.failures.append(f"{kill}: {problem}")


def stage_of(process: psutil.Process) -> str | None:
    """The stage that a process runs itself, and not the shell that DVC starts for it."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    return module.removeprefix("stages.") if module.startswith("stages.") else None


def wait_while(process: subprocess.Popen[bytes], condition: Any, interval: float) -> None:
    while process.poll() is None and condition():
        time.sleep(interval)


def send(kill: Kill, process: subprocess.Popen[bytes], project: Path) -> bool:
    """Send the signal to the target; False if there is no such process any more."""
    number = signal.Signals[kill.signal]
    if process.poll() is not None:
        return False
    try:
        if kill.target == "group":
            os.killpg(process.pid, number)
        elif kill.target == kill.runner:
            process.send_signal(number)
        elif kill.target == "flow":  # of a deployment: its run, which has a process of its own
            psutil.Process(process.pid).children()[0].send_signal(number)
        else:
            running = stage_processes(project)
            found = [one for one in running if (stage_of(one) == kill.stage if kill.target == "stage" else is_dvc(one))]
            found[-1].send_signal(number)  # of several that train together the last one
    except (IndexError, ProcessLookupError, psutil.Error):
        return False
    return True


def is_dvc(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return any(Path(word).name == "dvc" for word in words[:2]) and "repro" in words


def partial_files(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        yield from (Path(path) / name for name in (*folders, *files) if name.endswith(".partial"))


def left_files(folder: Path) -> list[str]:
    """Temporary files and folders, apart from DVC's cache, which has its own, and from what git ignores as a cache."""
    found = {path for pattern in TEMPORARY for path in folder.rglob(pattern)}
    skipped = (folder / ".git", folder / ".dvc", folder / "logs", folder / "tests")
    return sorted(str(path) for path in found if not any(path.is_relative_to(other) for other in skipped))


def is_torn(path: Path, expected: bytes) -> bool:
    data = path.read_bytes() if path.exists() else b""
    return len(data) < len(expected) and (not data or data[-1:] != b"\n" or expected.startswith(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--runner", choices=COMMANDS, default="dvc")
    parser.add_argument("--processes", type=int, default=1, help="of the stage train")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(run_campaign(Path(name), args.runner, args.kills, args.processes, args.seed), indent=1))


def create_small_project(folder: Path, processes: int = 1) -> Path:
    """A repository whose pipeline takes seconds, and whose training saves a checkpoint five times a second."""
    project = create_project(folder, {**SMALL, "train.processes": processes})
    pipeline, flag = project / "dvc.yaml", "--checkpoints data/checkpoints"
    pipeline.write_text(pipeline.read_text().replace(flag, f"{flag}\n      --checkpoint-seconds 0.2"))
    commit_all(project)
    return project


def run_campaign(folder: Path, runner: str, kills: int, processes: int, seed: int) -> dict[str, Any]:
    (folder / "prefect").mkdir()
    (folder / "tmp").mkdir()
    project = create_small_project(folder / "project", processes)
    with prefect_server(folder / "prefect", free_port()) if runner != "dvc" else nullcontext("") as url:
        env = {**command_environment(), "no_proxy": "127.0.0.1", "TMPDIR": str(folder / "tmp"), "PREFECT_API_URL": url}
        stages = STAGES if processes == 1 else ["train"]
        campaign = Campaign(project, runner, stages, Random(f"{seed}/{runner}/{processes}"), env)
        started = time.monotonic()
        campaign.prepare()
        campaign.run(kills)
    by_outcome: Counter[str] = Counter()
    for (_, outcome), count in campaign.outcomes.items():
        by_outcome[outcome] += count
    return {
        "runner": runner,
        "processes": processes,
        "seed": seed,
        "kills": campaign.outcomes.total(),
        "outcomes": dict(by_outcome),
        "by_kill": sorted(
            [kill.stage, kill.target, kill.signal, kill.moment, outcome, count]
            for (kill, outcome), count in campaign.outcomes.items()
        ),
        "failures": campaign.failures,
        "seconds": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    main()
