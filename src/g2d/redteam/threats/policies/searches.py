"""A search on a service with a policy: what it wins, and what its finds are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from g2d.redteam.context import AttackContext, Case, Network
from g2d.redteam.policies.attackers import ATTACKERS, search
from g2d.redteam.policies.guarding import Guard
from g2d.redteam.policies.guarding import told_of as told_of_guards
from g2d.redteam.policies.schemes import scheme_of, told_of, words_of
from g2d.redteam.policies.service import Service
from g2d.redteam.policies.worth import AGAIN, CLIENTS, Finds
from g2d.redteam.query_log import QueryLog
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.scoring import Rate, accuracy_rate, pooled
from g2d.redteam.threats.query.search import curve_of
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split

_STARTS = 5  # attackers arrive at so many different times, so that no one network decides
_AGAIN, _OTHERS = "finds that win again", "others' answers that a find flips"


def kind_of(case: Case) -> str:
    """The kind of a case's first row."""
    return f"policy-{case.name}"


class Searches:
    """One attacker against one scheme, on the networks of one chain.

    Args:
        guards: makes what watches so many lanes, one guard each; None: nobody watches.
    """

    def __init__(
        self, case: Case, context: AttackContext,
        guards: Callable[[int], Sequence[Guard]] | None = None,
    ) -> None:  # fmt: skip
        self.case, self.context, self._guards = case, context, guards
        self.attacker, self.scheme = ATTACKERS[case.name], scheme_of(case)
        self.at, self.width = case.number("budget"), case.number("width")
        self.models: list[nn.Module] = context.models(self._networks())
        self.clean = pooled([accuracy_rate(m, context.examples(case.number("images")))
                             for m in self.models[: self.width]])  # fmt: skip
        examples = context.examples(case.number("images"))
        # Not by the number of images: fewer of them are the first of more, at the same places.
        start = torch.arange(len(examples)) % min(_STARTS, len(self.models))
        right = self._right(examples, start)
        self.split, self.start = examples.take(right), start[right]

    @property
    def turns(self) -> int:
        """Rotations within the budget."""
        return (self.at - 1) // self.scheme.every if self.scheme.every else 0

    def _networks(self) -> Sequence[Network]:
        """The networks that become live, in their order; fresh draws follow the generations."""
        chain = self.context.chain(self.case.chain)
        networks = chain.networks
        if chain.name == "generated":
            networks = networks[1:] or networks  # the first may be the base
            if "draws" in self.context.spec.chains:
                networks += self.context.chain("draws").networks
        return networks[: self._most]

    @property
    def _most(self) -> int:
        """So many networks are met at most: one more for each account where alarms rotate."""
        more = self.attacker.accounts if self.scheme.pin or self._guards else 0
        return self.width + self.turns + AGAIN + _STARTS + more

    def _right(self, split: Split, start: Tensor) -> Tensor:
        """Images that every network of the window classifies correctly when the attacker comes.

        The same window under every scheme: all are attacked on the same images.
        """
        labels = torch.stack([predict(model, split.x).argmax(1) for model in self.models])
        place = (start[:, None] + torch.arange(self.width)) % len(self.models)
        met = labels[place, torch.arange(len(split))[:, None]]
        return (met == split.y[:, None]).all(1).nonzero()[:, 0]

    def _why(self) -> str:
        """Why there is nothing to measure, or ""."""
        need = max(self.width, self.scheme.live) + (1 if self.scheme.every else 0)
        if len(self.models) < need:
            return f"it needs {need} networks and there are {len(self.models)}: generate more"
        return "" if len(self.split) else "no image is classified correctly by all that is live"

    def rows(self) -> list[Row]:
        """What was won, what finds are worth sent again, and on other clients."""
        if why := self._why():
            return [self._no_row(kind_of(self.case), why)]
        service = Service(
            self.models, self.scheme, self.start, self.width,
            self.context.seed("policies", "secrets"),
            self._guards(len(self.split)) if self._guards else (),
        )  # fmt: skip
        log = QueryLog(
            service.answer, self.split, eps=self.context.eps, budget=self.at,
            bounds=self.context.bounds, beyond=self.attacker.beyond,
        )  # fmt: skip
        said: dict[str, Any] = search(
            self.attacker, service, log, eps=self.context.eps, bounds=self.context.bounds,
            classes=self.context.task.classes, seed=self.context.seed("policies", self.case.name),
        )  # fmt: skip
        if self._guards:
            said |= told_of_guards(service.seen, log.first)
        passes = service.passes
        finds = Finds(service, log, self.at, eps=self.context.eps, bounds=self.context.bounds)
        worth = finds.told()
        return [
            self._won(log, said, passes),
            self._worth("again", _AGAIN, worth, "later", ("later_any", "again", "again_any")),
            self._worth("replayed", _OTHERS, worth, "replayed", ("replayed_next", "replayed_gone")),
        ]

    def _won(self, log: QueryLog, said: dict[str, Any], passes: int) -> Row:
        extra = {
            "curve": curve_of(log),
            # Of every image the number of the first query that was answered wrongly, 0: none.
            "first": log.first.tolist(),
            "spent": round(float(log.spent.double().mean()), 1),
            "passes_for_one_image": round(passes / len(log.split), 1),
        }
        return self._row(kind_of(self.case), log.asr(self.at), extra | said, clean=self.clean)

    def _worth(
        self, name: str, metric: str, worth: dict[str, Any], value: str, more: Sequence[str]
    ) -> Row:
        kind = f"{kind_of(self.case)}-{name}"
        if value not in worth:
            return self._no_row(kind, "nothing was found that could be sent again", metric=metric)
        rate = Rate(**worth[value])
        return self._row(
            kind, rate, {key: worth[key] for key in more if key in worth}, metric=metric
        )

    def _row(
        self, kind: str, value: Rate, extra: dict[str, Any], clean: Rate | None = None,
        metric: str = "ASR",
    ) -> Row:  # fmt: skip
        return self.context.row(
            self.case, kind, self._threat(), self._label(), value,
            target=words_of(self.scheme), clean_accuracy=clean, metric=metric,
            scored=min(len(self.models), self.width + self.turns), queries=self.at,
            note="; ".join(self._notes(metric)), extra=extra | dict(told_of(self.scheme)),
        )  # fmt: skip

    def _no_row(self, kind: str, why: str, metric: str = "ASR") -> Row:
        return not_measured(
            "policies", kind, self._threat(), words_of(self.scheme), self._label(), why,
            chain=self.case.chain, seed=self.context.spec.seed, metric=metric,
            extra=dict(told_of(self.scheme)),
        )  # fmt: skip

    def _threat(self) -> str:
        return f"{words_of(self.scheme)}: {self.attacker.knows}"

    def _label(self) -> str:
        accounts = f", {self.attacker.accounts} accounts" if self.attacker.accounts > 1 else ""
        return f"{self.attacker.attack}{accounts}, {self.at:,} queries"

    def _notes(self, metric: str) -> list[str]:
        if metric == _AGAIN:
            return [f"once in each of the next {AGAIN} periods by the same account; any of them: "
                    "later any; at once: again, and any of ten: again any"]  # fmt: skip
        if metric == _OTHERS:
            return [f"{CLIENTS} other clients at the moment of the find; replayed next: after the "
                    "next rotation; gone: when all that was live has gone"]  # fmt: skip
        notes = [
            f"{self.scheme.live} live at once; budget and clock count the queries of one image"
        ]
        if self.scheme.pin:
            notes.append(
                f"taken as given: after {self.scheme.pin} queries an alarm pins an account and "
                "rotates, once an hour at most"
            )
        if self._guards:
            notes.append("an alarm of the monitor of queries pins an account and rotates, "
                         "once an hour at most")  # fmt: skip
        if self.scheme.pin and not self.scheme.apart:
            notes.append("others stay on a suspect's generation until it retires: `g2d serve` has "
                         "them leave it at the next rotation")  # fmt: skip
        if self.scheme.every and len(self.models) < self._most:
            notes.append(f"only {len(self.models)} networks: some may be met twice")
        return notes
