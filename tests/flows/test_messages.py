"""What the flows understand of the output of DVC and of a stage."""

from flows.dvc.messages import command_exit_status, is_hint, last_error_line
from stages.core.command import RESTORE_HINT

OUTPUT = f"""train says hello
train: train.epochs must be positive
{RESTORE_HINT}
ERROR: failed to reproduce 'train': failed to run: python -m stages.train, exited with 3
"""


def test_the_hint_that_a_stage_prints_after_an_error_is_known_to_the_flows() -> None:
    assert is_hint(RESTORE_HINT)
    assert not is_hint("train: train.epochs must be positive")


def test_the_last_error_line_is_the_stages_own_error() -> None:
    assert last_error_line(OUTPUT) == "train: train.epochs must be positive"
    assert last_error_line(RESTORE_HINT) == RESTORE_HINT
    assert last_error_line("") == ""


def test_the_exit_status_is_that_of_the_stages_command() -> None:
    assert command_exit_status(OUTPUT.splitlines()) == 3
    assert command_exit_status(["ERROR: no space left on device"]) is None
