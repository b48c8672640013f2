"""with_opencv.py MODEL GOLDEN: OpenCV's DNN replays the golden sample and prints its outputs as JSON."""

import json
import sys

import cv2
import numpy as np

model, golden = sys.argv[1:]
with open(golden, encoding="utf-8") as file:  # noqa: PTH123, a standalone program
    content = json.load(file)
network = cv2.dnn.readNetFromONNX(model)
images = np.array([case["image"] for case in content["cases"]], np.uint8).reshape(-1, *content["image_shape"])
network.setInput(images, "image")
answers = [
    {"logits": logits.tolist(), "probabilities": probabilities.tolist()}
    for logits, probabilities in zip(*network.forward(["logits", "probabilities"]), strict=True)
]
print(json.dumps({"version": cv2.__version__, "answers": answers}))
