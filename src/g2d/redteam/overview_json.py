"""The summary of a judged vault as plain JSON values: what pages and pictures are drawn from.

How attacks are scored lives in `overview`, how a page looks in `report`. The fields are written
down in docs/results.md.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

import g2d
from g2d.core.types import State
from g2d.defence.defence import Defence
from g2d.generator import hidden_units
from g2d.redteam import novelty
from g2d.redteam.context import AttackContext
from g2d.redteam.controls import FittedMembers, noised, soups
from g2d.redteam.novelty import Distances, spaced
from g2d.redteam.overview import Overview, evaluate
from g2d.redteam.rows import Row
from g2d.redteam.scoring import Rate
from g2d.tasks.inference import load_model, predict
from g2d.training.layouts import layout_of
from g2d.weights.checkpoints import unpack

# Novelty is a table beside others and must stay cheap: an aligned distance takes some 6 ms, and
# these are 590 of them in the demo, four CPU seconds.
_MEMBERS = 48  # members that networks are compared with
_UNIT = 12  # members whose median distance to the others is tau's unit
_NETWORKS = 6  # generations, soups and noised members

# kind -> (what, meaning); {…} are filled from the row and the summary's numbers.
_WORDS = {
    "undefended": (
        "No hardening, no rotation: plainly trained",
        "How most models are deployed. All rows below are of hardened members.",
    ),
    "frozen": (
        "No rotation: attack crafted on the deployed model",
        "What a model that never changes faces: the attacker studied these very parameters.",
    ),
    "permutation": (
        "Control: hidden units reordered",
        "Other parameters, same function: must equal the line above. Distance defends nothing.",
    ),
    "fresh-seed": (
        "Control: retrained from a fresh seed",
        "The ordinary rival, attack from the network before it. {note}; a rotation took {cpu:.1f}.",
    ),
    "unguided": (
        "Control: generated without guidance",
        "Sampled from the same generator, but not steered away from attacks on the sample before.",
    ),
    "stale-single": (
        "Rotation: attack on one generation, scored on the next",
        "The attacker stole the parameters just before the rotation.",
    ),
    "stale-worst": (
        "Rotation: the exposed generation that hurts the live one most",
        "The attacker tries every leaked generation; this one ({note}) works best.",
    ),
    "stale-joint": (
        "Rotation: one attack against many exposed generations at once",
        "The attacker kept {note} and attacks {target}.",
    ),
    "owns-generator": (
        "NOT solved: attacker owns the generator too",
        "Attack averaged over {note}; a more patient attacker does better.",
    ),
    "white-box": (
        "NOT solved: white-box, attacker reads the live parameters",
        "Rotation does nothing here; only robust training helps. Also what freezing a generated "
        "network would give.",
    ),
}


def glance(context: AttackContext) -> dict[str, Any]:
    """Judge a context's generations with small budgets, and return the summary of that."""
    spec = context.spec
    # In full, rows of other families tell what retraining does; quick, this is the place.
    found = evaluate(
        context, n=min(400 if spec.quick else 250, spec.n), fresh=spec.quick, latest=15
    )
    return summarise(context, found)


def summarise(context: AttackContext, found: Overview) -> dict[str, Any]:
    """Gather all that a report shows of a judged vault, as plain JSON values."""
    defence, judged = context.defence, sorted(found.clean_accuracy)
    numbers = _numbers(defence, found)
    return {
        "task": defence.task.name,
        "headline": _headline(numbers, found),
        "table": [_told(row, numbers) for row in found.rows],
        "numbers": numbers,
        "rows": [_row(row) for row in found.rows],
        "generations": _generations(defence, found),
        "rejected": _rejections(defence),
        "matrix": [
            {"crafted": c, "scored": s, **asdict(rate)} for (c, s), rate in found.matrix.items()
        ],
        "age": [{"age": age, **asdict(rate)} for age, rate in found.age.items()],
        "distances": _distances(defence, judged),
        "novelty": _novelty(context, found),
        "images": _images(defence, found),
        "latents": _latents(defence, judged),
        "settings": asdict(defence.settings),
        "settings_toml": defence.settings.to_toml(),
        "digests": _digests(defence),
        "versions": versions(),
        "hardware": hardware(),
    }


