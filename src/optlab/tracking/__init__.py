"""Event logs of the runs, and their upload to MLflow: the only package that imports mlflow."""
