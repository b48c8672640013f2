"""A team on loopback: a bare git repository, an S3 server, Prefect on PostgreSQL, and workers with separate homes."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from conftest import ROOT
from repositories import CompletedCommand, run_command
from toys import free_port, is_healthy, post_api, wait_until

MOTO = "moto[s3,server]==5.2.5"
BUCKET = "team"
POSTGRES_BIN = Path("/usr/lib/postgresql/15/bin")
POSTGRES_USER = "postgres"  # PostgreSQL refuses to run as root
NO_AUTHOR = dict.fromkeys(f"GIT_{role}_{item}" for role in ("AUTHOR", "COMMITTER") for item in ("NAME", "EMAIL"))
FINAL_STATES = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


@dataclass
class Team:
    folder: Path
    env: dict[str, str]
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def api(self) -> str:
        return self.env["PREFECT_API_URL"]

    @property
    def origin(self) -> Path:
        return self.folder / "origin.git"

    def start(self, name: str, command: list[str], cwd: Path | None = None, **env: str | None) -> None:
        """Start a process in the background, in its own group, with its output in NAME.log.

        A variable that is None is removed.
        """
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=cwd or self.folder,
                env={key: value for key, value in {**self.env, **env}.items() if value is not None},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Send the signal to the process and all its descendants, as a machine that dies does with SIGKILL."""
        process = self.processes.pop(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            descendants = root.children(recursive=True) if number == signal.SIGKILL else []
            for member in (root, *descendants):
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.send_signal(number)
        process.wait(60)

    def run(self, folder: Path, *command: str, status: int | None = 0) -> CompletedCommand:
        result = subprocess.run(command, cwd=folder, env=self.env, capture_output=True, text=True, check=False)
        assert status is None or result.returncode == status, result.stdout + result.stderr
        return result

    def clone(self, name: str) -> Path:
        """A clone with an empty DVC cache, as on a machine that has nothing yet."""
        folder = self.folder / name
        self.run(self.folder, "git", "clone", "-q", str(self.origin), name)
        return folder

    def start_worker(self, name: str, pool: str = "team") -> None:
        """A worker on a machine of its own: its home, its DVC cache, its folder of environments."""
        home = self.folder / f"home-{name}"
        environments = home / "environments"
        if not environments.exists():
            environments.mkdir(parents=True)
            assert (Path(sys.prefix) / "installed.lock").read_bytes() == (ROOT / "requirements.lock").read_bytes()
            digest = hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()[:16]
            (environments / digest).symlink_to(Path(sys.prefix))  # made before: installing it takes minutes
        worker = ["worker", "start", "--pool", pool, "--name", name, "--limit", "2"]
        self.start(
            f"worker-{name}",
            [str(self.folder / "worker-venv" / "bin" / "python"), "-m", "prefect", *worker],
            HOME=str(home),
            **NO_AUTHOR,  # git on a worker has none
            LOCKSTEP_HOME=str(home),
            PREFECT_HOME=str(home / "prefect"),
        )

    def worker_log(self, name: str) -> str:
        return (self.folder / f"worker-{name}.log").read_text(errors="replace")

    def start_run(self, deployment: str, **parameters: Any) -> str:
        """Start a run of the deployment; returns its id."""
        name = deployment.partition("/")[2]
        deployments = post_api(self.api, "deployments/filter", deployments={"name": {"any_": [name]}})
        (found,) = [entry for entry in deployments if entry["name"] == name]
        body = {"parameters": {**found["parameters"], **parameters}, "state": {"type": "SCHEDULED"}}
        return str(post_api(self.api, f"deployments/{found['id']}/create_flow_run", **body)["id"])

    def patch(self, path: str, **body: Any) -> None:
        data, headers = json.dumps(body).encode(), {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.api}/{path}", data, headers, method="PATCH")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
            pass

    def send_event(self, event: dict[str, Any]) -> None:
        data, headers = json.dumps([event]).encode(), {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.api}/events", data, headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
            pass

    def pool_is_ready(self, pool: str) -> bool:
        (found,) = post_api(self.api, "work_pools/filter", work_pools={"name": {"any_": [pool]}})
        return bool(found["status"] == "READY")

    def wait_run(self, run: str, seconds: float = 300) -> dict[str, Any]:
        """The run when it has ended; a crashed one may be taken up by another worker."""

        def ended() -> dict[str, Any] | None:
            try:
                (entry,) = post_api(self.api, "flow_runs/filter", flow_runs={"id": {"any_": [run]}})
            except OSError:  # the server is away, or answers 503 because it is busy
                return None
            if entry["state_type"] == "CRASHED":  # by a dead worker it is scheduled again, otherwise it stays
                assert "No sign of life" in entry["state"]["message"], entry["state"]["message"]
                return None
            return entry if entry["state_type"] in FINAL_STATES else None

        return dict(wait_until(ended, seconds))


@contextlib.contextmanager
def make_team(folder: Path, project: Path) -> Iterator[Team]:
    """Start everything but the workers, and deploy the project."""
    proxy = {"http_proxy": "", "https_proxy": "", "no_proxy": "127.0.0.1,localhost"}
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    prefect_port, s3_port, postgres_port = free_port(), free_port(), free_port()
    database = f"postgresql+asyncpg://{POSTGRES_USER}@127.0.0.1:{postgres_port}/postgres"
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        **proxy,
        **keys,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PREFECT_API_URL": f"http://127.0.0.1:{prefect_port}/api",
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{s3_port}",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "DVC_NO_ANALYTICS": "1",
        "GIT_AUTHOR_NAME": "a person", "GIT_AUTHOR_EMAIL": "person@example.org",
        "GIT_COMMITTER_NAME": "a person", "GIT_COMMITTER_EMAIL": "person@example.org",
    }  # fmt: skip
    team = Team(folder, env, {"postgres": postgres_port, "s3": s3_port, "prefect": prefect_port})
    try:
        start_postgres(team)
        start_s3(team)
        start_prefect(team)
        make_worker_venv(team)
        run_command(folder, "git", "clone", "-q", "--bare", str(project), "origin.git")
        person = team.clone("person")
        team.run(person, "dvc", "remote", "add", "--default", "storage", f"s3://{BUCKET}/dvc")
        team.run(person, "git", "commit", "-qam", "Keep data in the bucket")
        team.run(person, "git", "push", "-q", "origin", "main")
        for pool in ("team", "team-gpu"):
            team.run(person, sys.executable, "-m", "prefect", "work-pool", "create", pool, "--type", "process")
        deploy = ("--no-prompt", "deploy", "--prefect-file", "deploy/prefect.yaml", "--all")
        team.run(person, sys.executable, "-m", "prefect", *deploy)
        yield team
    finally:
        for name in reversed([*team.processes]):
            team.stop(name, signal.SIGKILL if name != "postgres" else signal.SIGINT)


