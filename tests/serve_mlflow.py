"""What `mlflow server` starts, too, once its command line is read, which takes as long again: the same application.

python serve_mlflow.py STORE ARTIFACTS PORT
"""

import os
import sys
from pathlib import Path


def main():
    Path("pid").write_text(str(os.getpid()))
    store, artifacts, port = sys.argv[1:]

    import uvicorn
    from mlflow.server import constants, handlers

    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = store
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
    os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = artifacts
    os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
    handlers.initialize_backend_stores(store, store, "mlflow-artifacts:/")
    uvicorn.run("mlflow.server.fastapi_app:app", port=int(port))
