"""What speaks DVC's dialect: its command, dvc.yaml, dvc.lock and params.yaml."""
