"""Defend a Hugging Face classifier by adapters of its attention: here a small ViT, on digits."""

import sys

from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from g2d import Defence, Rotor, Task, split_dataset
from g2d.tasks.adapters import Adapted


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 32, "intermediate_size": 64, "image_size": 8, "patch_size": 2}
        counts = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_channels": 1}
        own = ViTConfig(**sizes, **counts, num_labels=10)
        self.model = ViTForImageClassification(own)  # yours: .from_pretrained("folder")

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits  # logits alone


def task() -> Task:
    factory = Adapted(Classifier, layers=["*.q_proj", "*.v_proj"], train=["*.classifier.*"])
    data = split_dataset(load_digits().images[:, None] / 16, load_digits().target)
    return Task("vit", factory, data, classes=10, eps=0.1)


def main(vault: str = "runs/vit", **how) -> None:
    with Defence.build("hugging_face:task", vault, **how) as defence:
        print(f"generation {Rotor(defence).rotate()} is live; {defence.generator.codec.size} move")


if __name__ == "__main__":
    main(*sys.argv[1:])
