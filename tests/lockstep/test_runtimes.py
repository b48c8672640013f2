"""Other inference engines give the outputs of the golden sample: Node, a browser, OpenVINO and OpenCV."""

from pathlib import Path

import pytest
from runtimes import ENGINES


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["handwriting_model", "colour_model"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_golden_sample_is_replayed(
    engine: str, fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: Path = request.getfixturevalue(fixture)
    replay = ENGINES[engine](model, model.with_name("golden.json"), tmp_path)
    assert replay.equal_labels == replay.cases >= 10
    assert replay.worst <= replay.tolerance
