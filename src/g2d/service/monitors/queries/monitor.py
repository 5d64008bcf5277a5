"""The monitor of queries: who searches for adversarial inputs, and who copies the model.

Not from how alike a client's queries are does it conclude anything: retries, bursts, augmentations
and cameras are, too. Near-duplicates are what is *looked at*; what raises an alarm is that they
differ as others' do not (`marks`), or that their answers go downhill, or stay at a boundary
(`trails`), by tests whose errors are bounded (`evidence`).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from g2d.core.types import Array
from g2d.service.monitors.builtin import BuiltIn, Watched
from g2d.service.monitors.queries.copying import TESTED, Copiers
from g2d.service.monitors.queries.evidence import (
    ENOUGH,
    NOTHING,
    Account,
    Accounts,
    Purse,
    worth,
)
from g2d.service.monitors.queries.fingerprints import Fingerprints, Prints
from g2d.service.monitors.queries.marks import EACH, MARKS, Marks
from g2d.service.monitors.queries.trails import LAST, MOVES, Margins, Step, Trail
from g2d.service.monitors.queries.windows import Everybody, Window, scratch

FIRST = 64
"""Different inputs whose values say what the scale is; they wait until then, and are judged."""

_NONE = np.zeros(0, np.uint8)
_ACCOUNTS, _SHARED, _CLIENTS = 65_536, 8192, 8
# What each test may err, as shares of [monitors] query_alarms.
_SHARES = {
    "descent": 3 / 8, "together": 1 / 4, "boundary": 1 / 8, "copying": 1 / 8, "marks": 1 / 8
}  # fmt: skip
_AT_FIRST = 0.01  # alarms that marks may raise before any input has paid: a search may come first


class _Request(NamedTuple):
    inputs: Array
    logits: Array
    client: str
    epoch: int


class _Answer(NamedTuple):
    """One input's fingerprints and answer."""

    prints: Prints
    place: int
    logits: Array
    margin: float
    client: str
    epoch: int


