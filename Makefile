# Each target is a command that you could type yourself in the environment that `make setup` makes.
# `##` describes a target in `make help`; `###` one for people who work on the project.
PYTHON ?= python3
SHELL := /bin/sh
export PATH := $(CURDIR)/.venv/bin:$(PATH)
.DEFAULT_GOAL := help
.PHONY: help setup run compare test test-all test-ci test-portable test-team test-faults lint check-lock publish sbom sign serve serve-flows bench bench-arithmetic bench-pipeline bench-onnx bench-flow experiments doctor lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.* ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.* ## /  \1\t/' | expand -t 20
	@echo; echo "To work on the project:"
	@grep -hE '^[a-z-]+:.* ### ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.* ### /  \1\t/' | expand -t 20

setup:  ## make .venv with the exact versions of requirements.lock, unless it is up to date
	@{ test -x .venv/bin/lockstep && cmp -s requirements.lock .venv/installed.lock; } || { \
	  $(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; make PYTHON=/path/to/it" if sys.version_info < (3, 11) else 0)' && \
	  echo "Installing requirements.lock into .venv: some minutes, once" && \
	  $(PYTHON) -m venv --clear .venv && \
	  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock && \
	  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . && \
	  .venv/bin/python -m pip check && \
	  cp requirements.lock .venv/installed.lock; }

doctor:  ## check what a run needs, and name the command that mends what is wrong; FLAGS=--json; works without `make setup`
	@for python in .venv/bin/python $(PYTHON) /usr/bin/python3; do \
	  "$$python" -c 'import asyncio, json' 2>/dev/null && { "$$python" -m flows.doctor $(FLAGS); exit; }; done; \
	  echo "No Python starts: install Python 3.11 or later, or make PYTHON=/path/to/it doctor"; exit 1

run: setup  ## run the whole pipeline and show the result; DATASET=digits chooses the data set first (params.yaml names them), EXPERIMENT=quick a set of experiments.yaml
	@python -m flows.make_run $(if $(DATASET),--dataset "$(DATASET)") $(if $(EXPERIMENT),--experiment "$(EXPERIMENT)")

compare: setup  ## which of two models is better, by a paired test: A=HEAD B=workspace, or other revisions or experiments; FLAGS=--json
	@python -m flows.compare $(or $(A),HEAD) $(or $(B),workspace) $(FLAGS)

test: setup  ## run the fast tests
	python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not emulated" --cov --cov-report=term-missing:skip-covered

test-all: setup  ### run the fast and the slow tests
	python -m pytest -m "not gpu and not emulated and not team and not faults"

test-ci: setup  ### run the slow tests that CI runs
	python -m pytest -n 2 --dist loadfile -m "slow and ci and not gpu"

test-portable: setup  ### compare bytes under emulated CPUs (qemu-user, version 8 or later; an hour)
	@version=$$(qemu-x86_64 --version 2>/dev/null | sed -n 's/^qemu-x86_64 version \([0-9]*\).*/\1/p'); \
	  test -n "$$version" || { echo "qemu-x86_64 was not found: install qemu-user, version 8 or later (Debian 13 has 10)"; exit 1; }; \
	  test "$$version" -ge 8 || { echo "qemu-x86_64 $$version crashes in grid_sample: install qemu-user, version 8 or later (Debian 13 has 10)"; exit 1; }
	python -m pytest -m emulated tests/test_portable.py

test-team: setup  ### run the tests of a team: S3, PostgreSQL and three workers on loopback (PostgreSQL 15; half an hour)
	python -m pytest -m team tests/flows/test_team.py

test-faults: setup  ### kills, full disks, hostile mirrors, 150,000 damaged inputs (an hour; FAULTS=0.1 for a tenth); the counts go to benchmarks/results/faults.jsonl
	@rm -f benchmarks/results/faults.jsonl
	FAULTS=$(or $(FAULTS),1) FAULTS_RESULTS=$(CURDIR)/benchmarks/results/faults.jsonl \
	  python -m pytest -n 2 --dist worksteal -m "not emulated" tests/faults; status=$$?; \
	  python tests/faults/counts.py benchmarks/results/faults.jsonl; exit $$status

check-lock: setup  ### check that dvc.lock was made by the committed code: in a clone every stage is skipped
	@clone=$$(mktemp -d) && trap 'rm -rf "$$clone"' EXIT && git clone -q . "$$clone" && cd "$$clone" && \
	  out=$$(dvc repro --dry --allow-missing 2>&1) || { echo "$$out"; exit 1; } && \
	  case "$$out" in *"Running stage"*) echo "$$out"; echo "dvc.lock was not made by the committed code: run dvc repro and commit it"; exit 1;; esac && \
	  echo "dvc.lock was made by the committed code"

lint: setup  ### ruff and mypy
	ruff check . && ruff format --check . && mypy

sbom: setup  ### write sbom.json, the bill of materials of requirements.lock (CycloneDX)
	@uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements requirements.lock --output-reproducible --output-file sbom.json

sign: setup  ### sign the proven model in data/model; KEY=private.pem, an elliptic-curve key
	@lockstep verify data/model/model.onnx && model_signing sign key --private_key "$(KEY)" --signature data/model/model.sig \
	  $(foreach file,weights.safetensors model.intoto.jsonl,--ignore-paths data/model/$(file)) data/model

publish: setup  ### copy the proven model of the committed run into lockstep/published, which is installed with lockstep
	@lockstep verify data/model/model.onnx && cd data/model && cp model.onnx golden.json certificate.json CARD.md ../../lockstep/published/

serve: setup  ## serve data/model/model.onnx over HTTP, with a page to draw on; FLAGS="--port 9000" and so on
	@python -m lockstep serve $(if $(wildcard data/reports/evaluate.json),--report data/reports/evaluate.json) $(FLAGS)

serve-flows: setup  ## serve the deployments of prefect.yaml and their schedules, without a worker or a work pool
	@python -m flows.serve_deployments

bench: setup  ## compare the published recipes with ours; ONLY="quick standard" SEEDS=5 selects
	@python -m benchmarks.training --plot docs/speed.png $(foreach name,$(ONLY),--only $(name)) $(if $(SEEDS),--seeds $(SEEDS))

bench-arithmetic: setup  ### the cost of portable arithmetic, and two trainings side by side
	@python -m benchmarks.arithmetic

bench-pipeline: setup  ### each stage's overhead and memory, a run with nothing to do, ten times the data
	@python -m benchmarks.pipeline

bench-onnx: setup  ### the ONNX file in ONNX Runtime beside the network in PyTorch
	@python -m benchmarks.inference

bench-flow: setup  ### what the flow costs on top of dvc repro
	@python benchmarks/flow_overhead.py

experiments: setup  ## run sets of params of experiments.yaml and show them: NAMES="quick strong", or NAMES=--all
	@python -m flows.experiments $(NAMES)

lock: setup  ### resolve requirements.lock again from the ranges in pyproject.toml
	uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --no-annotate --no-header \
	  --upgrade --extra pipeline --extra s3 --extra service --extra signing --group dev -o requirements.lock pyproject.toml

clean:  ## remove the environment and the tools' caches; data and DVC's cache stay
	rm -rf logs .venv .pytest_cache .mypy_cache .ruff_cache .coverage dvc_plots build *.egg-info data/checkpoints
	find stages flows lockstep benchmarks tests -name __pycache__ -prune -exec rm -rf {} +
