"""The control that costs one training: the base again, with FGSM at half of eps."""

import torch

from g2d.attacks import pgd
from g2d.redteam.controls import hardened
from g2d.tasks.inference import load_model, predict
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import unpack


def test_it_is_the_bases_training_made_harder_to_fool(tiny_vault, tiny_settings, digits):
    source = ("digits", "", 0, 0.0)
    made, again = (hardened(source, tiny_settings) for _ in range(2))
    with Vault.open(tiny_vault) as vault:
        base = unpack(vault.read(vault.entry("base")))
    assert made.keys() == base.keys()
    assert all(torch.equal(made[name], again[name]) for name in made)
    split, found = digits.splits.test, []
    for state in (base, made):
        model = load_model(digits, state)
        draws = torch.Generator().manual_seed(0)
        attacked = pgd(model, split.x, split.y, eps=digits.eps / 2, steps=7, generator=draws,
                       bounds=digits.bounds)  # fmt: skip
        found.append([float((predict(model, x).argmax(1) == split.y).double().mean())
                      for x in (split.x, attacked)])  # fmt: skip
    (clean, robust), (own_clean, own_robust) = found
    assert own_robust > robust + 0.05
    assert own_clean > clean - 0.1
