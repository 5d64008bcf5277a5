"""A tour of G2D on handwritten digits, about a minute of CPU: population, rotations, attack.

Run it whole (`python examples/tour.py`), or cell by cell in an editor that knows `# %%`. Settings
are small so that it is quick: quote no number from it.
"""

# %% [markdown]
# # What is defended
# A task is a model, its data in four disjoint splits, and an attack budget `eps` (L∞).

# %%
import sys
import tempfile
from pathlib import Path

import torch

from g2d import Defence, Rotor, Settings, load_task
from g2d.attacks import pgd
from g2d.core.engine import SerialEngine
from g2d.redteam import attack
from g2d.report.page import render_results

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="g2d-tour-"))
task = load_task("digits")
test = task.splits.test
print(f"{task.name}: {len(test.y)} test images of shape {tuple(test.x.shape[1:])}, eps {task.eps}")

# %% [markdown]
# # Population and generator
# Checkpoints that resist each other's attacks, then an autoencoder and a latent diffusion model on
# them. A vault is one folder; whatever ends this, running it again goes on where it stopped.

# %%
settings = Settings().override(
    population__members=6, population__basins=2, population__base_steps=200,
    population__early_steps=60, population__fork_steps=60, population__pool=128,
    autoencoder__steps=200, diffusion__steps=500, guidance__pool=100, gates__pool=100,
    gates__accuracy_drop=0.2, gates__class_drop=0.5, gates__stale_asr=0.9,
)  # fmt: skip
engine = SerialEngine()  # no worker processes: cells have no file that those could import
defence = Defence.build(task, folder / "vault", settings, engine)
base = defence.generation()
print(f"generation {base.number} is the base that was trained first")

# %% [markdown]
# # Generate and rotate
# A rotor answers wholly by one generation and swaps in the next one that passed its gates.

# %%
rotor = Rotor(defence)
for _ in range(3):
    number = rotor.rotate()
    right = (rotor(test.x).argmax(1) == test.y).double().mean()
    print(f"generation {number} is live: {right:.1%} of the test images right")

# %% [markdown]
# # A stored attack
# Whoever kept an old generation crafts on that one. How much is left of it on the next one?


# %%
def flipped(crafted: torch.Tensor, number: int) -> float:
    """Share of images that a generation got right, and gets wrong once attacked."""
    with torch.no_grad():
        model = defence.generation(number).model()
        right = model(test.x).argmax(1) == test.y
        fooled = model(crafted).argmax(1) != test.y
    return float((right & fooled).sum() / right.sum())


old, new = number - 1, number
crafted = pgd(
    defence.generation(old).model(), test.x, test.y, eps=task.eps, steps=20,
    bounds=task.bounds, generator=torch.Generator().manual_seed(0),
)  # fmt: skip
print(f"attacks crafted on generation {old} flip {flipped(crafted, old):.0%} of its own answers")
print(f"and {flipped(crafted, new):.0%} of generation {new}'s")
defence.close()

# %% [markdown]
# # The red team
# One number of one attack is no evidence. `attack` sets established attacks against rotation and
# against its controls; `quick` is a smoke test of it.

# %%
results = attack(
    folder / "vault",
    threats=["stale"],
    quick=True,
    n=60,
    engine=engine,
)
for row in results["rows"]:
    if row["value"] and row["target"] in {"generated", "frozen", "soup"}:
        print(f"{row['target']:<10} {row['value']['value']:4.0%}  {row['threat']}, {row['attack']}")

# %% [markdown]
# # The report
# A page that opens offline and says what rotation does not buy, too.

# %%
render_results(results, folder / "report.html")
print(f"open {folder / 'report.html'}")
