"""The stages of the pipeline: one module for each stage of dvc.yaml, run as `python -m stages.NAME`."""

import os
import sys

from stages.common.arithmetic import configure, is_stage
from stages.common.inputs import remember_source

if is_stage(sys.orig_argv):  # here, since a stage's own module imports torch and numpy
    configure(sys.orig_argv, os.environ)
    remember_source()
