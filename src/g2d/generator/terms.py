"""The terms of the guidance objective, and the one list of them; how they are descended is not.

    objective(v) = CE(clean data) + mu * CE(stale attacks) + robust * CE(PGD on v itself) + ...

A term is a function of the candidate v and of one batch of the guide split (of the train split,
where members' own attacks are asked for). The batch is the clean one that all terms share, or one
that the term asks for: all run in one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from g2d.attacks.crafting import Functional, craft, craft_drawn
from g2d.attacks.eot import Tricks, dirichlet, eot_pgd
from g2d.core.imports import import_callables
from g2d.core.types import Logits
from g2d.errors import SettingsError
from g2d.generator.exposure import Exposure
from g2d.protect.watermark.mark import Mark
from g2d.settings import GuidanceSettings
from g2d.tasks.attack import BALL, NONE
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.recipes.step import divergence, mix
from g2d.weights.codec import Codec


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs x (n, ...), labels y (n,), and the candidate's logits (n, classes) on them.

    `logits` are empty until the forward pass. `of` (n,) is the place, among the exposures in
    memory, of the one that each attack was crafted on.
    """

    x: Tensor
    y: Tensor
    of: Tensor | None = None
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def on(self, device: str) -> Batch:
        """The batch with inputs and labels on a device; itself where they are there."""
        x, y = self.x.to(device), self.y.to(device)
        return self if x is self.x and y is self.y else replace(self, x=x, y=y)


@dataclass(frozen=True, eq=False)
class TermContext:
    """What terms are made from: `exposures` are those in memory, `generator` draws for them.

    Attributes:
        bank: attacks that the generator keeps of its population, if it does. mates: places, among
            the exposures, of those that share the candidate's basin; known once it is drawn.
        mark: the watermark's triggers, if there are any. base: maps inputs to the base's logits.
    """

    task: Task
    codec: Codec
    exposures: Sequence[Exposure]
    settings: GuidanceSettings
    generator: torch.Generator
    model: nn.Module
    bank: Split | None = None
    mates: Sequence[int] = ()
    mark: Mark | None = None
    base: Logits | None = None

    def logits(self, v: Tensor, x: Tensor) -> Tensor:
        """Logits (n, classes) of the candidate v (P,) on x (n, ...), differentiable by both."""
        return functional_call(self.model, self.codec.tensors(v), (x,))


class Term(Protocol):
    """One summand of the objective; inherit from it for what most terms leave as it is."""

    weight: float
    """What it is multiplied by; at 0 it is left out."""
    adaptive: bool = False
    """Whether its inputs are crafted on the candidate: too dear for comparing many particles."""

    def inputs(self, v: Tensor, clean: Batch) -> Batch:
        """The batch that the term wants logits of: the clean one, or one of its own."""
        return clean

    def __call__(self, v: Tensor, batch: Batch) -> Tensor:
        """The term at v (P,), a differentiable scalar; `batch` is what `inputs` gave, with logits.

        A term of v alone need not look at the batch.
        """
        ...

    def observe(self, batch: Batch) -> None:
        """Learn from a step that was taken; particles that are only compared are not observed."""
        return


MakeTerm = Callable[[TermContext], Term | None]
"""Makes a term for one candidate, or None where there is nothing for it to do."""


class CleanTerm(Term):
    """The task's own loss on clean data."""

    weight = 1.0

    def __init__(self, context: TermContext) -> None:
        self._loss = context.task.loss_of

    def __call__(self, v: Tensor, batch: Batch) -> Tensor:
        """CE(theta_gen on clean data)."""
        return self._loss(batch.logits, batch.y)


class StaleTerm(Term):
    """Cross-entropy on attacks that were crafted on exposed generations when those were accepted.

    Attacks are drawn from exposures in proportion to softmax(running loss / temperature): what
    still hurts is seen most. The newest exposure, the likeliest to be reused, counts
    `newest_weight` times.
    """

    def __init__(self, context: TermContext) -> None:
        self._settings, self._generator = context.settings, context.generator
        self.weight = context.settings.mu
        guides = [exposure.guide for exposure in context.exposures]
        self._sizes = torch.tensor([len(guide) for guide in guides])
        self._starts = self._sizes.cumsum(0) - self._sizes
        self._attacks = torch.cat([guide.x for guide in guides])
        self._labels = torch.cat([guide.y for guide in guides])
        # Every exposure starts as one that hurts, so that each is looked at early.
        self.running = torch.full((len(guides),), 2.0)

    @classmethod
    def of(cls, context: TermContext) -> StaleTerm | None:
        """The term, or None as long as no attack is remembered."""
        attacked = any(len(exposure.guide) for exposure in context.exposures)
        return cls(context) if attacked else None

    def inputs(self, v: Tensor, clean: Batch) -> Batch:
        """Draw as many attacks as there are clean examples in a full batch."""
        share = torch.softmax(self.running / self._settings.temperature, 0)
        share[-1] *= self._settings.newest_weight
        count = self._settings.batch
        of = torch.multinomial(share, count, replacement=True, generator=self._generator)
        rank = torch.rand(count, generator=self._generator)
        at = self._starts[of] + (rank * self._sizes[of]).long()
        return Batch(self._attacks[at], self._labels[at], of)

    def __call__(self, v: Tensor, batch: Batch) -> Tensor:
        """CE(theta_gen on stale attacks of the last W exposures)."""
        return F.cross_entropy(batch.logits, batch.y, reduction="none").mean()

    @torch.no_grad()
    def observe(self, batch: Batch) -> None:
        """Move each exposure's running loss towards what its attacks have just cost."""
        assert batch.of is not None, "stale attacks know whose they are"
        losses = F.cross_entropy(batch.logits, batch.y, reduction="none").float().cpu()
        count = torch.bincount(batch.of, minlength=len(self.running))
        total = torch.zeros_like(self.running).index_add_(0, batch.of, losses)
        seen = count > 0
        self.running[seen] = 0.8 * self.running[seen] + 0.2 * total[seen] / count[seen]