class Queries(BuiltIn):
    """Watches for query attacks, of one client or of several together, and for extraction.

    Alarms: `query_attack`, which rotates, and `extraction`, which does not: what has been copied is
    not taken back. Both name the client. Memory is bounded (`docs/monitoring.md`), and lost at a
    restart; identical inputs are never counted, however often they come.

    Args:
        salt: 32 secret bytes; None: the system's.
    """

    name: ClassVar[str] = "queries"

    def __init__(self, watched: Watched, salt: bytes | None = None) -> None:
        super().__init__(watched)
        self._salt = os.urandom(32) if salt is None else salt
        self._chance = np.random.default_rng(list(self._salt))
        self._exempt = frozenset(watched.settings.query_exempt)
        self._prints: Fingerprints | None = None
        self._waiting: list[_Request] = []
        self._met_first: set[int] = set()
        self._windows: OrderedDict[str, Window] = OrderedDict()
        self._met = scratch()
        self._everybody, self._shared = Everybody(), OrderedDict[int, Trail]()
        self._accounts = Accounts(_ACCOUNTS, watched.now)
        rate = watched.settings.query_alarms
        self._purses = {
            rule: Purse(share * rate, _AT_FIRST if rule == "marks" else 0.0)
            for rule, share in _SHARES.items()
        }
        self._margins, self._copiers = Margins(), Copiers()
        self._marks: Marks | None = None
        self._epoch = self._numbers = 0
        self._counts = dict.fromkeys(
            ("judged", "repeated", "near", "near_others", "not_judged", "exempt"), 0
        )
        self._alarms = dict.fromkeys((*_SHARES, "budget"), 0)

    def observe(self, inputs: Array, logits: Array, client: str) -> None:
        """Judge one request's inputs, in their order."""
        if client in self._exempt or self.watched.model.classes < 2:
            self._counts["exempt"] += len(inputs)
            return
        finite = np.isfinite(logits).all(1)
        if inputs.dtype.kind == "f":
            finite &= np.isfinite(inputs.reshape(len(inputs), -1)).all(1)
        if not finite.all():
            self._counts["not_judged"] += int((~finite).sum())
            inputs, logits = inputs[finite], logits[finite]
        if not len(inputs):
            return
        if self._prints is not None:
            self._judge(_Request(inputs, logits, client, self._epoch), self._prints)
            return
        # A probe that asks the same for ever says nothing of the scale.
        fresh = [n for n, one in enumerate(inputs) if self._is_first(one)]
        self._counts["repeated"] += len(inputs) - len(fresh)
        if not fresh:
            return
        request = _Request(inputs[fresh], logits[fresh], client, self._epoch)
        self._waiting.append(request)
        if sum(len(one.inputs) for one in self._waiting) >= FIRST:
            first = np.concatenate([one.inputs for one in self._waiting])[: 4 * FIRST]
            near = self.watched.settings.query_near
            self._prints = Fingerprints(self.watched.model, first, near, self._salt)
            exact = self._prints(first[:FIRST]).exact
            if exact.shape[1] and np.ptp(exact) > 0:
                self._marks = Marks(self.watched.settings.query_clients, exact, self._chance)
            waiting, self._waiting = self._waiting, []
            self._met_first.clear()
            for one in waiting:
                self._judge(one, self._prints)

    def _is_first(self, one: Array) -> bool:
        before, seen = len(self._met_first), hash(one.tobytes())
        self._met_first.add(seen)
        return len(self._met_first) > before

    def swapped(self, number: int) -> None:
        """Margins of another network do not compare with those before; evidence stays."""
        self._epoch += 1
        self._margins.restart()

    def status(self) -> Mapping[str, Any]:
        """Return what was judged, and what was not."""
        prints, usual = self._prints, self._marks.usual if self._marks else None
        return {
            **self._counts,
            **{f"alarms_{rule}": count for rule, count in self._alarms.items()},
            "waiting": sum(len(one.inputs) for one in list(self._waiting)),
            "windows": len(self._windows),
            "accounts": len(self._accounts),
            "evidence_floor": self._accounts.floor,
            "alarms_in_hand": self._purses["descent"].held,
            "near_tolerance": prints.near if prints else 0.0,
            "share_of_windows_hashed": prints.sampled if prints else 0.0,
            "variants_known": usual.seen if usual else 0,
            "variants_marked": usual.marked if usual else 0,
            "copying_tests": self._copiers.tests,
            "copying_tests_failed": self._copiers.failed,
        }

    def _judge(self, request: _Request, by: Fingerprints) -> None:
        prints = by(request.inputs)
        logits = request.logits.astype(np.float64)
        margins = Margins.of(logits)
        for purse in self._purses.values():
            purse.earn(len(logits))
        window = self._window(request.client)
        for i, margin in enumerate(margins.tolist()):
            self._counts["judged"] += 1
            answer = _Answer(prints, i, logits[i], margin, request.client, request.epoch)
            again = self._everybody.same(prints.digests[i])
            met = window.find(prints, i, by)
            if met.same:
                self._counts["repeated"] += 1
                continue
            near = met.trail is not None
            other = met.trail is not None and met.trail.leaps(met.reach)
            trail = self._own(answer, None if other else met.trail)
            self._marked(answer, trail, near)
            window.add(prints, i, trail)
            if not again:
                self._together(answer, known=near)
            # Variants that anybody may send are no sign that inputs are made from each other.
            if not 0 < trail.variants <= self.watched.settings.query_variants:
                self._copying(answer)

    def _window(self, client: str) -> Window:
        window = self._windows.get(client)
        if window is None:
            if len(self._windows) >= self.watched.settings.query_clients:
                name, lost = self._windows.popitem(last=False)
                if lost.evidence:
                    account = self._accounts.of(name)
                    account.evidence = max(account.evidence, lost.evidence, key=worth)
            window = self._windows[client] = Window(self.watched.settings.query_window, self._met)
        self._windows.move_to_end(client)
        return window

    def _trail(self, answer: _Answer, head: Array) -> Trail:
        self._numbers += 1
        return Trail(self._numbers, answer.logits, self.watched.settings.query_variants, head)

    def _even(self) -> float:
        return 1.0 - float(self._chance.random())

    def _own(self, answer: _Answer, trail: Trail | None) -> Trail:
        """Take an answer into the trail of its client, if it has one; judge that."""
        if trail is None:
            self._margins.usual(answer.margin)
            return self._trail(answer, answer.prints.values[answer.place])
        account = self._accounts.of(answer.client)
        self._counts["near"] += 1
        self._budget(answer.client, account)
        step = self._step(trail, answer, answer.prints.values[answer.place])
        if step.descent:
            # What an evicted window had, or others whose accounts are forgotten, is not lost.
            trail.descent.evidence = max(trail.descent.evidence, account.evidence, key=worth)
            account.evidence = NOTHING
            if trail.descent.add(step.descent, self._purses["descent"], wait=not trail.fallen):
                self._tell("descent", trail, [answer.client], trail.descent.staked)
        if step.drift and not trail.drifted:
            trail.drifted = trail.drift.add(step.drift, self._purses["boundary"], MOVES)
        if self._boundary(trail, account):
            self._tell("boundary", trail, [answer.client], trail.drift.staked)
        return trail

    def _marked(self, answer: _Answer, trail: Trail, near: bool) -> None:
        """Judge the marks that an input carries, if it is near an earlier one."""
        if self._marks is None:
            return
        label, value = int(answer.logits.argmax()), answer.prints.exact[answer.place]
        marked = self._marks.add(answer.client, value, label, near)
        if marked is None:
            return
        account = self._accounts.of(answer.client)
        test = account.marks
        if marked.oldest is not None and account.usual < EACH:
            account.usual += 1
            self._marks.usual.add(marked.oldest)
        if test.weigh(marked.factors, self._purses["marks"]):
            mark = MARKS[marked.strongest]
            self._marks.blame(answer.client)
            self._tell("marks", trail, [answer.client], test.staked, mark=mark)

    @staticmethod
    def _boundary(trail: Trail, account: Account) -> bool:
        """Whether a client asks about a boundary and moves along it, or goes on to another one."""
        account.series += trail.variants == LAST
        if not trail.at_boundary:
            return False
        if not trail.counted:
            trail.counted, account.boundaries = True, account.boundaries + 1
        if not trail.drifted and not (
            account.boundaries > 1 and 2 * account.boundaries >= account.series
        ):
            return False
        trail.forget_boundary()
        account.boundaries = account.series = 0
        return True

    def _step(self, trail: Trail, answer: _Answer, values: Array) -> Step:
        low = self._margins.low(answer.margin)
        return trail.add(answer.logits, values, low, self._even(), answer.epoch)

    def _together(self, answer: _Answer, known: bool) -> None:
        """Take an answer into the trail that several clients share, and judge that.

        Args:
            known: it is near another one of its client, and was judged with that.
        """
        hashes, kept = answer.prints.hashes[answer.place], int(answer.prints.kept[answer.place])
        if not kept:
            self._counts["not_judged"] += 1  # blank: by its hashes; its values are looked at
            return
        trail = self._shared.get(self._everybody.find(hashes, kept))
        if trail is None:
            trail = self._trail(answer, _NONE)
            if len(self._shared) >= _SHARED:
                self._shared.popitem(last=False)
            self._shared[trail.number] = trail
        elif self._shared_step(trail, answer, known):
            clients = sorted({answer.client, *trail.clients})
            rule = "together" if len(clients) > 1 else "descent"
            self._tell(rule, trail, clients, trail.descent.staked)
        self._shared.move_to_end(trail.number)
        if answer.client not in trail.clients and len(trail.clients) < _CLIENTS:
            trail.clients += (answer.client,)
        self._everybody.add(hashes, trail.number)

    def _shared_step(self, trail: Trail, answer: _Answer, known: bool) -> bool:
        """Take in an answer of a trail of everybody's; whether its clients go downhill."""
        step = self._step(trail, answer, _NONE)
        alone = trail.clients == (answer.client,)
        if alone and known:
            return False
        # Else others, or much else, have driven its own one out: it would be judged nowhere.
        self._counts["near_others"] += not alone
        return step.descent is not None and trail.descent.add(
            step.descent, self._purses["together"], wait=not trail.fallen
        )

    def _tell(self, rule: str, trail: Trail, clients: list[str], chance: float,
              **more: str) -> None:  # fmt: skip
        """Raise an alarm about each client; all ask for one rotation.

        Not the first alone: that may be held back for its cool-down, and he would see to it.
        """
        self._alarms[rule] += 1
        text = {
            "descent": "variants of one input are answered less surely one after the other, as in a"
            " search for an adversarial input",
            "together": "variants of one input, from several clients, are answered less surely one"
            " after the other, as in a search for an adversarial input",
            "boundary": "variants of one input are answered at a decision boundary again and again,"
            " and move along it or on to another one",
            "marks": "variants of one input differ as in a search, and not as others' variants do",
        }[rule]
        facts: dict[str, float | str] = {
            "rule": rule, "variants": trail.variants, "flips": trail.flips,
            "chance": float(f"{chance:.1e}"), "clients": len(clients), **more,
        }  # fmt: skip
        level: Any = "critical" if trail.flips and rule != "boundary" else "warning"
        for client in clients:
            self.watched.alarm("query_attack", text, level=level, client=client, evidence=facts)

    def _budget(self, client: str, account: Account) -> None:
        budget = self.watched.settings.query_budget
        before, account.near = account.near, account.near + 1
        if budget and before <= budget < account.near:
            self._alarms["budget"] += 1
            self.watched.alarm(
                "query_attack", f"more than {budget} near-duplicates came within the hour", False,
                level="notice", client=client,
                evidence={"rule": "budget", "near_duplicates": round(account.near)},
            )  # fmt: skip

    def _copying(self, answer: _Answer) -> None:
        values = answer.prints.values[answer.place]
        if not len(values):  # tokens: no distance
            return
        tested = self._copiers.add(answer.client, values, int(answer.logits.argmax()))
        if tested is None:
            return
        one, factor = tested
        if factor == 1.0:  # other clients' tests fail as often, or there are too few of them
            return
        account, purse = self._accounts.of(answer.client), self._purses["copying"]
        stake = purse.next(TESTED) if account.copying else purse.first()
        account.copying = (account.copying + stake) * factor
        if account.copying < ENOUGH:
            return
        self._alarms["copying"] += 1
        self.watched.alarm(
            "extraction", "the distances between a client's inputs are not those of other clients'"
            " inputs, as where inputs are made from each other to copy the model", False,
            client=answer.client,
            evidence={
                "rule": "copying", "inputs": one.asked, "tests": one.tests, "failed": one.failed,
                "classes": len(one.met) / self.watched.model.classes,
            },
        )  # fmt: skip
        account.copying = 0.0
