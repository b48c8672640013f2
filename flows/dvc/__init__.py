"""Everything that depends on DVC: its command and messages, dvc.yaml, dvc.lock and params.yaml."""
