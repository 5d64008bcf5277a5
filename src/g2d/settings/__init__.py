"""Every setting of a defence: frozen dataclasses, read from and written to one TOML file.

An unknown key is an error that suggests the nearest name; a value out of range says what its range
is. A setting that was renamed says `was`: people's files are told the new name, a vault's own file
is understood, and digests go on using the former one. A setting that came after the first release
says `since`: digests leave it out at its default, so that older vaults go on. Knows no torch.
"""

from __future__ import annotations

import dataclasses
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from g2d.errors import SettingsError
from g2d.settings.federated import FederatedSettings
from g2d.settings.fields import Checked, as_toml, build, free, one_of, stored, within
from g2d.settings.growing import GrowthSettings
from g2d.settings.monitoring import MonitorSettings
from g2d.settings.ownership import CanarySettings, ClusterSettings, WatermarkSettings
from g2d.settings.privacy import PrivacySettings
from g2d.settings.refreshing import RefreshSettings
from g2d.settings.serve import ServeSettings

_MOST = 1 << 24  # bytes of a settings file


@dataclass(frozen=True)
class TaskSettings(Checked):
    """What is defended: a built-in task or `module:factory`, its data and its attack budget."""

    name: str = free(
        "digits",
        "digits, mnist, mnist-robust, cifar10, nsl-kdd, digits-he, mnist-he or 'module:factory'",
    )
    data: str = free("", "folder that holds the data (not of digits)", metavar="FOLDER")
    eps: float = within(0.0, 1e6, 0.0, "attack budget, L-infinity norm; 0: the task's own")
    split_seed: int = within(0, 2**31 - 1, 0, "seed of the train/guide/gate split")
    device: str = one_of(
        ("auto", "cpu", "cuda", "mps"), "cpu", "where networks are trained and run", since="0.2"
    )
    origin: str = free("", "'module:function' that made a Task given as an object", since="0.2")
    made_in: str = free("", "file of that function, or why none is known", since="0.2")


@dataclass(frozen=True)
class PopulationSettings(Checked):
    """How the population of checkpoints is made."""

    recipe: str = one_of(
        ("repelled", "forks", "seeds"), "repelled", "where members begin and what repels them"
    )
    members: int = within(2, 100_000, 64, "number of checkpoints")
    basins: int = within(1, 1000, 6, "independent early checkpoints that members are forked from")
    base_steps: int = within(1, 10**7, 3500, "optimiser steps of the base, the model to defend")
    early_steps: int = within(
        0, 10**7, 1000, "optimiser steps of a basin's early checkpoint; 0: the base is the basin"
    )
    fork_steps: int = within(1, 10**7, 600, "optimiser steps of a fork")
    light_eps: float = within(
        0.0, 1.0, 0.5, "budget of repelled members' light FGSM, as a share of eps; 0: off",
        was="harden",
    )  # fmt: skip
    batch: int = within(1, 10**6, 128, "examples a step (as many again of attacks, if repelled)")
    rate: float = within(1e-8, 10.0, 3e-3, "Adam's peak learning rate; warm-up, then linear decay")
    trunk: bool = free(True, "repelled forks begin at their basin's latest member, not its first")
    fork_rate: float = within(1e-8, 10.0, 2e-3, "Adam's peak learning rate of the forks")
    sources: int = within(1, 1000, 12, "earlier members whose attacks a repelled fork trains on")
    pool: int = within(1, 10**7, 2000, "attacks crafted on each member")
    pool_steps: int = within(1, 1000, 7, "PGD steps of those attacks")
    workers: int = within(0, 1024, 0, "worker processes, one thread each; 0: one per core")
    seed: int = within(0, 2**31 - 1, 0, "seed of everything the population draws")


