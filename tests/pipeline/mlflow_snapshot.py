"""What MLflow's bare client sees in the repository that is the working directory, as JSON.

python mlflow_snapshot.py [FOLDER]

With a folder, it fetches the weights of all runs into it, and names the champion's run and version.
"""

import json
import logging
import sys

import mlflow


def main():
    logging.disable(logging.WARNING)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("optlab")
    runs = client.search_runs([experiment.experiment_id])
    apart = client.get_experiment_by_name("optlab.summary")
    summaries = client.search_runs([apart.experiment_id]) if apart else []

    champion = None
    if sys.argv[1:]:
        for run in runs:
            client.download_artifacts(run.info.run_id, "weights", sys.argv[1])
        version = client.get_model_version_by_alias("optlab-cifar10", "champion")
        champion = [version.run_id, version.version]

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
                "champion": champion,
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