def _row(row: Row) -> dict[str, Any]:
    """A row in a summary's own, shorter words; its value is always an ASR."""
    kept = ("kind", "family", "threat", "target", "eps", "attack", "seed", "seconds", "note")
    plain = asdict(row)
    rates = {"clean_accuracy": plain["clean_accuracy"], "asr": plain["value"]}
    return {key: plain[key] for key in kept} | rates


def _told(row: Row, numbers: Mapping[str, float]) -> dict[str, str]:
    (what, meaning), asr, clean = _WORDS[row.kind], *_rates(row)
    return {
        "what": what,
        "clean accuracy": f"{100 * clean.value:.1f}\u00a0%",
        "attack success rate [95 % CI]": f"{100 * asr.value:.1f}\u00a0% "
        f"[{100 * asr.low:.1f}–{100 * asr.high:.1f}]",
        "meaning": meaning.format(
            note=row.note, target=row.target, cpu=numbers["rotation_cpu_seconds"]
        ),
    }


def _rates(row: Row) -> tuple[Rate, Rate]:
    """The success rate and the clean accuracy, which every row of an overview has."""
    assert row.value is not None
    assert row.clean_accuracy is not None
    return row.value, row.clean_accuracy


def _numbers(defence: Defence, found: Overview) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for row in found.rows:
        key, (asr, clean) = row.kind.replace("-", "_"), _rates(row)
        numbers[f"{key}_asr"] = asr.value
        numbers[f"{key}_asr_low"], numbers[f"{key}_asr_high"] = asr.low, asr.high
        numbers[f"{key}_clean_accuracy"] = clean.value
    rotated = [rate.value for rate in list(found.clean_accuracy.values())[1:]]
    numbers["clean_accuracy_worst"] = min(rotated)
    cpu = [g.manifest["cpu_seconds"] for g in defence.vault.generations()[1:]]
    numbers["rotation_cpu_seconds"] = sum(cpu) / len(cpu)
    numbers["retrain_cpu_seconds"] = found.retrain_seconds
    numbers["rotations"], numbers["rejected"] = len(cpu), len(defence.vault.rejections())
    numbers["test_examples"], numbers["eps"] = len(found.trial.split), found.trial.eps
    numbers["gate_examples"] = len(defence.task.splits.gate)
    return numbers


def _headline(n: Mapping[str, float], found: Overview) -> list[dict[str, str]]:
    p = {key: f"{100 * value:.0f}\u00a0%" for key, value in n.items() if "_asr" in key}
    known = next(row.note for row in found.rows if row.kind == "stale-joint")
    question = (
        "An attacker has studied parameters that were live until the last rotation. Do those "
        "attacks still work on the parameters that are live now?"
    )
    plainly = "undefended_asr" in n
    hardened = (
        f"Trained plainly and attacked with its own parameters, a model loses "
        f"{p['undefended_asr']} of the images; hardening, which is training, changes the next "
        f"number. "
        if plainly
        else ""
    )
    buys = hardened + (
        f"On a model that never changes, attacks flip {p['frozen_asr']} of the images. Crafted on "
        f"one generation and tried on the next, they flip {p['stale_single_asr']}; crafted on "
        f"{known} together, {p['stale_joint_asr']}. Clean accuracy: "
        f"{100 * n['frozen_clean_accuracy']:.1f}\u00a0% before, "
        f"{100 * n['stale_single_clean_accuracy']:.1f}\u00a0% after."
    )
    lacks = (
        f"Whoever reads the live parameters still flips {p['white_box_asr']} (what that gains on "
        "the frozen model comes from training, not from rotation); whoever owns the generator "
        f"flips {p['owns_generator_asr']}. Rotation raises the cost of reusing an attack, no more."
    )
    texts = {"The question": question, "What rotation buys": buys, "What it does not": lacks}
    return [{"label": label, "text": text} for label, text in texts.items()]


