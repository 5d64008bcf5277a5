"""A watermark that proves whose weights these are: keys, their triggers, and what hits are worth.

A secret key decides on inputs that look like nothing (`triggers`) and on a label for each; networks
that were trained to answer so are the owner's, for nobody else's hit more than chance. How networks
learn the answers is in `training.recipes`, `generator.terms` and `defence.gates`. What is published
before is a `commitment`, what proves it afterwards a `claim`, and `verification` asks a suspect.
"""

from g2d.protect.watermark.chance import needed_hits, p_value
from g2d.protect.watermark.form import InputForm
from g2d.protect.watermark.key import WatermarkKey
from g2d.protect.watermark.triggers import make_labels, make_triggers, stretched, triggers_of

__all__ = [
    "InputForm",
    "WatermarkKey",
    "make_labels",
    "make_triggers",
    "needed_hits",
    "p_value",
    "stretched",
    "triggers_of",
]
