"""A search on the networks of one chain, under every clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from g2d.attacks import pgd, project
from g2d.redteam.context import AttackContext, Case, Network
from g2d.redteam.query_log import QueryLog, by_count
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.scoring import Rate, accuracy_rate, pooled, share
from g2d.redteam.threats.query.durability import ROTATIONS, durability
from g2d.redteam.threats.query.search import ATTACKS, curve_of, kind_of, label_of, launch
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split

_GENERATED = 10  # live generations that attackers meet; fresh draws follow when they are used up
_STARTS = 5  # attackers arrive at so many different times, so that no one network decides
_SHORT = 100  # under a clock this fast: fewer images and queries, as most time goes into its calls
_FEW = 40
_EXPOSED = 20  # generations before the live one that a stale start is crafted on
_STEPS = 20


class Attackers:
    """One attack on the networks of one chain, under every clock."""

    def __init__(self, case: Case, context: AttackContext) -> None:
        self.case, self.context = case, context
        self.at = case.number("at")
        self.periods = [int(period) for period in str(case.option("periods")).split()]
        self.fixed = context.chain(case.chain).fixed
        networks = self._networks()
        self.models: list[nn.Module] = context.models(networks)
        self.examples = context.examples(case.number("images"))
        starts = min(_STARTS, len(networks))
        if case.name != "hop-skip-jump":
            # At least 20 images a network: smaller batches cost more time an image.
            starts = max(1, min(starts, len(self.examples) // 20))
        start = torch.arange(len(self.examples)) % starts
        right = self._right(self.examples, start)
        self.split, self.start = self.examples.take(right), start[right]
        self.begin = self._stale() if case.name == "square-stale" else None

    def _networks(self) -> Sequence[Network]:
        """The networks that attackers meet, in their order."""
        chain = self.context.chain(self.case.chain)
        networks = own = chain.networks
        if chain.name == "generated":
            # The first may be the base, which nothing generated.
            networks = own = (networks[1:] or networks)[-_GENERATED:]
            if "draws" in self.context.spec.chains:
                networks += self.context.chain("draws").networks
        # Networks that were live, so exposed, when the first attacker comes.
        self.before = len(chain.networks) - len(own)
        longest = max(self._turns(every) for every in self.periods) + ROTATIONS
        return networks[: longest + _STARTS]

    def _turns(self, every: int) -> int:
        """Networks that one attacker meets at its largest budget."""
        budget = self.at if every <= _SHORT else self.case.number("budget")
        return -(-budget // every) if every else 1

    def _right(self, split: Split, start: Tensor) -> Tensor:
        """Images that the network which they meet first classifies correctly."""
        scores, _ = by_count(self.models, None, start)(
            split.x, torch.arange(len(split)), torch.ones_like(split.y)
        )
        return (scores.argmax(1) == split.y).nonzero()[:, 0]

    def _exposed(self, start: int) -> Sequence[Network]:
        """The last generations before the one that is live when an attacker comes."""
        return self.context.chain(self.case.chain).networks[: self.before + start][-_EXPOSED:]

    def _stale(self) -> Tensor | None:
        """Proposals of a joint attack on what was exposed when each attacker comes."""
        begin, context = self.split.x.clone(), self.context
        for start in self.start.unique().tolist():
            if not self._exposed(start):
                return None
            own = (self.start == start).nonzero()[:, 0]
            begin[own] = pgd(
                context.models(self._exposed(start)), self.split.x[own], self.split.y[own],
                eps=context.eps, steps=_STEPS, bounds=context.bounds,
                generator=context.source("query", "stale", start),
            )  # fmt: skip
        return begin

    def _why(self) -> str:
        """Why there is nothing to measure, or ""."""
        if not len(self.split):
            return "no image is classified correctly to begin with"
        if self.case.name == "square-stale" and self.begin is None:
            return "no generation is exposed yet; rotate first"
        return ""

    def rows(self) -> list[Row]:
        """A row for every clock."""
        why = self._why()
        if why:
            return [self._no_row(every, why) for every in self.periods]
        logs: dict[int, QueryLog] = {}
        rows = []
        for every in self.periods:
            if every and len(self.models) == 1 and not self.fixed:
                why = "one network cannot rotate; generate more"
                rows.append(self._no_row(every, why))
                continue
            logs[every] = self._attack(every)
            rows.append(self._row(every, logs[every], logs.get(0)))
        full = self.case.chain == "generated" and not self.context.spec.quick
        if full and self.begin is None and 0 in logs and len(self.models) > 1:
            rows.append(self._row(10_000, logs[0], logs[0]))
        return rows

    def _attack(self, every: int) -> QueryLog:
        short = 0 < every <= _SHORT
        few = min(_FEW, len(self.split)) if short else len(self.split)
        lanes = QueryLog(
            by_count(self.models, every or None, self.start),
            self.split.take(torch.arange(few)),
            eps=self.context.eps,
            budget=self.at if short else self.case.number("budget"),
            bounds=self.context.bounds,
            beyond=self.case.name == "square-margin",
        )
        begin = None if self.begin is None else self.begin[:few]
        launch(self.case, self.context, lanes, every or None, begin)
        return lanes

    def _target(self, every: int) -> str:
        clock = f"a rotation every {every:,} queries" if every else "no rotation"
        return f"{self.case.chain}, {clock}"

    def _no_row(self, every: int, why: str) -> Row:
        words = (ATTACKS[self.case.name][1], self._target(every), label_of(self.case), why)
        return not_measured(
            "query", kind_of(self.case), *words, chain=self.case.chain,
            seed=self.context.spec.seed, extra={"every": every or None},
        )  # fmt: skip

    def _row(self, every: int, lanes: QueryLog, never: QueryLog | None) -> Row:
        value = lanes.asr(self.at)
        met = self._met(every, lanes)
        outlived = durability(self.models, lanes, self.start, self.at, self.context, self.fixed)
        extra: dict[str, Any] = (
            self._durable(every, lanes)
            | outlived
            | {
                "curve": curve_of(lanes),
                "unattacked": asdict(self._unattacked(met)),
                "every": every or None,
                "spent": round(float(lanes.spent.double().mean()), 1),
            }
        )
        notes = ["budget and clock count the queries of one image"]
        steps = None
        if self.begin is not None:
            known = [len(self._exposed(start)) for start in self.start.unique().tolist()]
            steps = _STEPS * max(known)
            notes.append(f"begins at PGD-{_STEPS}, jointly on up to {max(known)} exposed networks")
        if bool(self.start.any()):
            notes.append(f"attackers begin at {int(self.start.max()) + 1} different networks")
        if never is not None and every:
            same = never.asr(self.at, len(lanes.split))
            extra["never"] = asdict(same)
            notes.append(_compared(value, same))
        notes += self._caveats(every)
        models = [self.models[place] for place in sorted(set(met.flatten().tolist()))]
        clean = pooled([accuracy_rate(model, self.examples) for model in models])
        return self.context.row(
            self.case, kind_of(self.case), ATTACKS[self.case.name][1], label_of(self.case), value,
            target=self._target(every), clean_accuracy=clean, scored=len(models),
            queries=self.at, gradient_steps=steps, note="; ".join(notes), extra=extra,
        )  # fmt: skip

    def _caveats(self, every: int) -> list[str]:
        deepest = ["goes on to its budget; its find is the deepest on the last network it fooled"]
        notes = deepest if self.case.name == "square-margin" else []
        if not every:
            return notes
        notes += [
            f"durable: share of {'' if notes else 'first '}finds that work again after the next "
            "rotation, as sent"
        ]
        if self.fixed:
            notes.append("the same function after every rotation")
        if every == 10_000:
            notes.append("the same run as without: the clock does not tick within the budget")
        if self._turns(every) > len(self.models):
            notes.append(f"only {len(self.models)} networks: an attacker meets some twice")
        return notes

    def _met(self, every: int, lanes: QueryLog) -> Tensor:
        """Places of the networks that each lane meets within `at` queries (n, turns)."""
        turns = -(-self.at // every) if every else 1
        start = self.start[: len(lanes.split)]
        return (start[:, None] + torch.arange(turns)) % len(self.models)

    def _durable(self, every: int, lanes: QueryLog) -> dict[str, Any]:
        """How many of the finds also fool the network after the next rotation, and of all lanes.

        Without a rotation every find goes on working; without a find there is no such share.
        """
        won = lanes.won(self.at)
        chosen = won.nonzero()[:, 0]
        kept = len(chosen)
        if every and kept:
            found = project(lanes.found, lanes.split.x, self.context.eps, self.context.bounds)
            following = by_count(self.models, None, lanes.network + 1)
            scores, _ = following(found[chosen], chosen, torch.ones_like(chosen))
            kept = int((scores.argmax(1) != lanes.split.y[chosen]).sum())
        return {
            "durable": asdict(share(kept, len(chosen))) if len(chosen) else None,
            "durable_of_all": asdict(share(kept, len(won))),
        }

    def _unattacked(self, met: Tensor) -> Rate:
        """Share of lanes whose clean image some network that they meet gets wrong by itself."""
        split = self.split.take(torch.arange(len(met)))
        wrong = torch.zeros(len(self.models), len(met), dtype=torch.bool)
        for place in met.unique().tolist():
            wrong[place] = predict(self.models[place], split.x).argmax(1) != split.y
        lost = wrong[met, torch.arange(len(met))[:, None]].any(1)
        return share(int(lost.sum()), len(met))


def _compared(value: Rate, never: Rate) -> str:
    """What rotation did to the ASR, plainly, whichever way it went."""
    without = f"{never.value:.0%} without rotation, on the same images"
    if value.value > never.value:
        return f"MORE than the {without}: every rotation gives this attacker another network to try"
    return f"{without}"
