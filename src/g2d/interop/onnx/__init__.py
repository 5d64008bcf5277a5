"""ONNX: a generation out, checked by onnxruntime, and models of common operators in.

`export` writes; `reading` makes a torch module of a file's graph, `operators` knows what becomes of
each operator. Importing this file imports neither onnx nor onnxruntime.
"""

from __future__ import annotations

from g2d.interop.onnx.export import save
from g2d.interop.onnx.reading import model, task, weights

__all__ = ["model", "save", "task", "weights"]
