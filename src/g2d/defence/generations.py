"""Generations in the vault: read with their attacks, or accepted with attacks and canaries made.

What makes a candidate, or lets it pass, does not live here.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from g2d.attacks.pools import compact, craft_pool
from g2d.core.polynomial import PRE_ACTIVATIONS, largest_inputs
from g2d.core.seeds import seed_of
from g2d.core.sources import Digests, digests
from g2d.defence.marking import fit_mark
from g2d.defence.privacy.stamps import stamp
from g2d.defence.renewal import lineage, splits_of
from g2d.errors import CheckpointError, DataWarning, UnavailableError, VaultError
from g2d.generator import Exposure
from g2d.protect.canaries.kept import CANARIES
from g2d.protect.canaries.making import make_canaries
from g2d.protect.fingerprint import secret_for
from g2d.protect.layout import SECRET, is_secret
from g2d.protect.snapshots import build_snapshot
from g2d.protect.watermark.mark import Mark
from g2d.rotation.snapshot import Snapshot
from g2d.settings import Settings
from g2d.tasks.inference import load_model, predict
from g2d.tasks.splits import Split, Splits
from g2d.tasks.task import Task
from g2d.vault.code import CODE, code_of
from g2d.vault.committed import COMMITTED
from g2d.vault.confirmed import confirmed_key
from g2d.vault.federated import FEDERATED
from g2d.vault.ledger import sha256
from g2d.vault.records import PLANTED
from g2d.vault.signing import SigningKey, require_source, sign_generation
from g2d.vault.sources import RENEWED_BY, ordered, source_of
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import digest, pack, unpack
from g2d.weights.codec import Codec

_WHY = 200  # characters of what a network raised
_MOST = 1e300  # JSON has no infinity


@dataclass(frozen=True, eq=False)
class Generation:
    """An accepted generation: its number, its manifest and its parameters."""

    number: int
    manifest: Mapping[str, Any]
    state: Mapping[str, Tensor]
    task: Task

    def model(self) -> nn.Module:
        """Build the generation's model in evaluation mode, its parameters frozen."""
        return load_model(self.task, self.state)

    def snapshot(self, layout: str = SECRET) -> Snapshot:
        """The generation as it is served: held in its layers' ranges, its memory watched.

        Args:
            layout: "secret" (`protect.layout`), or "plain": as in the file.
        """
        probe = self.task.splits.guide.x[:8] if is_secret(layout) else None
        model, device = self.task.model(0), self.task.device
        return build_snapshot(self.number, model, self.state, probe=probe, device=device)


