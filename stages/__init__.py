"""The stages of the pipeline: one module for each stage of dvc.yaml, run as `python -m stages.NAME`."""

from stages.common.arithmetic import configure

configure()  # here, since this file runs before a stage's own imports of torch and numpy
