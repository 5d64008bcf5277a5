"""Generations as versions of a registered model, in a folder: no server is needed."""

import os
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient


def main(vault: str = "demo/vault", store: str = "mlruns") -> None:
    export = [sys.executable, "-m", "g2d", "export", vault, "--to", f"mlflow:{store}"]
    subprocess.run([*export, "--name", "digits"], check=True)
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow wants that said of a folder
    where = Path(store).absolute().as_uri()
    for version in MlflowClient(where, where).search_model_versions("name = 'digits'"):
        print(f"version {version.version} is generation {version.tags['g2d.generation']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