@dataclass(frozen=True)
class HardenSettings(Checked):
    """How base and members are hardened while they are trained; docs/hardening.md."""

    recipe: tuple[str, ...] = free(
        (),
        "of each step, as listed: l2, clamp, distil, adversarial, watermark, your 'module:name'",
    )
    method: str = one_of(("pgd", "trades", "fgsm"), "pgd", "adversarial: how attacks are learned")
    norm: str = one_of(("inf", "2"), "inf", "adversarial: the norm of its ball")
    eps: float = within(0.0, 1e6, 0.0, "adversarial: its budget; 0: the task's own (norm inf)")
    steps: int = within(1, 1000, 7, "pgd, trades: gradient steps of an attack")
    step_size: float = within(0.0, 10.0, 0.0, "pgd, trades: as a share of eps; 0: 2.5 / steps")
    ramp: float = within(0.0, 1.0, 0.3, "share of a training from scratch over which eps rises")
    clean: float = within(0.0, 1e4, 0.0, "fgsm, pgd: weight of clean inputs beside the attacked")
    stale: float = within(0.0, 1e4, 1.0, "repelled members: weight of attacks on other members")
    beta: float = within(0.0, 1e4, 6.0, "trades: weight of the robust term")
    checks: int = within(0, 10_000, 10, "looks at the guide split in a training; 0: none")
    patience: int = within(0, 10_000, 0, "looks without a better one that end a training; 0: off")
    guard: str = one_of(("switch", "stop", "off"), "switch", "when fgsm overfits: use pgd, or stop")
    decay: float = within(0.0, 10.0, 5e-3, "l2: decoupled weight decay")
    penalty: float = within(0.0, 10.0, 0.0, "l2: weight of the plain penalty, half the sum of w^2")
    clamp: float = within(2.0, 1e6, 4.0, "clamp: largest weight, in its layer's root mean squares")
    teacher: str = free("", "distil: the teacher's vault, or its checkpoint")
    teacher_model: str = free("", "distil: 'module:function' that builds a checkpoint's model")
    temperature: float = within(0.01, 1000.0, 1.0, "distil: of the soft labels")
    soft: float = within(0.0, 1.0, 1.0, "distil: weight of soft labels; the rest is of the labels")


@dataclass(frozen=True)
class GeneratorSettings(Checked):
    """What candidates are drawn from."""

    space: str = free(
        "diffusion", "latent space: diffusion, soup, or your own 'module:Class'", since="0.2"
    )
    bank: int = within(0, 10**7, 0, "attacks on members that it keeps for polish", since="0.2")


@dataclass(frozen=True)
class AutoencoderSettings(Checked):
    """The weight autoencoder (docs/method.md)."""

    scope: tuple[str, ...] = free((), "name patterns of the tensors in scope; empty: all")
    align: bool = free(False, "permute hidden units onto the first member before fitting")
    newest_share: float = within(
        0.01, 1.0, 0.5, "which share of each basin's repelled members to fit on", was="newest"
    )
    latent: int = within(0, 100_000, 0, "latent dimensions; 0: one per direction of the population")
    width: int = within(1, 65_536, 256, "hidden width of encoder and decoder")
    sigma: float = within(0.0, 100.0, 0.1, "std of the noise on V, in units of a basin's spread")
    rho: float = within(0.0, 100.0, 0.3, "std of the noise on Z (standardised latents)")
    mixture: float = within(0.0, 100.0, 1.0, "width of basin mixtures to train on; 0: members only")
    behaviour: float = within(0.0, 1e6, 1.0, "weight of the behavioural term")
    steps: int = within(0, 10**7, 1500, "optimiser steps")
    behaviour_every: int = within(1, 10**6, 5, "every how many steps the behavioural term is used")
    batch: int = within(1, 10**6, 64, "members a step")
    rate: float = within(1e-8, 10.0, 1e-3, "Adam's learning rate")


@dataclass(frozen=True)
class DiffusionSettings(Checked):
    """The latent diffusion model (Ho et al. 2020; docs/method.md)."""

    timesteps: int = within(2, 100_000, 1000, "T of the forward process")
    schedule: str = one_of(("cosine", "linear"), "cosine", "shape of beta_t")
    width: int = within(1, 65_536, 128, "hidden width of the denoiser")
    depth: int = within(1, 64, 3, "residual blocks of the denoiser")
    steps: int = within(1, 10**7, 12_000, "optimiser steps")
    batch: int = within(1, 10**6, 128, "latents a step")
    rate: float = within(1e-8, 10.0, 2e-3, "Adam's peak learning rate")
    ema: float = within(0.0, 0.999999, 0.999, "decay of the moving average of the weights")
    distance_weight: float = within(
        0.0, 1e6, 0.0, "lambda of the distance regulariser; 0: plain DDPM", was="distance"
    )
    margin: float = within(0.0, 1e6, 1.0, "the regulariser's bound on relative L1 distance")
    reference: str = one_of(("base", "population"), "base", "what the regulariser leaves")
    sampler: str = one_of(("ddim", "ddpm"), "ddim", "reverse process")
    sampler_steps: int = within(1, 100_000, 25, "steps of the DDIM sampler")


