"""Attacks: each proposes adversarial inputs and never scores itself (STYLE, rule 1)."""

from g2d.attacks.pgd import pgd, project

__all__ = ["pgd", "project"]