class BaseTerm(Term):
    """The base's answers on mixtures of clean inputs, where guide data alone would teach less."""

    def __init__(self, base: Logits, context: TermContext) -> None:
        self._base, self._context = base, context
        self.weight = context.settings.base_weight

    @classmethod
    def of(cls, context: TermContext) -> BaseTerm | None:
        """The term, or None where it counts nothing."""
        if context.settings.base_weight == 0:
            return None
        assert context.base is not None, "whoever asks for its answers gives the base"
        return cls(context.base, context)

    def inputs(self, v: Tensor, clean: Batch) -> Batch:
        """Mix the clean examples with one another; tokens and the like stay as they are."""
        can = self._context.task.attack_kind == BALL
        return Batch(mix(clean.x, self._context.generator) if can else clean.x, clean.y)

    def __call__(self, v: Tensor, batch: Batch) -> Tensor:
        """KL(base || theta_gen) on mixtures."""
        with torch.no_grad():
            answers = self._base(batch.x).softmax(1)
        return divergence(batch.logits, answers)


class RobustTerm(Term):
    """The task's loss on PGD attacks on the candidate itself, crafted anew each time.

    For populations that were trained adversarially.
    """

    adaptive = True

    def __init__(self, context: TermContext) -> None:
        self._context = context
        self.weight = context.settings.robust_weight

    def inputs(self, v: Tensor, clean: Batch) -> Batch:
        """PGD on the candidate as it is, from the clean examples."""
        task, s, model = self._context.task, self._context.settings, self._context.model
        tensors = self._context.codec.tensors(v.detach())
        attacked = craft(
            task, Functional(model, tensors), clean.x, clean.y, eps=s.robust_eps or task.eps,
            steps=s.robust_steps, generator=self._context.generator, batch=len(clean.x),
        )  # fmt: skip
        return Batch(attacked, clean.y)

    def __call__(self, v: Tensor, batch: Batch) -> Tensor:
        """CE(theta_gen on PGD attacks on theta_gen itself)."""
        return self._context.task.loss_of(batch.logits, batch.y)


class BankTerm(Term):
    """Cross-entropy on attacks that were crafted on the population's members, for polish alone.

    Ensemble adversarial training (Tramèr et al. 2018, arXiv 1705.07204): a long polish would forget
    what members have learned of attacks on networks that nobody serves.
    """

    def __init__(self, context: TermContext, bank: Split) -> None:
        self._context, like = context, context.task.splits.guide.x
        self._bank = Split(bank.x.to(like.dtype), bank.y)
        self.weight = context.settings.bank_weight

    @classmethod
    def of(cls, context: TermContext) -> BankTerm | None:
        """The term, or None where it counts nothing.

        Raises:
            SettingsError: it counts, and the generator keeps no attacks.
        """
        if not context.settings.bank_weight:
            return None
        if context.bank is None:
            raise SettingsError(
                "[guidance] bank_weight needs attacks that the generator keeps, and it keeps none;"
                " set [generator] bank and run `g2d fit`, or bank_weight to 0"
            )
        return cls(context, context.bank)

    def inputs(self, v: Tensor, clean: Batch) -> Batch:
        """Draw as many attacks as there are clean examples."""
        x, y = _some(self._bank, len(clean.y), self._context.generator)
        return Batch(x, y)

    def __call__(self, v: Tensor, batch: Batch) -> Tensor:
        """CE(theta_gen on attacks on members)."""
        return F.cross_entropy(batch.logits, batch.y)


