"""What the flow costs compared with `dvc repro`: this pipeline's graph, with stages that take no time.

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
    """Time whole commands in turn, on a Prefect server that is running, and print medians."""
    with tempfile.TemporaryDirectory() as folder, prefect_server(Path(folder)) as environment:
        project, stage_count = make_project(Path(folder) / "project")
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
                duration = time_command(command, project, environment)
                if turn:  # the first round fills caches
                    seconds[name].append(duration)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"Medians of {rounds} rounds, with minimum and maximum:")
    for name, durations in seconds.items():
        print(f"  {name:<34} {statistics.median(durations):6.2f} s   {min(durations):.2f} to {max(durations):.2f}")
    pairs = zip(seconds["the flow, all stages"], seconds["dvc repro, all stages"], strict=True)
    overhead = statistics.median(flow - dvc for flow, dvc in pairs) / stage_count
    print(f"The flow's own cost: {overhead:.2f} s a stage ({stage_count} stages)")


def make_project(folder: Path) -> tuple[Path, int]:
    """A repository with this dvc.yaml, whose stages only make their outputs; and the number of its stages."""
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
    identity = ["-c", "user.name=b", "-c", "user.email=b@b"]
    for arguments in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder, len(content["stages"])


def time_command(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    start = time.monotonic()
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    return time.monotonic() - start


@contextmanager
def prefect_server(folder: Path) -> Iterator[dict[str, str]]:
    """A Prefect server with its own database; gives the environment in which PREFECT_API_URL is its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
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
        while process.poll() is None and not is_healthy(f"http://127.0.0.1:{port}/api/health"):
            time.sleep(0.2)
        yield {**environment, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    finally:
        process.terminate()
        process.wait()


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    run(measure)
