"""A defence is renewed on new data: made in `work`, judged in `judging`, taken up in `taking_up`.

What the vault keeps of it, and how one goes back, is in `vault.sources`.
"""

from g2d.defence.refresh.taking_up import follow, take_up
from g2d.defence.refresh.work import Refresh, Told, refresh

__all__ = ["Refresh", "Told", "follow", "refresh", "take_up"]
