"""The journal of a run, and MLflow as a view of it: the only room that imports mlflow."""
