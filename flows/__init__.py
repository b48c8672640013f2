"""What runs the pipeline and tells what came of it. Reads dvc.yaml; never imports stages, torch or onnx."""
