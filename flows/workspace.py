"""Where a run works: the project's folder, or a clean clone of its HEAD with the same DVC cache."""

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flows.dvc.command import dvc_tmp_dir, hold_lock, run_dvc, try_lock
from flows.dvc.messages import error_message
from flows.errors import FlowError
from flows.process import stream_command

Where = Literal["tree", "clone"]
COMMITTER = ("-c", "user.name=Lockstep", "-c", "user.email=lockstep@localhost")
COMMIT_ATTEMPTS = 20  # with growing pauses, about three minutes
UPSTREAM = "upstream"  # in a clone: the origin of the project
OnMessage = Callable[[str], None]


@dataclass(frozen=True)
class Workspace:
    path: Path
    base: str = "HEAD"  # the commit whose dvc.lock the run starts from
    git_remote: str = "origin"  # where results are committed to: origin is the project's folder, upstream its origin
    has_dvc_remote: bool = False

    async def save_results(
        self, branch: str | None, message: str, stages_run: Sequence[str], on_message: OnMessage
    ) -> None:
        """Push the outputs of these stages to the DVC remote. Commit a changed dvc.lock to the branch."""
        if self.has_dvc_remote and stages_run:
            await dvc(self.path, "push", *stages_run, on_line=on_message)
        if not branch:  # always so in the project's folder, whose index is the person's
            return
        await git(self.path, "add", "--all")
        if await git(self.path, "diff", "--cached", "--name-only", self.base, "--", "dvc.lock"):
            await commit(self.path, self.git_remote, branch, message)
            on_message(f"Committed to the branch {branch}" + (" of origin" if self.git_remote == UPSTREAM else ""))


@asynccontextmanager
async def open_workspace(
    project_dir: Path, where: Where, branch: str | None, push: bool, on_message: OnMessage
) -> AsyncIterator[Workspace]:
    if push and not branch:
        raise FlowError("push needs commit_to: the branch of origin that the results are pushed to")
    if where == "tree":
        if branch:
            raise FlowError("commit_to needs where=clone: in the project's folder you commit yourself")
        await remove_abandoned_clones(project_dir)
        lock = dvc_tmp_dir(project_dir) / "lockstep.lock"
        async with hold_lock(lock, "another run in this folder", on_message):  # all of them change its params.yaml
            yield Workspace(project_dir)
        return
    if branch:
        await git(project_dir, "check-ref-format", "--branch", branch)
        if await git(project_dir, "branch", "--show-current") == [branch]:
            raise FlowError(f"commit_to: {branch} is checked out in the project's folder; name another branch")
        url = (await git(project_dir, "remote", "get-url", "origin"))[-1] if push else ""
        default = await git(project_dir, "ls-remote", "--symref", "origin", "HEAD") if push else []
        if f"ref: refs/heads/{branch}\tHEAD" in default:
            raise FlowError(f"commit_to: {branch} is the default branch of origin; name another branch for results")
    async with scratch_dir(project_dir) as path:
        workspace = await clone(project_dir, path, on_message)
        if push and not workspace.has_dvc_remote:
            raise FlowError("push needs a default DVC remote, where others find the data: dvc remote add --default …")
        if push and branch:
            await git(path, "remote", "add", UPSTREAM, url)
            await fetch_branch(path, UPSTREAM, branch)
            workspace = replace(workspace, git_remote=UPSTREAM)
        yield workspace


@asynccontextmanager
async def open_scratch_clone(project_dir: Path, on_message: OnMessage, revision: str = "HEAD") -> AsyncIterator[Path]:
    """A clone with the data that exists, but with a DVC cache of its own, so that new outputs stay in it."""
    async with scratch_dir(project_dir) as path:
        await clone(project_dir, path, on_message, revision)
        write_dvc_settings(path, {**await dvc_settings(project_dir), "cache.dir": str(path / ".dvc" / "cache")})
        yield path


async def clone(project_dir: Path, path: Path, on_message: OnMessage, revision: str = "HEAD") -> Workspace:
    """Clone the revision, with DVC's settings and cache and the data that exists."""
    head = await resolve_revision(project_dir, revision)
    await git(project_dir, "clone", "--quiet", "--no-checkout", ".", str(path))
    if not await has_commit(path, head):  # from a shallow clone only heads and tags come along
        await git(path, "fetch", "--quiet", "origin", head)
    await git(path, "checkout", "--quiet", "--detach", head)
    settings = await dvc_settings(project_dir)
    write_dvc_settings(path, settings)
    has_dvc_remote = "core.remote" in settings
    on_message(f"Works in a clean clone of {head[:10]}" + (", with the remote's data" if has_dvc_remote else ""))
    if not has_dvc_remote:  # with a remote `dvc repro --pull` fetches what a stage needs
        await run_dvc(["checkout", "--allow-missing"], path)  # fails for data that is not in the cache
    return Workspace(path, has_dvc_remote=has_dvc_remote)


async def dvc_settings(project_dir: Path) -> dict[str, str]:
    """DVC's settings, with absolute paths. Of several levels (system, global, local) the last one listed applies."""
    listed = (await run_dvc(["config", "--list"], project_dir)).lines
    cache = (await dvc(project_dir, "cache", "dir"))[-1]
    return {**dict(line.split("=", 1) for line in listed if "=" in line), "cache.dir": cache}


