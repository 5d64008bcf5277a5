"""A generation as a version of a model that MLflow has registered, with its manifest.

In a folder (MLflow's file store), or wherever a tracking URI points that MLflow is set up for. The
version holds `weights.safetensors`, `manifest.json` and an `MLmodel` that says so; nothing is
pickled. Where `g2d[onnx]` is there, `model.onnx` lies beside them, and MLflow's own loader runs it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g2d.core.files import write_bytes
from g2d.core.imports import words
from g2d.errors import TaskError
from g2d.interop.onnx.export import save
from g2d.tasks.task import Task
from g2d.weights.checkpoints import digest, unpack

FOLDER = "mlruns"
_ALLOW = "MLFLOW_ALLOW_FILE_STORE"  # from 3.1x on MLflow asks whether a folder is meant


def log(
    task: Task, weights: bytes, about: Mapping[str, Any], where: str = "", name: str = ""
) -> str:
    """Register a generation's weights (safetensors) as the next version of a model.

    Args:
        about: "vault" (its id), "generation" (the number) and "manifest". where: a folder, or a
            tracking URI; "": `$MLFLOW_TRACKING_URI`, else `mlruns` here. name: of the model; "":
            the task's.

    Returns:
        The version, in words.

    Raises:
        TaskError: mlflow is not installed, or refuses.
    """
    client, errors = _client(where or os.environ.get("MLFLOW_TRACKING_URI", "") or FOLDER)
    name = name or task.name
    tags = {f"g2d.{key}": str(about[key]) for key in ("vault", "generation")}
    tags["g2d.sha256"] = digest(weights)
    try:
        with tempfile.TemporaryDirectory() as made:
            _fill(Path(made), task, weights, about["manifest"])
            run = client.create_run(_experiment(client), run_name=f"generation {tags_of(about)}")
            try:
                client.log_artifacts(run.info.run_id, made, "model")
                for key, value in tags.items():
                    client.set_tag(run.info.run_id, key, value)
                for gate in about["manifest"].get("gates", []):
                    if isinstance(gate, dict) and isinstance(gate.get("value"), int | float):
                        client.log_metric(run.info.run_id, f"gate {gate['name']}", gate["value"])
                _register(client, name, errors)
                version = client.create_model_version(
                    name, f"{run.info.artifact_uri}/model", run_id=run.info.run_id, tags=tags
                )
            except BaseException:
                client.set_terminated(run.info.run_id, "FAILED")
                raise
            client.set_terminated(run.info.run_id)
    except (errors, OSError) as error:  # OSError: a folder that cannot be written
        raise TaskError(f"MLflow refuses: {words(error)}") from error
    return f"version {version.version} of the registered model {name!r}"


def tags_of(about: Mapping[str, Any]) -> str:
    """The generation's number, as text."""
    return str(about["generation"])


def _client(where: str) -> tuple[Any, type[Exception]]:
    if "://" not in where:
        os.environ.setdefault(_ALLOW, "true")
        where = Path(where).absolute().as_uri()
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise TaskError(f"MLflow needs more ({error}): pip install 'g2d[mlflow]'") from error
    try:
        return MlflowClient(tracking_uri=where, registry_uri=where), MlflowException
    except (MlflowException, ImportError, OSError) as error:
        raise TaskError(f"MLflow cannot be used at {where}: {words(error)}") from error


def _experiment(client: Any) -> str:
    found = client.get_experiment_by_name("g2d")
    return str(found.experiment_id if found else client.create_experiment("g2d"))


def _register(client: Any, name: str, errors: type[Exception]) -> None:
    try:
        client.get_registered_model(name)
    except errors:
        client.create_registered_model(name, description="Generations of a G2D vault")


def _fill(folder: Path, task: Task, weights: bytes, manifest: Mapping[str, Any]) -> None:
    """Write what a version holds."""
    write_bytes(folder / "weights.safetensors", weights)
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    write_bytes(folder / "manifest.json", text.encode())
    flavors: dict[str, Any] = {
        "g2d": {"weights": "weights.safetensors", "manifest": "manifest.json", "task": task.name}
    }
    try:
        save(task, unpack(weights), folder / "model.onnx")
        flavors["onnx"] = {"data": "model.onnx", "providers": ["CPUExecutionProvider"]}
        flavors["python_function"] = {"loader_module": "mlflow.onnx", "data": "model.onnx"}
    except TaskError as error:
        flavors["g2d"]["onnx"] = f"none: {error}"
    # JSON is YAML.
    write_bytes(folder / "MLmodel", (json.dumps({"flavors": flavors}, indent=1) + "\n").encode())
