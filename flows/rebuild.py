"""The flow `lockstep-rebuild`: runs a revision again from the raw data, and signs a statement of the model's bytes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from prefect import State, flow, get_run_logger
from prefect.states import Completed, Failed

from flows.audit import read_checksums, rerun_all
from flows.automation import check_attempts
from flows.dvc.dag import Dag, read_dag
from flows.dvc.lock_file import read_lock
from flows.dvc.params_file import flatten, read_params
from flows.errors import FlowError
from flows.pipeline import ROOT, rename_flow_run
from flows.promote import ARTIFACT, STATEMENTS
from flows.report import shorten
from flows.terminal import run_cli, run_flow
from flows.workspace import git, open_scratch_clone, resolve_revision

ENVIRONMENT_FILE = "requirements.lock"
IN_TOTO = "application/vnd.in-toto+json"
BUILD_TYPE = "https://dvc.org/doc/command-reference/repro"


@flow(name="lockstep-rebuild", persist_result=False)
async def rebuild(private_key: Path, revision: str = "HEAD", statements: Path | None = None) -> State[Any]:
    """Run every stage of a revision again from the raw data; if the model has the same bytes, sign a statement of it.

    Args:
        private_key: of the one who states it: elliptic curve (P-256, P-384, P-521), Ed25519 or RSA, as PEM
        revision: the commit, branch or tag
        statements: the file to which the statement is appended; model.intoto.jsonl beside the model unless given
    """
    log = get_run_logger()
    try:
        check_attempts()
        signer = read_signer(private_key)
        path = statements or ROOT / Path(read_dag(ROOT).artifacts[ARTIFACT]).with_name(STATEMENTS)
        append_line(path, "")  # before hours of work
        commit = await resolve_revision(ROOT, revision)
        await check_environment(commit)
        async with open_scratch_clone(ROOT, log.info, commit) as root:
            statement = await run_again(root, commit)
        append_line(path, sign_statement(statement, signer))
        names = ", ".join(subject["name"] for subject in statement["subject"])
        state: State[Any] = Completed(
            name="Rebuilt", message=f"{commit[:10]}: the same bytes as in dvc.lock: {names}; stated in {path}"
        )
    except FlowError as error:
        state = Failed(message=str(error))
    log.info(f"{state.name}: {state.message}")
    await rename_flow_run(shorten(f"rebuild: {state.message}"))
    return state


def read_signer(path: Path) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
    except ModuleNotFoundError as error:
        raise FlowError(f"signing needs {error.name}: make setup") from None
    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), password=None))
    except OSError as error:
        raise FlowError(f"{path}: cannot be read: {error.strerror}") from None
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
    ) as error:  # a public key, a password, …
        raise FlowError(f"{path}: not a private key without a password, as PEM: {str(error)[:100]}") from None


async def check_environment(commit: str) -> None:
    """The environment of this clone must be that of the revision."""
    locked = await git(ROOT, "show", f"{commit}:./{ENVIRONMENT_FILE}")
    if locked != (ROOT / ENVIRONMENT_FILE).read_text(encoding="utf-8").splitlines():
        raise FlowError(
            f"{commit[:10]} has another {ENVIRONMENT_FILE}: git checkout {commit[:10]} && make setup, then again"
        )


async def run_again(root: Path, commit: str) -> dict[str, Any]:
    """Run every stage in this clone; the statement, or a FlowError if a byte of the model differs."""
    arithmetic = flatten(read_params(root / "params.yaml")).get("machine.arithmetic")
    if arithmetic != "portable":
        raise FlowError(f"params.yaml: machine.arithmetic is {arithmetic}: only portable is the same on every CPU")
    dag, committed, entries = read_dag(root), await read_checksums(root), await read_lock(root)
    outs = model_outs(dag)
    checksums = await rerun_all(root)
    if different := [path for path in outs if checksums.get(path) != committed.get(path)]:
        raise FlowError(f"Not stated: bytes differ from those of dvc.lock in {commit[:10]}: {', '.join(different)}")
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {
                "name": Path(path).name,
                "digest": {"sha256": hashlib.sha256((root / path).read_bytes()).hexdigest()},
            }
            for path in outs
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"command": "dvc repro --force"},
                "resolvedDependencies": [
                    {"name": "source", "digest": {"gitCommit": commit}},
                    *list_materials(dag, entries, checksums),
                ],
            },
            "runDetails": {"builder": {"id": "urn:lockstep:rebuild"}},
        },
    }


def model_outs(dag: Dag) -> list[str]:
    """What the stages write into the folder of the model."""
    folder = Path(dag.artifacts[ARTIFACT]).parent
    return sorted(out for stage in dag.stages.values() for out in stage.outs if Path(out).parent == folder)


def list_materials(dag: Dag, entries: Mapping[str, Any], checksums: Mapping[str, str]) -> list[dict[str, Any]]:
    """The code and the data that dvc.lock names: deps that no stage makes, and the outs of stages without upstream."""
    digests = {dep["path"]: dep["md5"] for entry in entries.values() for dep in entry.get("deps", []) if "md5" in dep}
    data = {out: checksums[out] for stage in dag.stages.values() if not stage.upstream for out in stage.outs}
    code = {path: digest for path, digest in digests.items() if path not in checksums}
    return [
        # The hash of a folder is that of DVC's list of its files.
        {"name": path, "digest": {"dvcDirectoryMd5" if digest.endswith(".dir") else "md5": digest.removesuffix(".dir")}}
        for path, digest in sorted({**code, **data}.items())
    ]


def sign_statement(statement: Mapping[str, Any], signer: Any) -> str:
    """An envelope (DSSE) with the statement and its signature, as one line of JSON."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(json.dumps(statement, sort_keys=True).encode(), IN_TOTO, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict())


def append_line(path: Path, line: str) -> None:
    """Append the line, or with an empty one find out whether that is possible, and leave no empty file."""
    try:
        with path.open("a+b") as file:
            if line:
                file.seek(max(0, file.tell() - 1))
                separator = b"" if file.read(1) in (b"", b"\n") else b"\n"
                file.write(separator + line.encode() + b"\n")
            is_empty = not file.tell()
        if is_empty:
            path.unlink()
    except OSError as error:
        raise FlowError(f"{path}: cannot be written: {error.strerror}") from None


def rebuild_cli(
    revision: str = "HEAD",
    /,
    *,
    private_key: Annotated[Path, Parameter(name="--private-key")],
    statements: Path | None = None,
) -> None:
    """Run every stage of a revision again from the raw data; if the model has the same bytes, sign a statement of it.

    No result is taken from DVC's cache. Raw data that are here are used if they have the published checksums; other raw
    data are downloaded. For example:

    python -m flows.rebuild --private-key private.pem

    lockstep verify --rebuilt 2 --rebuilder-key a.pub --rebuilder-key b.pub

    Parameters
    ----------
    revision
        The commit, branch or tag.
    private_key
        Of the one who states it: elliptic curve, Ed25519 or RSA, as PEM.
    statements
        The file to which the statement is appended; model.intoto.jsonl beside the model unless given.
    """
    raise SystemExit(run_flow(rebuild, private_key=private_key, revision=revision, statements=statements))


if __name__ == "__main__":
    run_cli(rebuild_cli, "python -m flows.rebuild")
