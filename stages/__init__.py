"""The stages of the pipeline: one module for each stage of dvc.yaml, run as `python -m stages.NAME`."""

import gc
import os
import sys

from stages.core.arithmetic import is_stage_command, set_arithmetic_env
from stages.core.source import snapshot_source

if is_stage_command(sys.orig_argv):  # here, because the module of a stage imports numpy and torch
    gc.disable()  # until run_stage: imports leave hardly any garbage, and looking for it takes time
    set_arithmetic_env(sys.orig_argv, os.environ)
    snapshot_source()
