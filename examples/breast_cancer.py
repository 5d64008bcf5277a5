"""Defend your own model: an MLP on scikit-learn's breast-cancer table. No images anywhere."""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from g2d import Defence, Rotor, Settings, Task, split_dataset


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 2))


def task() -> Task:
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)  # unbounded, standardised columns: eps is in standard deviations
    splits = split_dataset(torch.tensor(x).float(), torch.tensor(y))
    return Task("breast-cancer", mlp, splits, classes=2, bounds=None, eps=0.3)


def main(vault: str = "runs/breast-cancer") -> None:
    small = {"base_steps": 300, "early_steps": 60, "fork_steps": 120, "members": 8, "pool": 256}
    settings = Settings().override(
        **{f"population__{name}": value for name, value in small.items()},
        autoencoder__steps=300, diffusion__steps=800,  # plenty for a thousand parameters
        guidance__pool=100, gates__accuracy_drop=0.06, gates__class_drop=0.1, gates__pool=100,
    )  # fmt: skip
    with Defence.build(task(), vault, settings) as defence:
        rotor = Rotor(defence)  # a callable that serves the live generation
        for _ in range(3):
            print(f"generation {rotor.rotate()} is live: {rotor(defence.task.splits.test.x[:1])}")


if __name__ == "__main__":
    main()
