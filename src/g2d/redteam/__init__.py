"""The red team: every threat of docs/threats.md, attacked by established code, judged by ours.

`attack` runs it row by row and goes on where it stopped. Attacks (`g2d.attacks`) propose; families
(`g2d.redteam.threats`) set them against targets and have the framework score them. How results are
told does not live here.
"""

from g2d.redteam.rows import Row, Status
from g2d.redteam.runner import ServiceAddress, attack
from g2d.report.results import results_path

__all__ = ["Row", "ServiceAddress", "Status", "attack", "results_path"]