def make_worker_venv(team: Team) -> None:
    """The Python of the workers, as deploy/worker.Dockerfile makes it: it has no torch and no DVC."""
    text = (ROOT / "deploy" / "worker.Dockerfile").read_text()
    packages = text.split("--constraint /tmp/requirements.lock ")[1].split("\n")[0].split()
    uv, venv = str(Path(sys.executable).with_name("uv")), team.folder / "worker-venv"
    team.run(team.folder, uv, "venv", "-q", "--python", sys.executable, str(venv))
    lock = str(ROOT / "requirements.lock")
    team.run(team.folder, uv, "pip", "install", "-q", "--python", str(venv / "bin" / "python"), "-c", lock, *packages)


def start_postgres(team: Team) -> None:
    data = team.folder / "postgres"
    if not data.exists():
        data.mkdir()
        shutil.chown(data, POSTGRES_USER)
        for parent in data.parents:  # pytest's folders are for their owner alone
            if parent.is_relative_to("/tmp/pytest-of-root"):
                parent.chmod(0o755)
        as_postgres(team, str(POSTGRES_BIN / "initdb"), "-D", str(data), "-A", "trust", "-E", "UTF8")
    server = [
        str(POSTGRES_BIN / "postgres"),
        "-D",
        str(data),
        "-p",
        str(team.ports["postgres"]),
        "-h",
        "127.0.0.1",
        "-k",
        str(data),
    ]
    team.start("postgres", ["setpriv", "--reuid", POSTGRES_USER, "--regid", POSTGRES_USER, "--clear-groups", *server])
    ready = [str(POSTGRES_BIN / "pg_isready"), "-h", "127.0.0.1", "-p", str(team.ports["postgres"])]
    wait_until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, 60)


def as_postgres(team: Team, *command: str) -> None:
    team.run(team.folder, "setpriv", "--reuid", POSTGRES_USER, "--regid", POSTGRES_USER, "--clear-groups", *command)


def start_s3(team: Team) -> None:
    port = team.ports["s3"]
    uv = str(Path(sys.executable).with_name("uv"))
    team.start("s3", [uv, "tool", "run", "--quiet", "--from", MOTO, "moto_server", "-H", "127.0.0.1", "-p", str(port)])
    url = f"http://127.0.0.1:{port}/{BUCKET}"

    def make_bucket() -> bool:
        request = urllib.request.Request(url, method="PUT")
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5):
                return True
        except OSError:
            return False

    wait_until(make_bucket, 120)


def start_prefect(team: Team) -> None:
    command = ["server", "start", "--host", "127.0.0.1", "--port", str(team.ports["prefect"])]
    team.start("prefect", [sys.executable, "-m", "prefect", *command])
    wait_until(lambda: is_healthy(f"{team.api}/health"), 180)