def _generations(defence: Defence, found: Overview) -> list[dict[str, Any]]:
    listed = []
    for record in defence.vault.generations():
        if record.number not in found.clean_accuracy:
            continue
        m = record.manifest
        listed.append(
            {
                "number": record.number,
                "origin": m["origin"],
                "clean_accuracy": asdict(found.clean_accuracy[record.number]),
                "gates": m["gates"],
                "attempts": m.get("attempt", 0) + 1,
                "cpu_seconds": m.get("cpu_seconds"),
                "weights": record.files["weights"],
            }
        )
    return listed


def _rejections(defence: Defence) -> list[dict[str, Any]]:
    """Rejected candidates with the generation number that they were meant for."""
    return [
        {"for": info["number"], "attempt": info["attempt"] + 1, "reasons": info["reasons"]}
        for info in defence.vault.rejections()
    ]


def _states(defence: Defence, numbers: Sequence[int]) -> dict[int, State]:
    return {k: defence.generation(k).state for k in numbers}


def _scope(defence: Defence) -> frozenset[str]:
    """Names of the tensors that a generation has of its own."""
    return layout_of(defence.task).in_scope(defence.settings.autoencoder.scope)


def _distances(defence: Defence, numbers: Sequence[int]) -> dict[str, Any]:
    """Aligned relative L1 distance of each generation to exposed ones and to the population."""
    scope, states = _scope(defence), _states(defence, numbers)
    chain = hidden_units(defence.task, scope)
    entries = defence.vault.entries("member")
    kept = [unpack(defence.vault.read(entry)) for entry in entries]
    members = Distances(kept, chain, names=scope)
    others = Distances([states[k] for k in numbers], chain, names=scope)
    listed = []
    for place, number in enumerate(numbers[1:], 1):
        exposed = others.all(states[number], place)
        listed.append(
            {
                "number": number,
                "previous": exposed[-1],
                "nearest_exposed": min(exposed),
                "nearest_member": members.nearest(states[number])[0],
            }
        )
    return {
        "aligned": bool(chain),
        "limit": defence.settings.gates.distance,
        "generations": listed,
    }


def _novelty(context: AttackContext, found: Overview) -> dict[str, Any] | None:
    """How novel the last generations are, beside soups and noised members; None of one member."""
    fitted, task, seed = FittedMembers.of(context.defence), context.task, found.trial.seed
    if len(fitted.states) < 2:
        return None
    members = fitted.take(spaced(len(fitted.states), _MEMBERS))
    scope = _scope(context.defence)
    distances = Distances(members.states, hidden_units(task, scope), _UNIT, scope)
    numbers = sorted(found.models)[1:][-_NETWORKS:]
    rows: dict[str, list[State]] = {
        "generations": list(_states(context.defence, numbers).values()),
        # Of the compared members: a copy of one that is left out would look new.
        "soups": soups(members, _NETWORKS, seed),
        "noised members": noised(members, _NETWORKS, seed),
    }
    models = [load_model(task, state) for state in members.states]
    base = found.clean_accuracy[min(found.clean_accuracy)].value
    bar = base - novelty.MARGIN
    measured = {
        name: novelty.measure(
            states, [load_model(task, s) for s in states], models, distances, found.trial.split, bar
        )
        for name, states in rows.items()
    }
    return {
        "bar": bar,
        "margin": novelty.MARGIN,
        "unit": distances.unit,
        "aligned": bool(distances.chain),
        "members": len(members.states),
        "fitted": len(fitted.states),
        "most": {"networks": _NETWORKS, "unit": _UNIT},
        "rows": [{"name": name, **asdict(row)} for name, row in measured.items()],
    }


