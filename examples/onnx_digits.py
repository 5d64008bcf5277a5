"""A generation as ONNX, run by onnxruntime; and an ONNX file as the model to defend."""

import sys

import onnxruntime

from g2d import Defence
from g2d.interop import onnx as worlds


def main(vault: str = "demo/vault", out: str = "digits.onnx") -> None:
    with Defence.open(vault, write=False) as defence:
        generation, splits = defence.generation(), defence.task.splits
        worlds.save(defence.task, generation.state, out)
    logits = onnxruntime.InferenceSession(out).run(None, {"x": splits.test.x.numpy()})[0]
    agree = (logits.argmax(1) == generation.model()(splits.test.x).argmax(1).numpy()).mean()
    print(f"generation {generation.number} is in {out}; onnxruntime agrees on {agree:.1%}")
    task = worlds.task(out, splits)  # any file of common operators; `Defence.create` takes it
    base = worlds.weights(task, out)  # its weights, for `Defence.adopt_base`
    print(f"read back: {task.classes} classes, {sum(t.numel() for t in base.values())} values")


if __name__ == "__main__":
    main(*sys.argv[1:])
