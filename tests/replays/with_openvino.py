"""with_openvino.py MODEL GOLDEN: OpenVINO replays the golden sample and prints its outputs as JSON."""

import json
import sys

import numpy as np
import openvino

model, golden = sys.argv[1:]
with open(golden, encoding="utf-8") as file:  # noqa: PTH123, a standalone program
    content = json.load(file)
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
images = np.array([case["image"] for case in content["cases"]], np.uint8).reshape(-1, *content["image_shape"])
outputs = compiled({"image": images})
answers = [
    {"logits": logits.tolist(), "probabilities": probabilities.tolist()}
    for logits, probabilities in zip(outputs["logits"], outputs["probabilities"], strict=True)
]
print(json.dumps({"version": openvino.__version__.split("-")[0], "answers": answers}))
