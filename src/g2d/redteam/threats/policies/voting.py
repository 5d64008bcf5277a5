"""A vote of several generations under every attack, beside one of them alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from g2d.attacks import pgd, project
from g2d.attacks.eot import eot_pgd
from g2d.attacks.query import clock_square
from g2d.core.types import Logits
from g2d.redteam.context import AttackContext, Case
from g2d.redteam.policies.ensemble import Vote
from g2d.redteam.policies.schemes import scheme_of, told_of
from g2d.redteam.query_log import QueryLog, by_count
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.scoring import Rate, accuracy_rate, difference, pooled, share
from g2d.redteam.threats.whitebox import strongest
from g2d.tasks.inference import predict

_EXPOSED = 20  # generations before those that vote, which the attacker has read
_DRAWS = 4  # networks that a step of EOT draws
ATTACKS = {
    "white-box": "reads all that vote",
    "joint": "holds exposed generations",
    "eot": "averages over what may be live: exposed generations, draws of his own",
    "query": "asks, scores",
    "union": "any of the four",
}


class Voting:
    """The newest generations as one target, and each of them as another."""

    def __init__(self, case: Case, context: AttackContext) -> None:
        self.case, self.context, self.scheme = case, context, scheme_of(case)
        networks = context.chain(case.chain).networks
        count = self.scheme.live
        self.enough = len(networks) > count
        members: list[nn.Module] = context.models(networks[-count:])
        self.exposed: list[nn.Module] = context.models(networks[:-count][-_EXPOSED:])
        self.vote = Vote(members)
        self.targets: list[Logits] = [self.vote, *members]
        self.split, self.steps = context.examples(case.number("images")), case.number("steps")
        self.lost: dict[str, list[Tensor]] = {}

    def rows(self) -> list[Row]:
        """A row for each attack on the vote, with what it does to one network; and their union."""
        if not self.enough:
            why = f"{self.scheme.live} vote and nothing was live before them; generate more"
            return [self._no_row(why)]
        right = torch.stack([
            predict(target, self.split.x).argmax(1) == self.split.y for target in self.targets
        ])  # fmt: skip
        made: Mapping[str, Callable[[int], Tensor]] = {
            "white-box": self._white_box, "joint": self._shared(self._joint()),
            "eot": self._shared(self._eot()), "query": self._query,
        }  # fmt: skip
        for name, of in made.items():
            self.lost[name] = [
                self._flipped(target, of(place)) & right[place]
                for place, target in enumerate(self.targets)
            ]
        self.lost["union"] = [
            torch.stack([self.lost[name][place] for name in made]).any(0)
            for place in range(len(self.targets))
        ]
        return [self._row(name, right) for name in ATTACKS]

    # --- attacks ---

    def _white_box(self, place: int) -> Tensor:
        """PGD and APGD on the very target; of an image what flips it."""
        target, x, y = self.targets[place], self.split.x, self.split.y
        eps, steps = self.context.eps, self.steps
        found = pgd(
            target, x, y, eps=eps, steps=steps, bounds=self.context.bounds,
            generator=self.context.source("policies", "vote"),
        )  # fmt: skip
        other = strongest(target, x, y, self.context, eps=eps, steps=steps, name="vote")
        kept = self._flipped(target, found)
        return torch.where(kept.view(-1, *[1] * (x.dim() - 1)), found, other)

    def _shared(self, proposed: Tensor) -> Callable[[int], Tensor]:
        return lambda place: proposed

    def _joint(self) -> Tensor:
        return pgd(
            self.exposed, self.split.x, self.split.y, eps=self.context.eps, steps=self.steps,
            generator=self.context.source("policies", "joint"), bounds=self.context.bounds,
        )  # fmt: skip

    def _eot(self) -> Tensor:
        """An attack on the mean of networks that are drawn anew at every step."""
        known, own = list(self.exposed), "attacker"
        if own in self.context.spec.chains:
            known += self.context.models(self.context.chain(own).networks)
        source, count = self.context.source("policies", "eot"), self.scheme.live

        def draw() -> Sequence[Logits]:
            sets = (torch.randperm(len(known), generator=source)[:count] for _ in range(_DRAWS))
            return [Vote([known[k] for k in chosen.tolist()]) for chosen in sets]

        return eot_pgd(
            draw, self.split.x, self.split.y, eps=self.context.eps, steps=self.steps,
            generator=source, bounds=self.context.bounds, loss="probability",
        )  # fmt: skip

    def _query(self, place: int) -> Tensor:
        """The Square that knows that nothing rotates; only images that are right at first."""
        budget = self.case.number("budget")
        log = QueryLog(
            by_count([self.targets[place]], None), self.split, eps=self.context.eps,
            budget=budget, bounds=self.context.bounds,
        )  # fmt: skip
        clock_square(
            log, self.split.x, self.split.y, eps=self.context.eps, budget=budget,
            generator=self.context.source("policies", "query"), bounds=self.context.bounds,
        )  # fmt: skip
        return log.found

    # --- judging ---

    def _flipped(self, target: Logits, proposed: Tensor) -> Tensor:
        """Which images a target misclassifies, proposals held to ball and range first (n,)."""
        sent = project(proposed, self.split.x, self.context.eps, self.context.bounds)
        return predict(target, sent).argmax(1) != self.split.y

    def _row(self, name: str, right: Tensor) -> Row:
        lost = self.lost[name]
        rates = [_rate(flips, fine) for flips, fine in zip(lost, right, strict=True)]
        both = right.all(0)
        alone = torch.stack(lost[1:]).double().mean(0)
        less = difference(lost[0][both], alone[both])
        clean = [accuracy_rate(target, self.split) for target in self.targets]
        extra: dict[str, Any] = dict(told_of(self.scheme)) | {
            "one_network": asdict(pooled(rates[1:])),
            "more_than_one_network": asdict(less),
            "one_network_clean": asdict(pooled(clean[1:])),
            "flips": lost[0].int().tolist(), "flips_alone": alone.tolist(),
        }  # fmt: skip
        note = (
            f"{self.scheme.live} forward passes for one answer; one network alone: the mean of the "
            f"{self.scheme.live}, each under the same attacks on the same images"
        )
        return self.context.row(
            self.case, f"policy-vote-{name}", f"{self._words()}: {ATTACKS[name]}",
            self._label(name), rates[0], target=self._words(), clean_accuracy=clean[0],
            queries=self.case.number("budget") if name in ("query", "union") else None,
            gradient_steps=self.steps if name != "query" else None, note=note, extra=extra,
        )  # fmt: skip

    def _words(self) -> str:
        return f"vote of {self.scheme.live} as they stand"

    def _label(self, name: str) -> str:
        steps, budget = self.steps, self.case.number("budget")
        return {
            "white-box": f"PGD and APGD-CE on the mean softmax, {steps} steps each",
            "joint": f"PGD {steps} steps, jointly on up to {_EXPOSED} exposed networks",
            "eot": f"MI-FGSM {steps} steps, {_DRAWS} sets of {self.scheme.live} a step",
            "query": f"Square (ours), {budget:,} queries",
            "union": "all of them",
        }[name]

    def _no_row(self, why: str) -> Row:
        return not_measured(
            "policies", "policy-vote-union", f"{self._words()}: {ATTACKS['union']}", self._words(),
            self._label("union"), why, chain=self.case.chain, seed=self.context.spec.seed,
            extra=dict(told_of(self.scheme)),
        )  # fmt: skip


def _rate(flips: Tensor, right: Tensor) -> Rate:
    return share(int(flips.sum()), int(right.sum()))
