"""A program that expands `foreach`, `matrix` and `${}` with DVC itself: dvc.yaml and params.yaml in, dvc.yaml out.

The only place that uses DVC's Python API, which is not declared stable: tests/flows/test_templates.py compares what it
gives with what the `dvc` command does. Both files come as texts in a JSON list on stdin; the result is JSON on stdout.
"""

import json
import sys


def main() -> None:
    from dvc.parsing import Context, DataResolver  # type: ignore[import-untyped]
    from dvc.repo import Repo  # type: ignore[import-untyped]
    from dvc.utils.serialize import parse_yaml  # type: ignore[import-untyped]

    content, params = (parse_yaml(text, name) for text, name in zip(json.load(sys.stdin), sys.argv[1:], strict=True))
    repo = Repo()
    resolver = DataResolver(repo, repo.root_dir, content)
    resolver.context.merge_update(Context(params), overwrite=True)  # PARAMS may differ from the file in the folder
    print(json.dumps({**resolver.resolve(), "artifacts": resolver.resolve_artifacts()}))


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # whatever is wrong with these files or this version of DVC is one line for the caller
        sys.exit(f"{type(error).__name__}: {error}")
