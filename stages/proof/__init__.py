"""The proof of a model: its quality, its ONNX file, the parity of that file with the trained network, the certificate."""
