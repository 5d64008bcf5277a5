"""The tables of docs/benchmarks/tokens.md, from the JSON of every seed that was run."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, markdown, ranged

HEADER = (
    "attacker", "what is attacked", "words replaced, %", "worst, %", "spam that passes, %",
    "accuracy, %",
)  # fmt: skip
NAMES = {
    "frozen": "the model, never changed",
    "unrotated": "a generation, never rotated",
    "rotated": "the next generation",
    "retrained": "a retraining from a fresh seed",
    "soup": "the next mean of four members",
}


def _seeds() -> list[dict[str, Any]]:
    files = sorted(RESULTS.glob("tokens-seed*.json"))
    return [json.loads(file.read_text("utf-8")) for file in files]


def table(seeds: list[dict[str, Any]]) -> str:
    """Every row of the first seed, mean (least–largest) over all."""
    if not seeds:
        return markdown(HEADER, [[NOTHING] * len(HEADER)])
    lines = []
    for place, row in enumerate(seeds[0]["rows"]):
        same = [seed["rows"][place] for seed in seeds]
        assert all((r["attacker"], r["model"]) == (row["attacker"], row["model"]) for r in same)
        lines.append(
            [f"{row['attacker']}; {row['attack']}", NAMES[row["model"]],
             ranged([r["asr"]["value"] for r in same]), ranged([r["worst"] for r in same]),
             ranged([r["spam_asr"]["value"] for r in same]), ranged([r["clean"] for r in same])]
        )  # fmt: skip
    return markdown(HEADER, lines)


def target(seeds: list[dict[str, Any]]) -> str:
    """Stale ASR of the last generation's attack beside the frozen model's, and what it cost."""
    header = ("seed", "stale / frozen", "wanted", "population, CPU s", "fit, CPU s",
              "a rotation, CPU s", "a retraining, CPU s", "commit", "cores", "load")  # fmt: skip
    lines = []
    for seed in seeds:
        rates = {
            row["model"]: row["asr"]["value"]
            for row in seed["rows"]
            if "last one" in row["attacker"]
        }
        spent = seed["seconds"]
        lines.append(
            [seed["arguments"]["seed"], f"{rates['rotated'] / rates['frozen']:.2f}", "≤ 0.5",
             f"{spent['population']:.0f}", f"{spent['generator']:.0f}",
             f"{spent['rotations'] / seed['rotations']:.1f}",
             f"{seed['rows'][0]['retraining_cpu_seconds']:.1f}",
             seed["commit"],
             seed["hardware"]["cpu_count"], f"{seed['hardware']['load'][0]:.0f}"]
        )  # fmt: skip
    return markdown(header, lines or [[NOTHING] * len(header)])


def made() -> dict[str, str]:
    """Every table by the name of its mark."""
    seeds = _seeds()
    return {"tokens": table(seeds), "tokens-target": target(seeds)}