class GenerationStore:
    """The generations of one vault. What is read is verified by digest, and kept in memory.

    Args:
        code: digests of the user's own code as it was loaded; None: as it is now. splits: what the
            attacks of the vault's present source point into; None: the task's.
    """

    def __init__(
        self,
        task: Task,
        vault: Vault,
        settings: Settings,
        code: Digests | None = None,
        splits: Splits | None = None,
    ) -> None:
        self.task, self.vault, self.settings = task, vault, settings
        # Now, not when one is signed: what is running is what was loaded, whatever the file says.
        self.code = digests(code_of(settings)) if code is None else code
        self._exposures: dict[int, Exposure] = {}
        self._states: dict[int, dict[str, Tensor]] = {}
        self._damaged: set[int] = set()
        self._source = vault.source
        self._splits = {self._source: splits or task.splits}
        self._told = False  # why no canaries were made

    def generation(self, number: int | None = None) -> Generation:
        """Read a generation, the live one by default.

        Raises:
            VaultError: there is none, or its files are not what the ledger says.
        """
        number = self.vault.live() if number is None else number
        if number is None:
            raise VaultError(f"{self.vault.path} has no generation yet; run `g2d fit` first")
        record = self.vault.generation(number)
        return Generation(number, record.manifest, self.state(number), self.task)

    def read_anew(self) -> Generation:
        """Read the live generation from the vault, whatever is kept in memory: memory may err."""
        number = self.vault.live()  # once: another may become live meanwhile
        if number is not None:
            self._states.pop(number, None)
        return self.generation(number)

    def state(self, number: int) -> dict[str, Tensor]:
        """A generation's state dict."""
        found = self._states.get(number)
        if found is None:
            found = self._states[number] = unpack(self.vault.read_generation(number))
            for old in sorted(self._states)[: -self.settings.gates.history - 1]:
                del self._states[old]  # perhaps this very one, which is older than what is kept
        return found

    def exposure(self, number: int, codec: Codec) -> Exposure:
        """Read an exposed generation with the attacks crafted on it."""
        if number in self._exposures:
            return self._exposures[number]
        pool = unpack(self.vault.read_generation(number, "attacks"), "attacks")
        splits, dtype = self._splits_of(number), self.task.splits.guide.x.dtype
        clean = splits.gate.take(pool["gate_index"])
        exposure = Exposure(
            number,
            codec.encode(self.state(number)),
            Split(pool["guide"].to(dtype), splits.guiding.y[pool["guide_index"]]),
            Split(pool["gate"].to(dtype), clean.y),
            clean,
        )
        self._exposures[number] = exposure
        for old in sorted(self._exposures)[: -max(1, self.settings.guidance.memory)]:
            del self._exposures[old]  # attacks are megabytes; what is forgotten is read again
        return exposure

    def _splits_of(self, number: int) -> Splits:
        """What a generation's attacks point into: the splits of the renewal it was made from."""
        source = source_of(self.vault.generation(number).manifest)
        if source not in self._splits:
            self._splits[source] = splits_of(self.task, self.vault, max(0, source))
        return self._splits[source]

    def sound(
        self,
        numbers: Sequence[int],
        codec: Callable[[], Codec],
        on_damage: Callable[[int, str], None],
    ) -> list[int]:
        """Those of the exposed generations that can be read, the newest with their attacks.

        Args:
            codec: called only where attacks are read. on_damage: called once for each that cannot
                be read.
        """
        found: list[int] = []
        for number in reversed(numbers):
            try:
                if len(found) < self.settings.guidance.memory:
                    self.exposure(number, codec())
                else:
                    self.state(number)
            except UnavailableError:
                raise
            except (VaultError, CheckpointError, KeyError) as error:
                if number not in self._damaged:
                    on_damage(number, str(error))
                self._damaged.add(number)
            else:
                found.insert(0, number)
        return found

    def accept(
        self, state: Mapping[str, Tensor], manifest: Mapping[str, Any], seed: int, activate: bool,
        cpu: float | None = None,
    ) -> Generation:  # fmt: skip
        """Craft a generation's attacks, once, and commit weights, attacks and manifest, signed.

        Args:
            seed: of the attacks. cpu: `time.process_time()` when its making began, for the record.
        """
        model, s, splits = load_model(self.task, state), self.settings, self.task.splits
        own = seed_of(seed, "attacks")
        guide, guide_index = craft_pool(
            self.task, model, splits.guiding, s.guidance.pool, s.guidance.pool_steps, own
        )
        gate, gate_index = craft_pool(
            self.task, model, splits.gate, s.gates.pool, s.gates.pool_steps, own + 1
        )
        attacks = {"guide": compact(guide, self.task), "guide_index": guide_index}
        attacks |= {"gate": compact(gate, self.task), "gate_index": gate_index}
        members = [entry.files["weights"] for entry in self.vault.entries("member")]
        full = dict(manifest) | {
            "task": self.task.name,
            "population": digest("".join(members).encode()),
            "settings": digest(s.to_toml(former=True).encode()),
        }
        if self._source:
            full |= {RENEWED_BY: self._source} | self._renewal()
        if (planted := self.vault.entry(PLANTED)) is not None:
            full[PLANTED] = planted.info["canaries"]
        if (base := self.vault.entry("base")) is not None and FEDERATED in base.info:
            full[FEDERATED] = base.info[FEDERATED]
        full |= stamp(self.vault, s)
        if self.code:
            full[CODE] = self.code
        full["figures"] = self._figures(model, gate, gate_index, full.get("gates", ()))
        files = {"weights": pack(state), "attacks": pack(attacks)}
        files |= self._canaries(model, seed, full)
        if (mark := self.mark()) is not None:
            full["figures"]["watermark"] = round(mark.share(model), 6)
            full[COMMITTED] = sha256(self.vault.commitment())
        if secret := secret_for(s):
            full["mark"] = fit_mark(self.task, state, secret, s.cluster.mark_drop)
        if cpu is not None:
            full["cpu_seconds"] = round(time.process_time() - cpu, 3)
        key = self.signing_key()
        if key is None:
            record = self.vault.accept(files, full, activate)
        else:
            lifetime = s.signing.lifetime
            record = sign_generation(
                self.vault, files, full, key, source=self.settings.source, lifetime=lifetime,
                activate=activate,
            )  # fmt: skip
        self.vault.retire_old(s.vault.keep, max(s.gates.history, s.guidance.memory) + 1)
        return Generation(record.number, record.manifest, dict(state), self.task)

    def _renewal(self) -> dict[str, Any]:
        """What a manifest says of the data that refreshes have added, and what was accepted."""
        entries = lineage(self.vault, self._source)
        accepted = sorted({name for e in entries for name in e.info.get("accepted", ())})
        if self.settings.privacy.enabled:  # a digest of records would tell who is among them
            return {"records": [entry.info["id"] for entry in entries]}
        records = {"records": [entry.files["weights"] for entry in entries]}
        return records | ({"accepted": accepted} if accepted else {})

    def _figures(
        self, model: nn.Module, attacks: Tensor, index: Tensor, gates: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """What a generation is worth, measured on the gate split, for its manifest.

        Returns:
            clean_accuracy; robust_accuracy on the attacks that are kept with it, if there are any,
            crafted on this very model by cheap PGD (an upper bound, no more); on how many examples
            each; worst stale ASR and least aligned distance, where its gates measured them; and
            pre_activations, the largest magnitude given to each polynomial layer, if it has some.
        """
        split, found = self.task.splits.gate, {g["gate"]: g for g in gates}
        measured = {name: gate["value"] for name, gate in found.items()}
        clean = predict(model, split.x).argmax(1) == split.y
        figures: dict[str, Any] = {
            "clean_accuracy": round(float(clean.double().mean()), 6),
            "examples": len(split),
        }
        if len(attacks):
            robust = clean[index] & (predict(model, attacks).argmax(1) == split.y[index])
            figures["robust_accuracy"] = round(float(robust.double().mean()), 6)
            figures["robust_examples"] = len(index)
        if largest := largest_inputs(model, split.x):  # an encrypted service looks at every layer's
            figures[PRE_ACTIVATIONS] = {k: min(v, _MOST) for k, v in largest.items()}
        if "robust" in measured:  # by the gate, on more examples
            figures["robust_accuracy"] = round(float(measured["robust"]), 6)
            figures["robust_examples"] = found["robust"].get("n", len(index))
        return figures | {n: measured[n] for n in ("stale_asr", "distance") if n in measured}

    def _canaries(self, model: nn.Module, seed: int, manifest: dict[str, Any]) -> dict[str, bytes]:
        """What shows changes of this generation to whoever can only ask; {}: nothing is wanted.

        A network need not take inputs that were moved, and may raise anything: no generation fails
        for that, its manifest says why it keeps none.
        """
        s = self.settings.canaries
        if not s.count:
            return {}
        try:
            made = make_canaries(self.task, model, s.count, s.steps, seed_of(seed, CANARIES))
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:_WHY]
            manifest[CANARIES] = f"none: {why}"
            if not self._told:
                text = f"no canaries are kept with generations of this task: {why}"
                warnings.warn(text, DataWarning, stacklevel=3)
            self._told = True
            return {}
        if not made:
            manifest[CANARIES] = "none: no input is answered clearly enough"
            return {}
        return {CANARIES: pack(made)}

    def check_keys(self) -> None:
        """Read the keys that the settings name, before anything is made; raises as those who do.

        Raises:
            VaultError: a rollback was asked for, and its source is still the one to be left.
        """
        if ordered(self.vault):
            raise VaultError(
                f"a rollback of {self.vault.path} waits for a service that has gone: run `g2d"
                f" rollback {self.vault.path}` once more"
            )
        self.signing_key()
        self.mark()
        secret_for(self.settings)

    def mark(self) -> Mark | None:
        """The triggers that the settings' watermark key gives; None: the vault has no watermark.

        Raises:
            KeyFileError: the key cannot be read, or is not the one that the vault committed to.
        """
        return Mark.of(self.settings.watermark, self.task, self.vault.path)

    def signing_key(self) -> SigningKey | None:
        """Read the key that the settings name; None if generations are not signed.

        Raises:
            KeyFileError: it cannot be used; an unsigned generation is not made in its place.
            VaultError: the vault's settings name other code by now than what was loaded.
        """
        if not (path := self.settings.signing.key):
            return None
        require_source(self.vault, self.settings.source)
        return SigningKey.read(confirmed_key(self.vault, path))
