"""What MLflow cannot do is one line."""

from __future__ import annotations

import pytest
from torch import nn

from g2d import Task
from g2d.errors import TaskError
from g2d.weights.checkpoints import pack
from keras_models import splits


@pytest.mark.parametrize(("where", "name"), [("taken", "good"), ("free", "bad/name:")])
def test_a_store_that_is_a_file_and_a_name_that_is_none_are_one_line(where, name, tmp_path):
    pytest.importorskip("mlflow", reason="g2d[mlflow] is not installed")
    from g2d.interop.mlflow import log

    task = Task("linear", lambda: nn.Linear(5, 3), splits((5,)), classes=3)
    (tmp_path / "taken").write_text("a file")
    about = {"vault": "v", "generation": 1, "manifest": {}}
    with pytest.raises(TaskError, match="MLflow") as told:
        log(task, pack(task.model(0).state_dict()), about, str(tmp_path / where), name)
    assert "\n" not in str(told.value)
