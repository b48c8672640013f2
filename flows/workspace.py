"""Where a run works: in the project's folder, or in a clean clone of its HEAD with the same DVC cache."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.dvc.command import dvc, dvc_tmp_dir, try_lock
from flows.errors import FlowError
from flows.process import Ended, follow

Where = Literal["tree", "clone"]
WHO = ("-c", "user.name=Lockstep", "-c", "user.email=lockstep@localhost")  # who commits a run's results


@dataclass(frozen=True)
class Workspace:
    path: Path
    home: Path  # the project's folder
    remote: bool  # whether results are pushed

    async def keep(self, branch: str | None, message: str, say: Callable[[str], None]) -> None:
        """Push what a run made, and commit a changed dvc.lock to the branch of the project's repository."""
        if self.remote:
            await succeed(dvc(["push"], self.path, say=say), "dvc push")
        if branch and await git(self.path, "status", "--porcelain", "dvc.lock"):
            await commit(self.path, self.home, branch, message)
            say(f"Committed to the branch {branch}")


@asynccontextmanager
async def workspace(
    home: Path, where: Where, branch: str | None, say: Callable[[str], None]
) -> AsyncIterator[Workspace]:
    if branch and where == "tree":
        raise FlowError("commit_to needs where=clone: in the project's folder it is you who commits")
    if where == "tree":
        remove_left(home)
        async with exclusive_run(home, say):
            yield Workspace(home, home, remote=False)
        return
    if branch:
        await git(home, "check-ref-format", "--branch", branch)
    if branch and await git(home, "branch", "--show-current") == [branch]:
        raise FlowError(f"commit_to: {branch} is checked out in the project's folder; name another branch")
    with scratch_dir(home) as path:
        yield await clone(home, path, say)


@asynccontextmanager
async def scratch(home: Path, say: Callable[[str], None]) -> AsyncIterator[Path]:
    """A clone with what is there of the data, but with a cache of its own: what is made in it stays there."""
    with scratch_dir(home) as path:
        await clone(home, path, say)
        settings = {**await dvc_settings(home), "cache.dir": str(path / ".dvc" / "cache")}
        write_settings(path / ".dvc" / "config.local", settings)
        yield path


@asynccontextmanager
async def exclusive_run(home: Path, say: Callable[[str], None]) -> AsyncIterator[None]:
    """While no other run works in the project's folder: they share params.yaml."""
    with (dvc_tmp_dir(home) / "lockstep.lock").open("w") as lock:
        told = False
        while not try_lock(lock):
            if not told:
                say("Waiting for another run in this folder")
            told = True
            await asyncio.sleep(0.5)
        yield


async def clone(home: Path, path: Path, say: Callable[[str], None]) -> Workspace:
    """A clone of HEAD, with DVC's settings and cache and what is there of the data."""
    head = (await git(home, "rev-parse", "HEAD"))[-1]
    await git(home, "clone", "--quiet", "--no-checkout", ".", str(path))
    await git(path, "checkout", "--quiet", "--detach", head)
    settings = await dvc_settings(home)
    write_settings(path / ".dvc" / "config.local", settings)
    remote = "core.remote" in settings
    say(f"Works in a clean clone of {head[:10]}" + (", with the remote's data" if remote else ""))
    if remote:
        await succeed(dvc(["pull", "--allow-missing"], path, say=say), "dvc pull")
    else:
        await dvc(["checkout", "--allow-missing"], path)
    return Workspace(path, home, remote)


async def dvc_settings(home: Path) -> dict[str, str]:
    """DVC's settings with their paths made absolute, and where the cache is. The last level that sets one wins."""
    listed = (await dvc(["config", "--list"], home)).lines
    cache = (await succeed(dvc(["cache", "dir"], home), "dvc cache dir"))[-1]
    return {**dict(line.split("=", 1) for line in listed if "=" in line), "cache.dir": cache}


def write_settings(file: Path, settings: Mapping[str, str]) -> None:
    """remote.storage.url is the url of the section 'remote "storage"'."""
    sections: dict[str, list[str]] = {}
    for name, value in settings.items():
        section, _, rest = name.partition(".")
        inner, _, key = rest.rpartition(".")
        sections.setdefault(f"'{section} \"{inner}\"'" if inner else section, []).append(f'    {key} = "{value}"')
    file.touch(mode=0o600)
    file.write_text("".join(f"[{name}]\n" + "\n".join(items) + "\n" for name, items in sections.items()))


@contextmanager
def scratch_dir(home: Path) -> Iterator[Path]:
    """A folder that no other run uses, removed afterwards; one that a killed run left is taken anew."""
    (folder := clones(home)).mkdir(exist_ok=True)
    remove_left(home)
    for number in itertools.count(1):
        with claim_folder(folder / str(number)) as free:
            if free:
                yield folder / str(number)
                return


def remove_left(home: Path) -> None:
    """Remove the clones that killed runs left: those that nobody holds."""
    for path in clones(home).glob("*[0-9]"):
        with claim_folder(path):
            pass


def clones(home: Path) -> Path:
    return dvc_tmp_dir(home) / "clones"


@contextmanager
def claim_folder(path: Path) -> Iterator[bool]:
    """Whether no other run holds the folder; if so, it is removed first and last. Its lock stays: others may wait."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        if free := try_lock(lock):
            shutil.rmtree(path, ignore_errors=True)
        try:
            yield free
        finally:
            if free:
                shutil.rmtree(path, ignore_errors=True)


async def commit(path: Path, home: Path, branch: str, message: str) -> None:
    """Commit all that changed in PATH; its parents are what ran, and the branch as it was."""
    await git(path, "add", "--all")
    tree = (await git(path, "write-tree"))[-1]
    for last in (False, False, True):  # another run may commit to the same branch meanwhile
        try:
            await commit_tree(path, home, branch, tree, message)
        except FlowError:
            if last:
                raise
        else:
            return


async def commit_tree(path: Path, home: Path, branch: str, tree: str, message: str) -> None:
    parents = ["HEAD"]
    if known := await git(home, "for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}"):
        await git(path, "fetch", "--quiet", str(home), f"refs/heads/{branch}")
        parents = list(dict.fromkeys([known[-1], (await git(path, "rev-parse", "HEAD"))[-1]]))
    flags = [word for parent in parents for word in ("-p", parent)]
    made = (await git(path, *WHO, "commit-tree", tree, *flags, "-m", message))[-1]
    await git(path, "update-ref", "refs/heads/result-of-run", made)
    await git(home, "fetch", "--quiet", str(path), f"refs/heads/result-of-run:refs/heads/{branch}")


async def git(folder: Path, *words: str) -> list[str]:
    done = await follow(["git", *words], folder)
    if done.status:
        needed = ": a run in a clone needs a git repository with a commit" if words[0] == "rev-parse" else ""
        raise FlowError(f"git {' '.join(words[:3])}: {' '.join(done.lines)}{needed}")
    return list(done.lines)


async def succeed(command: Awaitable[Ended], name: str) -> list[str]:
    done = await command
    if done.status:
        raise FlowError(
            f"{name}: {' '.join(line for line in done.lines if line.startswith('ERROR')) or done.lines[-1:]}"
        )
    return list(done.lines)
