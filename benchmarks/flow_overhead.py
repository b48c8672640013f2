"""What the flow costs over `dvc repro`: this pipeline's graph with stages that take no time, in turn, on a warm server.

python benchmarks/flow_overhead.py [--rounds 5]
"""

import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cyclopts import run
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent


def measure(*, rounds: int = 5) -> None:
    """Time whole commands, A B A B, and print medians."""
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as environment:
        project, stages = without_work(Path(folder) / "project")
        commands = {
            "dvc repro, all stages": ["dvc", "repro", "--force"],
            "the flow, all stages": [sys.executable, "-m", "flows.pipeline", "--force"],
            "dvc status, nothing to do": ["dvc", "status"],
            "the flow, nothing to do": [sys.executable, "-m", "flows.pipeline"],
            "python -c 'import prefect.flows'": [sys.executable, "-c", "import prefect.flows"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(rounds + 1):
            for name, command in commands.items():
                took = timed(command, project, environment)
                if turn:  # the first is to warm up
                    seconds[name].append(took)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"Medians of {rounds} rounds, and what they ranged over:")
    for name, took in seconds.items():
        print(f"  {name:<34} {statistics.median(took):6.2f} s   {min(took):.2f} to {max(took):.2f}")
    cost = [
        flow - dvc for flow, dvc in zip(seconds["the flow, all stages"], seconds["dvc repro, all stages"], strict=True)
    ]
    print(f"The flow's own cost: {statistics.median(cost) / stages:.2f} s a stage ({stages} stages)")


def without_work(folder: Path) -> tuple[Path, int]:
    """A repository with this dvc.yaml, whose stages only make their outputs; and how many stages there are."""
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).exists() and not name.startswith("data/reports/") and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    yaml = YAML()
    content = yaml.load(folder / "dvc.yaml")
    for entry in content["stages"].values():
        items = [*entry.get("outs", []), *entry.get("metrics", [])]
        outs = [Path(item if isinstance(item, str) else next(iter(item))) for item in items]
        folders = {str(out if not out.suffix else out.parent) for out in outs}
        files = [str(out / "all" if not out.suffix else out) for out in outs]
        entry["cmd"] = f"mkdir -p {' '.join(sorted(folders))}" + "".join(f" && echo '{{}}' > {file}" for file in files)
    for kind in ("plots", "artifacts"):
        content.pop(kind, None)
    yaml.dump(content, folder / "dvc.yaml")
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=b", "-c", "user.email=b@b", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder, len(content["stages"])


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.monotonic() - started


@contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    """A Prefect server with its own database; the environment in which it is the one that is set."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {
        **os.environ,
        "PATH": path,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DVC_NO_ANALYTICS": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not answers(f"http://127.0.0.1:{port}/api/health"):
            time.sleep(0.2)
        yield {**environment, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    run(measure)
