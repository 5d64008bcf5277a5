"""A search on a live service, which has a clock of its own."""

from __future__ import annotations

from dataclasses import replace

from g2d.redteam.context import AttackContext, Case
from g2d.redteam.query_log import QueryLog, by_target
from g2d.redteam.rows import Row, Status, not_measured
from g2d.redteam.targets import HttpTarget, TargetError, describe_scores
from g2d.redteam.threats.query.search import curve_of, kind_of, label_of, launch


def service_row(case: Case, context: AttackContext) -> Row:
    """Attack a live service; what was found before it died is reported."""
    url = str(case.option("url"))
    lanes: QueryLog | None = None
    asked, note = 0, ""
    try:
        service = HttpTarget(url, str(case.option("model")))
        split = context.examples(case.number("images"))
        expected = (tuple(split.x.shape[1:]), context.task.classes)
        if (service.shape, service.classes) != expected:
            why = f"it maps {service.shape} to {service.classes} classes, the task {expected}"
            return _unmeasured(case, context, why)
        scores = service.predict(split.x)
        split = split.take((scores.argmax(1) == split.y).nonzero()[:, 0])
        note = f"the service answers {describe_scores(scores)}"
        if not len(split):
            why = "the service classifies no image correctly to begin with"
            return _unmeasured(case, context, why)
        lanes = QueryLog(
            by_target(service),
            split, eps=context.eps, budget=case.number("budget"), bounds=context.bounds,
        )  # fmt: skip
        launch(case, context, lanes, None)
    except TargetError as error:
        asked = 0 if lanes is None else int(lanes.spent.max())
        row = _told(case, context, lanes, f"died after {asked:,} queries an image: {error}")
        return replace(row, status=Status.DIED, queries=asked)
    return _told(case, context, lanes, note)


def _unmeasured(case: Case, context: AttackContext, why: str) -> Row:
    url, threat = str(case.option("url")), "API, scores; does not know the clock"
    known = {"seed": context.spec.seed, "chain": case.chain}
    return not_measured("query", kind_of(case), threat, url, label_of(case), why, **known)


def _told(case: Case, context: AttackContext, lanes: QueryLog | None, note: str) -> Row:
    """The row of a service: ASR so far, and which generations answered with a mistake."""
    url, threat = str(case.option("url")), "API, scores; does not know the clock"
    value, extra = None, {}
    if lanes is not None:
        value = lanes.asr(case.number("at"))
        fooled = lanes.network[lanes.first > 0]
        generations = sorted({int(number) for number in fooled if number >= 0})
        extra = {"curve": curve_of(lanes), "generations": generations}
    return context.row(
        case, kind_of(case), threat, label_of(case), value,
        target=url, queries=case.number("at"), note=note, extra=extra,
    )  # fmt: skip
