"""What came of a run, as a short table for a person."""

import json
from pathlib import Path
from typing import Any

from flows.dag import read_dag
from flows.param_file import get_param


def result_table(root: Path) -> str:
    """Data set, accuracy with its interval, parity, and where the ONNX file is."""
    dag = read_dag(root)
    quality = load(root / dag.metrics("evaluate"))
    parity = load(root / dag.metrics("validate_parity"))
    model = dag.artifacts["classifier"]
    rows = {
        "data set": get_param(root / "params.yaml", "download.dataset"),
        "accuracy": (
            f"{quality['accuracy']:.2%} on {quality['images']:,} test images "
            f"(95 % interval {quality['accuracy_low']:.2%} to {quality['accuracy_high']:.2%})"
        ),
        "parity": (
            f"{'proven' if parity['same'] else 'FAILED'}: {parity['configurations']} configurations, "
            f"logits within {parity['logits_max']:.1e}, {parity['flips']} flipped labels"
        ),
        "ONNX file": f"{model} ({(root / model).stat().st_size:,} bytes)",
    }
    return "\n".join(f"  {name:<10} {text}" for name, text in rows.items())


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