def write_dvc_settings(path: Path, settings: Mapping[str, str]) -> None:
    """Write .dvc/config.local of a clone; remote.storage.url becomes url in the section 'remote "storage"'."""
    sections: dict[str, list[str]] = {}
    for name, value in settings.items():
        section, _, rest = name.partition(".")
        label, _, key = rest.rpartition(".")
        sections.setdefault(f"'{section} \"{label}\"'" if label else section, []).append(f'    {key} = "{value}"')
    file = path / ".dvc" / "config.local"
    file.touch(mode=0o600)  # it may hold a remote's password
    file.write_text("".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in sections.items()))


@asynccontextmanager
async def scratch_dir(project_dir: Path) -> AsyncIterator[Path]:
    """A new folder, removed afterwards. Its lock tells other runs that it is in use."""
    await remove_abandoned_clones(project_dir)
    async with lock_clones(project_dir) as clones:
        path = Path(tempfile.mkdtemp(dir=clones))
        lock = os.open(path, os.O_RDONLY)
        try_lock(lock)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


async def remove_abandoned_clones(project_dir: Path) -> None:
    """Remove the clones of runs that were killed: those that no process has locked."""
    async with lock_clones(project_dir) as clones:
        for path in [path for path in clones.iterdir() if path.is_dir()]:
            lock = os.open(path, os.O_RDONLY)
            if try_lock(lock):
                shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


@asynccontextmanager
async def lock_clones(project_dir: Path) -> AsyncIterator[Path]:
    """Hold the lock of the folder of clones while one is made or removed."""
    (clones := dvc_tmp_dir(project_dir) / "clones").mkdir(exist_ok=True)
    async with hold_lock(clones / "lock", "another run that removes clones", None):
        yield clones


async def fetch_origin(project_dir: Path) -> None:
    """Fetch the branches and tags of origin, if there is one; a worker's clone follows one branch only."""
    if "origin" in await git(project_dir, "remote"):
        await git(project_dir, "fetch", "--quiet", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*")


async def has_commit(path: Path, commit: str) -> bool:
    return (await stream_command(["git", "cat-file", "-e", commit], path)).returncode == 0


async def resolve_revision(project_dir: Path, revision: str) -> str:
    """The hash of the commit that a revision names."""
    if revision == "HEAD":
        return (await git(project_dir, "rev-parse", "HEAD"))[-1]
    if revision.startswith("origin/"):
        await fetch_origin(project_dir)
    try:
        name = f"{revision}^{{commit}}"
        return (await git(project_dir, "rev-parse", "--verify", "--quiet", "--end-of-options", name))[-1]
    except FlowError:
        raise FlowError(f"there is no revision {revision} here") from None


async def fetch_branch(path: Path, remote: str, branch: str) -> str | None:
    """Fetch the branch, as REMOTE/BRANCH; returns its last commit, or None if there is no such branch."""
    if not await git(path, "ls-remote", "--heads", remote, f"refs/heads/{branch}"):
        return None
    await git(path, "fetch", "--quiet", remote, f"+refs/heads/{branch}:refs/remotes/{remote}/{branch}")
    return (await git(path, "rev-parse", f"refs/remotes/{remote}/{branch}"))[-1]


async def commit(path: Path, remote: str, branch: str, message: str) -> None:
    """Commit the index of PATH to the branch of the remote, as a merge of the branch and the commit that ran.

    The result has the files of the run alone: of the branch's earlier commits only the history is kept.
    """
    tree, head = (await git(path, "write-tree"))[-1], (await git(path, "rev-parse", "HEAD"))[-1]
    for attempt in range(COMMIT_ATTEMPTS):
        try:
            tip = await fetch_branch(path, remote, branch)
            flags = [word for parent in dict.fromkeys(filter(None, [tip, head])) for word in ("-p", parent)]
            result = (await git(path, *COMMITTER, "commit-tree", tree, *flags, "-m", message))[-1]
            await git(path, "push", "--quiet", remote, f"{result}:refs/heads/{branch}")
        except FlowError:  # the branch has moved, or the remote is away for a while
            if attempt == COMMIT_ATTEMPTS - 1:
                raise
            await asyncio.sleep(random.uniform(0, min(30.0, 0.5 * 1.5**attempt)))
        else:
            return


async def git(folder: Path, *arguments: str) -> list[str]:
    """The lines that the git command prints to its standard output."""
    with tempfile.TemporaryFile() as errors:
        result = await stream_command(["git", *arguments], folder, max_lines=None, stderr=errors)
        if result.returncode:
            errors.seek(0)
            reason = " ".join(errors.read().decode(errors="replace").split())
            hint = ": a run in a clone needs a git repository with a commit" if arguments[0] == "rev-parse" else ""
            raise FlowError(f"git {' '.join(arguments[:3])}: {reason}{hint}")
    return list(result.lines)


async def dvc(folder: Path, *arguments: str, on_line: OnMessage | None = None) -> list[str]:
    """The lines that the DVC command prints."""
    result = await run_dvc(arguments, folder, on_line=on_line)
    if result.returncode:
        raise FlowError(f"dvc {' '.join(arguments)}: {' '.join(error_message(result.lines).split())}")
    return list(result.lines)
