"""A small task over token ids, by names that processes can import, and an attack of one's own."""

import torch
from torch import nn

import g2d
from g2d.tasks.tokens import TokenBudget

SIZE, LENGTH = 20, 6
SETTINGS = {
    "population": {
        "members": 2, "basins": 2, "base_steps": 60, "early_steps": 20, "fork_steps": 20,
        "batch": 32, "pool": 32, "rate": 2e-2, "fork_rate": 1e-2,
    },
    "autoencoder": {"steps": 10, "width": 16},
    "diffusion": {"steps": 30, "width": 16, "depth": 1, "sampler_steps": 5},
    "guidance": {
        "pool": 32, "batch": 32, "particles": 2, "reverse_steps": 1, "latent_steps": 1,
        "polish_steps": 5,
    },
    "gates": {"accuracy_drop": 1.0, "class_drop": 1.0, "stale_asr": 1.0, "pool": 32,
              "distance": 0.0},
}  # fmt: skip


class Bag(nn.Module):
    """Ids (n, 6) to two logits; places are embedded beside the words."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(SIZE, 4), nn.Embedding(LENGTH, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, ids):
        places = self.places(torch.arange(LENGTH, device=self.places.weight.device))
        return self.head((self.words(ids) + places).tanh().mean(1))


class Counts(nn.Module):
    """Reads ids without an embedding: no gradient leads to them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(LENGTH, 2)

    def forward(self, ids):
        return self.head(ids.float())


def messages(n=120):
    """Ids 2 to 19; those with two or more below 7 are of class 1."""
    ids = torch.randint(2, SIZE, (n, LENGTH), generator=torch.Generator().manual_seed(0))
    return ids, ((ids < 7).sum(1) > 1).long()


def flip_first(models, x, y, generator):
    """An attack of one's own: the first word becomes 19, or for class 0 a 2."""
    proposed = x.clone()
    proposed[:, 0] = torch.where(y == 1, 19, 2)
    return proposed


BUDGET = TokenBudget(edits=2, special=(0, 1))


def make(factory=Bag, x=None, **changes):
    ids, labels = messages()
    ids = ids if x is None else x
    return g2d.Task(
        "words", factory, g2d.split_dataset(ids, labels), classes=2, settings=SETTINGS, **changes
    )


def by_tokens():
    return make(tokens=BUDGET)


def unattacked():
    return make(attack="none")


def by_itself():
    return make(attack=flip_first)