def _images(defence: Defence, found: Overview, count: int = 8) -> dict[str, Any]:
    """The first test images that both networks get right, attacked; not chosen by outcome."""
    split = found.trial.split
    if split.x.dim() != 4 or split.x.shape[1] not in (1, 3) or defence.task.bounds is None:
        return {"items": []}
    crafted, *_, live = sorted(found.clean_accuracy)
    models = {k: found.models[k] for k in (crafted, live)}
    proposed = found.trial.craft(models[crafted], "single", crafted)
    right = [predict(model, split.x).argmax(1) == split.y for model in models.values()]
    chosen = (right[0] & right[1]).nonzero()[:count, 0]
    said = {k: predict(model, proposed[chosen]).argmax(1).tolist() for k, model in models.items()}
    items = [
        {
            "label": int(split.y[i]),
            "exposed": said[crafted][place],
            "live": said[live][place],
            "clean": _pixels(split.x[i], defence.task.bounds),
            "attacked": _pixels(proposed[i], defence.task.bounds),
        }
        for place, i in enumerate(chosen.tolist())
    ]
    return {"exposed": crafted, "live": live, "items": items}


def _pixels(x: Tensor, bounds: tuple[float, float]) -> list[Any]:
    """Rows of grey values or [r, g, b], 0 to 255, of an image (C, H, W)."""
    low, high = bounds
    bytes_ = ((x - low) / (high - low) * 255).round().clamp(0, 255).int()
    return (bytes_[0] if len(bytes_) == 1 else bytes_.permute(1, 2, 0)).tolist()


def _latents(defence: Defence, numbers: Sequence[int]) -> dict[str, Any]:
    """Latents of population and generations on the population's two principal axes."""
    entries = defence.vault.entries("member")
    states = [unpack(defence.vault.read(entry)) for entry in entries]
    generations = _states(defence, numbers).values()
    Z = defence.generator.encode([*states, *generations]).double()
    centred = Z - Z[: len(states)].mean(0)
    # A population of two members has one axis, and a generator of one latent: the second is zero.
    centred = torch.nn.functional.pad(centred, (0, max(0, 2 - centred.shape[1])))
    _, s, axes = torch.linalg.svd(centred[: len(states)], full_matrices=False)
    # The sign of a principal axis is arbitrary: make its largest component positive.
    signs = [float(axis[axis.abs().argmax()].sign()) for axis in axes[:2]]
    xy = (centred @ axes[:2].T * torch.tensor(signs, dtype=torch.float64)).tolist()
    basins = [int(entry.info["basin"]) for entry in entries]
    return {
        "explained": (s[:2].square() / s.square().sum()).tolist(),
        "members": [{"x": x, "y": y, "basin": b} for (x, y), b in zip(xy, basins, strict=False)],
        "generations": [
            {"x": x, "y": y, "number": k}
            for (x, y), k in zip(xy[len(states) :], numbers, strict=True)
        ],
    }


def _digests(defence: Defence) -> dict[str, Any]:
    records = defence.vault.generations()
    return {
        "population": records[-1].manifest["population"],
        "generator": records[-1].manifest["generator"],
        "generations": {str(r.number): r.files["weights"] for r in records},
    }


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    return {"g2d": g2d.__version__, "python": platform.python_version(), "torch": torch.__version__}


def hardware() -> dict[str, Any]:
    """What machine this is, and the peak memory so far."""
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }
    try:
        import resource
    except ImportError:  # not on Windows
        return found
    kilo = 1 if platform.system() == "Linux" else 1024  # macOS counts bytes
    for name, who in (("main", resource.RUSAGE_SELF), ("worker", resource.RUSAGE_CHILDREN)):
        peak = resource.getrusage(who).ru_maxrss
        found[f"peak_memory_mb_{name}"] = round(peak / 1024 / kilo, 1)
    return found
