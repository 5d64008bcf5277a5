"""Run by another Python, whose Keras has another backend: what do saved models answer?

    python keras_elsewhere.py FOLDER    # inputs.npy and *.keras there; writes NAME.npy for each

It imports nothing of this project.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    inputs = np.load(folder / "inputs.npy")
    print(keras.backend.backend(), keras.__version__)
    for file in sorted(folder.glob("*.keras")):
        model = keras.saving.load_model(file)
        answers = keras.ops.convert_to_numpy(model(inputs, training=False))
        np.save(file.with_suffix(".npy"), answers)
