"""The proof of a model: its quality, its ONNX file, the parity of file and trained network, the certificate."""
