"""A stolen generation, pruned and permuted by its thief, is proven ours and traced to its number.

    python examples/stolen_weights.py [FOLDER]

On scikit-learn's digits, in four minutes. What each proof is worth: docs/ownership.md.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from g2d import Defence, Settings
from g2d.attacks.removal import disguised, pruned
from g2d.defence.tracing import Tracer
from g2d.protect.watermark import InputForm
from g2d.protect.watermark.proof import Proof
from g2d.protect.watermark.publishing import publish
from g2d.protect.watermark.suspects import ModelSuspect
from g2d.tasks.builtin import blueprint
from g2d.weights.symmetry import couplings


def main(folder: str = "runs/stolen") -> None:
    vault, key, found = (Path(folder) / name for name in ("vault", "mark.key", "found.safetensors"))
    small = {"members": 8, "basins": 2, "base_steps": 2000, "early_steps": 800, "fork_steps": 500}
    settings = Settings().override(
        task__name="digits", **{f"population__{name}": value for name, value in small.items()},
        gates__stale_asr=0.6, gates__accuracy_drop=0.05,  # so short a training tells a story
        watermark__sets=2, watermark__triggers=64, watermark__weight=2.0,
    )  # fmt: skip

    # The owner: a key and a commitment before the first parameters, then generations as ever.
    with Defence.create("digits", vault, settings) as defence:
        form = InputForm.of(defence.task)
        _, published = publish(defence.vault, defence.settings, form, key)
        print(f"committed to {len(published.commitment.digests)} sets of triggers")
    with Defence.build("digits", vault) as defence:
        defence.generate(4)
        live = {n: defence.generation(n) for n in range(2, 6)}
        print("share of triggers answered:",
              {n: g.manifest["figures"]["watermark"] for n, g in live.items()})  # fmt: skip

        # The thief: takes generation 3, prunes it, and puts every hidden unit elsewhere.
        task = defence.task
        chain = couplings(task.model(0), task.splits.guide.x[:8])
        stolen = disguised(pruned(live[3].state, 0.3), chain, torch.Generator().manual_seed(1))
        save_file({name: tensor.contiguous() for name, tensor in stolen.items()}, found)

        # Is it ours? The triggers follow from the key, and whoever has none of it hits one in ten.
        suspect = ModelSuspect.read(found, blueprint("digits"))
        proof = Proof.read(key, vault)
        outcome = proof.ask(suspect, None, shown=False)
        proof.show(outcome, suspect, Path(folder) / "claim.json")
        of = f"{outcome.hits} of {len(outcome.answers)} triggers are answered as the key says"
        print(f"{of}: by chance p = {outcome.p:.1e}; it carries the mark: {outcome.marked}")

        # Which one? What the suspect has of one generation that no other network explains.
        print(Tracer(defence).trace(stolen))


if __name__ == "__main__":
    main(*sys.argv[1:])