@dataclass(frozen=True)
class GuidanceSettings(Checked):
    """Repelling guidance: during the reverse process, after it, and in full weight space."""

    memory: int = within(0, 1000, 16, "W: how many last exposed generations are repelled")
    conditioned: bool = free(False, "condition the denoiser on the exposed set (amortised)")
    pool: int = within(1, 10**7, 1500, "attacks crafted on each accepted generation")
    pool_steps: int = within(1, 1000, 7, "PGD steps of those attacks")
    mu: float = within(0.0, 1e4, 2.0, "weight of the stale-attack term")
    adapt: bool = free(
        False, "halve mu for the next candidate where one fails for accuracy alone", since="0.2"
    )
    robust_weight: float = within(
        0.0, 1e4, 0.0, "weight of PGD on the candidate itself; 0: off", was="robust"
    )
    robust_steps: int = within(1, 1000, 5, "PGD steps of that term")
    robust_eps: float = within(0.0, 1e6, 0.0, "its budget, norm inf; 0: the task's own")
    temperature: float = within(1e-3, 1e4, 0.5, "softmax temperature over exposures' losses")
    newest_weight: float = within(
        1e-3, 1e4, 4.0, "how much more often the newest exposure is drawn", was="newest"
    )
    batch: int = within(1, 10**6, 128, "clean examples a step, and as many attacks")
    particles: int = within(1, 10_000, 32, "samples that start a candidate; the best goes on")
    resting: bool = free(False, "start in the basin whose exposure lies farthest back", since="0.2")
    reverse_steps: int = within(0, 10_000, 5, "guided steps inside the reverse process")
    latent_steps: int = within(0, 100_000, 20, "guided steps on the finished latent")
    latent_rate: float = within(1e-8, 100.0, 0.15, "Adam's learning rate of the latent steps")
    prior: float = within(0.0, 1e6, 1e-3, "weight of the pull back to the latent's start")
    polish_steps: int = within(0, 10**6, 150, "Adam steps in full weight space")
    polish_rate: float = within(1e-8, 10.0, 2e-3, "their peak learning rate, decayed to zero")
    joint_weight: float = within(
        0.0, 1e4, 0.0, "polish: weight of a joint attack on the basin's exposures", since="0.2"
    )
    joint_pool: int = within(1, 10**7, 1000, "examples of that attack", since="0.2")
    joint_steps: int = within(1, 1000, 10, "its steps, four networks each", since="0.2")
    bank_weight: float = within(
        0.0, 1e4, 0.0, "polish: weight of attacks on members, of which see [generator] bank",
        since="0.2",
    )  # fmt: skip
    base_weight: float = within(
        0.0, 1e4, 0.0, "weight of the base's answers on mixtures of clean inputs; 0: off",
        since="0.2",
    )  # fmt: skip
    extra: tuple[str, ...] = free((), "terms of your own, each a 'module:function'", since="0.2")


@dataclass(frozen=True)
class GateSettings(Checked):
    """What a candidate must pass, all on the gate split (docs/method.md)."""

    accuracy_drop: float = within(0.0, 1.0, 0.01, "accuracy that may be lost against the base")
    class_drop: float = within(0.0, 1.0, 0.05, "accuracy that any one class may lose")
    confidence: float = within(0.5, 0.9999, 0.95, "confidence of the accuracy bound")
    distance: float = within(0.0, 1e6, 0.02, "least aligned relative L1 to each exposed generation")
    history: int = within(1, 10**6, 100, "how many last exposed generations that distance counts")
    stale_asr: float = within(0.0, 1.0, 0.35, "largest stale ASR of any remembered exposure")
    robust: float = within(0.0, 1.0, 0.0, "least accuracy under PGD on itself; 0: not asked for")
    stale_share: float = within(0.0, 1.0, 0.0, "worst stale ASR by own ASR; 0: off", since="0.2")
    basin_rest: int = within(0, 10**6, 0, "rotations since its basin was exposed", since="0.2")
    pre_activation: float = within(
        0.0, 1e6, 3.0, "largest input of polynomial layers, in the base's; 0: off", since="0.2"
    )
    backdoor: float = within(
        0.0, 1.0, 0.0, "least smallest trigger, by the median class's; 0: no scan", since="0.2"
    )
    pool: int = within(1, 10**6, 256, "gate-split attacks for each exposure and each gate")
    pool_steps: int = within(1, 1000, 10, "PGD steps of those attacks")
    attempts: int = within(1, 1000, 4, "candidates tried before generation is given up")
    extra: tuple[str, ...] = free((), "gates of your own, each a 'module:function'", since="0.2")


@dataclass(frozen=True)
class SigningSettings(Checked):
    """How accepted generations are signed, on the generating side."""

    key: str = free("", "file of the private key that signs generations; empty: unsigned")
    lifetime: float = within(1e-6, 36_500.0, 30.0, "days until a signed generation expires")


