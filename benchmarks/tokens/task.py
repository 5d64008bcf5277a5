"""The spam filter as a task: a two-layer transformer over ids, two words that may be replaced.

g2d population runs/spam --task benchmarks.tokens.task:task
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.tokens.messages import LENGTH, PAD, SPECIAL, mailbox, vocabulary
from g2d import Task, split_dataset
from g2d.tasks.tokens import TokenBudget

WIDTH, HEADS = 32, 2
MESSAGES = 4000

SETTINGS = {
    "population": {
        "members": 8, "basins": 4, "base_steps": 200, "early_steps": 120, "fork_steps": 80,
        "batch": 64, "pool": 200, "rate": 4e-3, "fork_rate": 2e-3,
    },
    "autoencoder": {"steps": 200},
    "diffusion": {"steps": 1000},
    "guidance": {"pool": 200, "batch": 64, "memory": 8, "particles": 8, "polish_steps": 80},
    "gates": {"accuracy_drop": 0.02, "class_drop": 0.05, "stale_asr": 0.5, "pool": 100},
}  # fmt: skip


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm (Xiong et al. 2020, 2002.04745)."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        n, length, _ = h.shape
        heads = self.qkv(self.before(h)).view(n, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*heads, attn_mask=known[:, None, None])
        h = h + self.out(seen.transpose(1, 2).reshape(n, length, WIDTH))
        return h + self.narrow(F.gelu(self.wide(self.after(h))))


class SpamFilter(nn.Module):
    """Ids (n, LENGTH) to logits (n, 2); the mean over all tokens but padding is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(vocabulary()), WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor) -> Tensor:
        known = ids != PAD
        h = self.words(ids) + self.places
        for block in self.blocks:
            h = block(h, known)
        share = known[..., None] / known.sum(1).clamp_min(1)[:, None, None]
        return self.head((h * share).sum(1))


def task(seed: int = 0) -> Task:
    """The spam filter with its messages; `seed`: of the messages and of their split."""
    ids, labels = mailbox(MESSAGES, seed)
    special = tuple(range(len(SPECIAL)))
    return Task(
        f"spam-{seed}", SpamFilter, split_dataset(ids, labels, seed=seed), classes=2,
        tokens=TokenBudget(edits=2, special=special), settings=SETTINGS,
    )  # fmt: skip
