"""What MLflow's bare client sees in the repository that is the working directory, as JSON."""

import json
import logging

import mlflow


def main():
    logging.disable(logging.WARNING)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("optlab")
    runs = client.search_runs([experiment.experiment_id])
    apart = client.get_experiment_by_name("optlab.summary")
    summaries = client.search_runs([apart.experiment_id]) if apart else []

    def history(run, key):
        return [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, key)]

    def files(run, path=None):
        found = []
        for item in client.list_artifacts(run.info.run_id, path):
            found += files(run, item.path) if item.is_dir else [item.path]
        return found

    print(
        json.dumps(
            {
                "location": experiment.artifact_location,
                "view": experiment.tags.get("mlflow.sharedViewState.comparison"),
                "summaries": [
                    {
                        "id": run.info.run_id,
                        "experiment": run.info.experiment_id,
                        "name": run.info.run_name,
                        "params": run.data.params,
                        "tags": run.data.tags,
                        "metrics": run.data.metrics,
                        "curve": [(m[0], m[1]) for m in history(run, "validation_accuracy/mean")],
                    }
                    for run in summaries
                ],
                "runs": [
                    {
                        "id": run.info.run_id,
                        "name": run.info.run_name,
                        "status": run.info.status,
                        "start": run.info.start_time,
                        "end": run.info.end_time,
                        "params": run.data.params,
                        "tags": run.data.tags,
                        "metrics": run.data.metrics,
                        "steps": history(run, "step/loss"),
                        "epochs": history(run, "epoch/validation_loss"),
                        "files": files(run),
                        "inputs": [i.dataset.digest for i in run.inputs.dataset_inputs],
                        "models": [m.model_id for m in run.outputs.model_outputs] if run.outputs else [],
                    }
                    for run in runs
                ],
            }
        )
    )


if __name__ == "__main__":
    main()