@dataclass(frozen=True)
class VaultSettings(Checked):
    """How much of what was is kept."""

    keep: int = within(
        1, 10**9, 1000, "generations that keep weights and attacks; older ones: digests alone",
        since="0.2",
    )  # fmt: skip


@dataclass(frozen=True)
class Settings(Checked):
    """All settings of one vault."""

    task: TaskSettings = field(default_factory=TaskSettings)
    population: PopulationSettings = field(default_factory=PopulationSettings)
    harden: HardenSettings = field(default_factory=HardenSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    gates: GateSettings = field(default_factory=GateSettings)
    signing: SigningSettings = field(default_factory=SigningSettings)
    vault: VaultSettings = field(default_factory=VaultSettings)
    watermark: WatermarkSettings = field(default_factory=WatermarkSettings)
    canaries: CanarySettings = field(default_factory=CanarySettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)
    monitors: MonitorSettings = field(default_factory=MonitorSettings)
    refresh: RefreshSettings = field(default_factory=RefreshSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    growth: GrowthSettings = field(default_factory=GrowthSettings)
    federated: FederatedSettings = field(default_factory=FederatedSettings)

    @property
    def source(self) -> str:
        """The task's name, and with its section that of every object of the user's own.

        A signed generation binds it: opening a vault imports what its settings name.
        """
        own = [f"gates={name}" for name in self.gates.extra]
        own += [f"guidance={name}" for name in self.guidance.extra]
        own += [f"generator={self.generator.space}"] if ":" in self.generator.space else []
        own += [f"origin={self.task.origin}"] if self.task.origin else []
        return " ".join((self.task.name, *own))

    @property
    def own_code(self) -> dict[str, str]:
        """The module of each object of the user's own that `source` names, by what it is for."""
        task = self.task.name if ":" in self.task.name else self.task.origin
        named = {"task": task, "generator": self.generator.space}
        named |= {f"gates={name}": name for name in self.gates.extra}
        named |= {f"guidance={name}": name for name in self.guidance.extra}
        return {part: name.partition(":")[0] for part, name in named.items() if ":" in name}

    @classmethod
    def from_toml(cls, text: str, where: str = "settings") -> Settings:
        """Read settings from TOML text; `where` names the source in errors."""
        return build(cls, _parsed(text, where), where)

    @classmethod
    def from_vault(cls, text: str, where: str = "task.toml") -> Settings:
        """Read the settings that a vault keeps, whichever version of G2D wrote them."""
        return build(cls, _parsed(text, where), where, stored=True)

    @classmethod
    def from_file(cls, path: Path, *, stored: bool = False) -> Settings:
        """Read settings from a TOML file: a person's, or the one that a vault keeps (`stored`)."""
        try:
            about = path.stat()  # it is the user's own; what a vault keeps is read by the vault
            if not stat.S_ISREG(about.st_mode) or about.st_size > _MOST:
                raise OSError(f"it is no plain file of at most {_MOST} bytes")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read the settings file {path}: {error}") from error
        return cls.from_vault(text, str(path)) if stored else cls.from_toml(text, str(path))

    def to_toml(self, *, former: bool = False) -> str:
        """Write every setting, so that `from_toml(s.to_toml()) == s`; `former`: as for digests."""
        lines: list[str] = []
        for name, part in vars(self).items():
            if values := stored(part) if former else vars(part):
                lines += [f"[{name}]", *(f"{k} = {as_toml(v)}" for k, v in values.items()), ""]
        return "\n".join(lines)

    def override(self, **changes: Any) -> Settings:
        """Return a copy with `section__name=value` replaced; `None` values are left alone."""
        tables: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            if value is None:
                continue
            section, _, name = key.partition("__")
            tables.setdefault(section, {})[name] = value
        merged = _as_tables(self)
        for section, table in tables.items():
            merged.setdefault(section, {}).update(table)
        return build(Settings, merged, "command line")


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise SettingsError(f"{where} is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{where} is not valid TOML: {error}") from error


def _as_tables(settings: Settings) -> dict[str, dict[str, Any]]:
    return {name: dict(table) for name, table in dataclasses.asdict(settings).items()}


__all__ = [
    "AutoencoderSettings",
    "CanarySettings",
    "ClusterSettings",
    "DiffusionSettings",
    "GateSettings",
    "GeneratorSettings",
    "GrowthSettings",
    "GuidanceSettings",
    "HardenSettings",
    "MonitorSettings",
    "PopulationSettings",
    "PrivacySettings",
    "RefreshSettings",
    "ServeSettings",
    "Settings",
    "SigningSettings",
    "TaskSettings",
    "VaultSettings",
    "WatermarkSettings",
    "build",
    "stored",
]
