"""Clients of a service: one door, whichever way an input is asked about (docs/confidential.md).

>>> from g2d.service.client import connect
>>> with_keys = connect("http://localhost:8000", "encrypted", keys="my.keys")  # doctest: +SKIP
>>> answer = with_keys.infer(images)                                           # doctest: +SKIP
>>> answer.labels, answer.values, answer.number                                # doctest: +SKIP
"""

from __future__ import annotations

from g2d.protect.asking import Answer
from g2d.service.client.door import WAYS, Way, connect

__all__ = ["WAYS", "Answer", "Way", "connect"]
