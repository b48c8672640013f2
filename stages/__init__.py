"""The stages of the pipeline: one module for each stage of dvc.yaml, run as `python -m stages.NAME`."""

import os
import sys

from stages.core.arithmetic import configure_environment, is_stage_command
from stages.core.source import snapshot_source

if is_stage_command(sys.orig_argv):  # here, because the module of a stage imports numpy and torch
    configure_environment(sys.orig_argv, os.environ)
    snapshot_source()
