"""One more basin in a vault: planned in `plan`, grown in `work`, taken up in `taking_up`.

What basins a vault has, and which of them nobody has seen, is in `vault.basins`.
"""

from g2d.defence.growing.plan import Grow
from g2d.defence.growing.taking_up import TakenBasin, take_up_basin
from g2d.defence.growing.work import Grown, grow

__all__ = ["Grow", "Grown", "TakenBasin", "grow", "take_up_basin"]
