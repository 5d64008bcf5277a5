"""Attacks: each proposes adversarial inputs and never scores itself (STYLE, rule 1)."""

from g2d.attacks.pgd import fgsm, pgd, project

__all__ = ["fgsm", "pgd", "project"]
