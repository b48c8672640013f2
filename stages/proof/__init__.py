"""What proves a model: its quality, the ONNX file, parity with the trained network, the certificate."""
