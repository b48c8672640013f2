"""LitServe with the ONNX file: python with_litserve.py MODEL PORT; pixels as JSON at /predict."""

import json
import sys

import litserve
import numpy as np
import onnxruntime


class Digits(litserve.LitAPI):
    def setup(self, _device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        self.classes = json.loads(self.session.get_modelmeta().custom_metadata_map["classes"])

    def decode_request(self, request):
        return np.array(request["images"], np.uint8)[:, None]

    def predict(self, images):
        return self.session.run(["probabilities"], {"image": images})[0]

    def encode_response(self, probabilities):
        return {"predictions": [dict(zip(self.classes, row.tolist(), strict=True)) for row in probabilities]}


if __name__ == "__main__":
    server = litserve.LitServer(Digits(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False, log_level="error"
    )
