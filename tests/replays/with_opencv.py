"""with_opencv.py MODEL GOLDEN: OpenCV's DNN replays the golden sample; what it answered, as JSON."""

import json
import sys

import cv2
import numpy as np

model, golden = sys.argv[1:]
with open(golden, encoding="utf-8") as file:  # noqa: PTH123, a program that stands alone
    content = json.load(file)
network = cv2.dnn.readNetFromONNX(model)
answers = []
for case in content["cases"]:  # its importer takes the batch axis for one image
    network.setInput(np.array(case["image"], np.float32).reshape(1, *content["image_shape"]), "image")
    logits, probabilities = network.forward(["logits", "probabilities"])
    answers.append({"logits": logits.ravel().tolist(), "probabilities": probabilities.ravel().tolist()})
print(json.dumps({"version": cv2.__version__, "answers": answers}))
