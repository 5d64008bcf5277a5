"""Settings of `[privacy]`: what anybody may learn of one record. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from g2d.settings.fields import Checked, free, one_of, within

PRIVATE, PUBLIC = "private", "public"


@dataclass(frozen=True)
class PrivacySettings(Checked):
    """Differential privacy of everything that a vault releases; docs/privacy.md."""

    enabled: bool = free(False, "train with differential privacy, and keep a ledger", since="0.2")
    epsilon: float = within(
        1e-3, 1e3, 3.0, "the budget of a block of data, for all that is ever released", since="0.2"
    )
    delta: float = within(
        1e-12, 0.1, 1e-5, "at which delta epsilon is meant; below one in all records", since="0.2"
    )
    records: int = within(
        0, 10**12, 0, "about how many records there are: a public number, never counted",
        since="0.2",
    )  # fmt: skip
    batch: int = within(1, 10**7, 1024, "records a step, in expectation", since="0.2")
    noise: float = within(
        0.0, 1e4, 1.5, "standard deviation of the base's noise, in clips", since="0.2"
    )
    fork_noise: float = within(0.0, 1e4, 3.0, "the same, of each private fork", since="0.2")
    clip: float = within(
        1e-6, 1e6, 0.5, "longest gradient of one record, Euclidean; longer are cut", since="0.2"
    )
    steps: int = within(1, 10**7, 700, "private steps of the base", since="0.2")
    # At the 0.003 that suits plain training MNIST lost 5 points, NSL-KDD a half (docs/privacy.md).
    rate: float = within(
        1e-8, 10.0, 1e-2, "Adam's peak learning rate of those; [population] rate is of plain ones",
        since="0.2",
    )  # fmt: skip
    public_steps: int = within(
        0, 10**7, 0, "plain steps on public data, with [population] rate, before those",
        since="0.2",
    )  # fmt: skip
    forks: str = one_of(
        (PRIVATE, PUBLIC), PRIVATE,
        "what forks learn: people's records, charged; or public data and the base's answers, free",
        since="0.2",
    )  # fmt: skip
    soft: float = within(
        0.0, 1.0, 0.9, "public forks: share of the base's answers in the loss; labels get the rest",
        since="0.2",
    )  # fmt: skip
    fork_steps: int = within(1, 10**7, 30, "private steps of each private fork", since="0.2")
    against: int = within(
        0, 1000, 1, "released networks that a fork learns attacks on, in each step", since="0.2"
    )
    against_steps: int = within(1, 1000, 3, "PGD steps of those attacks", since="0.2")
    unit: str = free(
        "record", "what is protected: 'record', or a column whose equal values are one person",
        since="0.2",
    )  # fmt: skip
    public: str = free(
        "", "folder of public data, for guidance, gates and attack pools",
        metavar="FOLDER", since="0.2",
    )  # fmt: skip
    # Not "gates", which is a section.
    gating: str = one_of(
        ("public", "noisy", "sparse"), "public",
        "what gates judge on: public data, noisy counts, or a sparse vector", since="0.2",
    )  # fmt: skip
    gate_drop: float = within(
        0.0, 1.0, 0.03, "noisy, sparse: share of people's held records that may be lost",
        since="0.2",
    )  # fmt: skip
    gate_noise: float = within(
        1e-3, 1e9, 50.0, "noisy: standard deviation of a count, in records", since="0.2"
    )
    gate_scale: float = within(
        1e-3, 1e9, 10.0, "sparse: Laplace scale of the limit, in records; a rejection costs 2 / it",
        since="0.2",
    )  # fmt: skip