class JointTerm(Term):
    """Cross-entropy on the attack that a basin-aware attacker would make, for polish alone.

    It is crafted once for a candidate: jointly on the exposed generations that share its basin and
    on means of them that are drawn anew at each step, by expected probability (Athalye et al. 2018,
    section 3.1, over networks), on examples of the guide split. Attacks on single exposures, which
    `StaleTerm` has, are memorised by few steps and say little of that one.
    """

    def __init__(self, context: TermContext) -> None:
        self._context, s = context, context.settings
        self.weight = s.joint_weight
        split = context.task.splits.guiding.sample(s.joint_pool, context.generator)
        stacked = torch.stack([context.exposures[i].v for i in context.mates])
        stacked = stacked.to(context.task.device)
        self._attacks = Split(self._crafted(stacked, split), split.y)

    def _crafted(self, stacked: Tensor, split: Split) -> Tensor:
        context, s = self._context, self._context.settings
        if context.task.attack_kind != BALL:
            return craft_drawn(
                context.task, lambda: self._networks(stacked), split.x, split.y,
                generator=context.generator,
            )  # fmt: skip
        return eot_pgd(
            lambda: self._networks(stacked), split.x, split.y, eps=context.task.eps,
            steps=s.joint_steps, generator=context.generator, bounds=context.task.reach,
            tricks=Tricks("probability", 1.0),
        )  # fmt: skip

    @classmethod
    def of(cls, context: TermContext) -> JointTerm | None:
        """The term, or None where it counts nothing or no exposure shares the basin."""
        wanted = context.settings.joint_weight and context.task.attack_kind != NONE
        return cls(context) if context.mates and wanted else None

    def _networks(self, stacked: Tensor) -> list[Logits]:
        """Two exposed networks and two means of all of them; one alone stands for both."""
        source = self._context.generator
        if len(stacked) == 1:
            return [self._logits(stacked[0])]
        whole = torch.randint(len(stacked), (2,), generator=source).tolist()
        means = [dirichlet(len(stacked), source).to(stacked) @ stacked for _ in range(2)]
        return [self._logits(v) for v in (*(stacked[i] for i in whole), *means)]

    def _logits(self, v: Tensor) -> Logits:
        return Functional(self._context.model, self._context.codec.tensors(v))

    def inputs(self, v: Tensor, clean: Batch) -> Batch:
        """Draw as many attacks as there are clean examples."""
        x, y = _some(self._attacks, len(clean.y), self._context.generator)
        return Batch(x, y)

    def __call__(self, v: Tensor, batch: Batch) -> Tensor:
        """CE(theta_gen on the joint attack on its basin)."""
        return F.cross_entropy(batch.logits, batch.y)


class MarkTerm(Term):
    """The task's own loss on those of the watermark's triggers that the candidate is unsure of.

    All are looked at every few steps, without gradients. Members and their mixtures know nearly all
    of them: what they are sure of is left out, so that a draw which keeps the mark costs a look.
    """

    adaptive = True

    def __init__(self, context: TermContext, mark: Mark) -> None:
        self._context, self._mark = context, mark
        self.weight = mark.weight
        self._steps = 0
        self._unsure = torch.empty(0, dtype=torch.long)

    @classmethod
    def of(cls, context: TermContext) -> MarkTerm | None:
        """The term, or None where the vault has no watermark."""
        return None if context.mark is None else cls(context, context.mark)

    @torch.no_grad()
    def _look(self, v: Tensor) -> None:
        run = Functional(self._context.model, self._context.codec.tensors(v))
        known = predict(run, self._mark.x).softmax(1)[torch.arange(len(self._mark.y)), self._mark.y]
        self._unsure = (~(known >= _SURE)).nonzero().flatten()  # NaN counts

    def inputs(self, v: Tensor, clean: Batch) -> Batch:
        """Draw at most `batch` triggers that the candidate was unsure of; perhaps none."""
        if self._steps % _LOOK == 0:
            self._look(v.detach())
        self._steps += 1
        at = self._unsure
        if len(at):
            order = torch.randperm(len(at), generator=self._context.generator)
            at = at[order[: self._mark.batch]]
        return Batch(self._mark.x[at], self._mark.y[at])

    def __call__(self, v: Tensor, batch: Batch) -> Tensor:
        """CE(theta_gen on triggers); each counts the same, however few there are."""
        if not len(batch.y):
            return v.new_zeros(())
        return self._context.task.loss_of(batch.logits, batch.y) * len(batch.y) / self._mark.batch


_LOOK = 10  # steps from one look at all triggers to the next
_SURE = 0.9  # probability of its label from which on a trigger is left out


def _some(split: Split, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    at = torch.randint(len(split), (count,), generator=generator)
    return split.x[at], split.y[at]


TERMS: tuple[MakeTerm, ...] = (CleanTerm, StaleTerm.of, RobustTerm, MarkTerm.of, BaseTerm.of)
"""Every term of the objective, in the order of their draws; a new one is a line here."""
POLISH_TERMS: tuple[MakeTerm, ...] = (BankTerm.of, JointTerm.of)
"""What polish descends besides: made once the candidate, and so its basin, is known."""


def make_terms(context: TermContext) -> list[Term]:
    """Every term that has something to do: those of `TERMS`, then the user's own.

    Raises:
        SettingsError: one of `[guidance] extra` cannot be imported.
    """
    makers = (*TERMS, *find_terms(context.settings.extra))
    return [term for make in makers if (term := make(context)) is not None]


def find_terms(names: Sequence[str]) -> list[MakeTerm]:
    """The user's own terms, named 'module:function'; each takes a `TermContext`.

    Raises:
        SettingsError: there is no such module or function, or it cannot be called.
    """
    kind = "a function or class that takes a TermContext and returns a Term"
    return import_callables(names, "guidance term", kind)
