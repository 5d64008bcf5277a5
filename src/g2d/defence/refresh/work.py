"""A refresh: of new records a challenger is made, short forks of members that learn them, too.

Everything is made in a folder inside the vault, fork by fork, while others may write the vault: a
run that is killed goes on where it stopped, and the vault stays as it was until `taking_up`.
"""

from __future__ import annotations

import math
import secrets
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from g2d.core.engine import Engine
from g2d.core.types import Progress, Say, silent, unsaid
from g2d.defence.defence import Defence
from g2d.defence.members import fit_generator, fitted_members, identity_of, noted
from g2d.defence.privacy.charging import Charger, blocks_due
from g2d.defence.privacy.stamps import stamp
from g2d.defence.refresh.forks import Forks
from g2d.defence.refresh.judging import Judged, refuse, trial
from g2d.defence.refresh.taking_up import (
    READY,
    made_for,
    staged_in,
)
from g2d.defence.renewal import records_of
from g2d.defence.staging import staging
from g2d.errors import DataError, PopulationError, VaultError
from g2d.settings import Settings
from g2d.tasks.keyed import (
    KEY_BYTES,
    Sorted,
    digest_of,
    pack_records,
    sort_records,
    unpack_records,
)
from g2d.tasks.source import Grown, travels, unrenewed, with_records
from g2d.tasks.splits import Split
from g2d.training.charging import free
from g2d.vault.basins import retired_of
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import unpack

LEAST = 16
"""Records that each side needs: fewer show neither what was learned nor what is wrong with them."""

UNCHECKED = (
    "the new records are not looked at for poison: in private mode the checks would tell of single"
    " ones. What one record can do is bounded by its clipped and noisy gradient; what many can do,"
    " only by gates on public data"
)


@dataclass(frozen=True)
class Told:
    """What a refresh found and did.

    Attributes:
        known: the data are those that the vault's source was refreshed with last; nothing was made.
        lines: a line of each check. forks: how many networks were forked, of `steps` each. cpu:
            seconds of those trainings. accepted: checks that had failed and were overridden.
    """

    known: bool = False
    lines: tuple[str, ...] = ()
    forks: int = 0
    steps: int = 0
    cpu: float = 0.0
    accepted: tuple[str, ...] = ()


@dataclass
class Refresh:
    """How a refresh is to be made.

    Attributes:
        engine: where forks are trained. accept: go on although checks fail; that is noted in the
            ledger and in the manifest of every generation. anew: drop what an unfinished refresh
            with other data has left.
    """

    engine: Engine
    progress: Progress = silent
    say: Say = unsaid
    accept: bool = False
    anew: bool = False
    lines: list[str] = field(default_factory=list)

    def tell(self, line: str) -> None:
        """Say a line, and keep it for the end."""
        self.lines.append(line)
        self.say(line)


def refresh(defence: Defence, given: Split, how: Refresh) -> Told:
    """Make a challenger of a defence on new records; it is ready to be taken up afterwards.

    Args:
        defence: may be open for reading alone. given: validated records (`tasks.labelled`).

    Raises:
        DataError: too few records are new, or a check refuses them (`accept` overrides).
        GenerationError: no candidate of the new generator passes the gates on old and new data.
        PopulationError, VaultError: there is nothing to fork from, or the folder cannot be used.
        PrivacyError: the budget of old or new records does not cover the forks.
    """
    vault, digest = defence.vault, digest_of(given)
    _check_there(defence)
    last = vault.entry("records")
    if vault.source and last is not None and last.info.get("given") == digest:
        return Told(known=True)
    with _staging(vault, digest, how) as staged:
        records = staged.entry("records")
        if records is None:
            key = _key(vault)
            found = sort_records(given, key, defence.task.splits)
            _check_enough(found)
            how.tell(_counted(found))
            _keep_records(staged, vault, found, digest, key)
        else:
            found = Sorted(unpack_records(staged.read(records)))
        return _challenge(defence, staged, found, how)


def _challenge(defence: Defence, staged: Vault, found: Sorted, how: Refresh) -> Told:
    """Fork, look for poison, fit and try; what is there already is not made again."""
    vault, settings = defence.vault, defence.settings
    records = staged.entry("records")
    assert records is not None, "records are kept first"
    data = staged.read(records)
    named, grown = unrenewed(defence.source), with_records(defence.task, [data])
    source = Grown(named, (*records_of(vault, vault.source), data)) if travels(named) else grown
    judged = Judged(defence, found, grown)
    private = settings.privacy.enabled
    if private:
        how.tell(UNCHECKED)
    effort = settings.refresh.effort
    failed = [] if private else refuse(judged.before(), how, effort)
    charge = Charger.of(vault, settings, blocks_due(vault, records))
    forks = Forks(source, vault, staged, settings, defence.task, charge or free)
    cpu = forks.train(how.engine, how.progress)
    members = staged.entries("member")
    failed += [] if private else refuse(judged.after(staged, how.progress), how, effort)
    base = staged.entry("base")
    assert base is not None, "the base is forked first"
    retired = retired_of(vault)
    generator = fit_generator(
        grown, staged, shortened(settings), members, unpack(staged.read(base)), how.progress,
        retired,
    )  # fmt: skip
    trial(defence, grown, staged, generator, how.progress)
    fitted = fitted_members(members, settings.autoencoder.newest_share)
    info = {
        "identity": identity_of(fitted, settings, retired), **noted(retired),
        READY: True, "accepted": failed, "checks": [check.entry() for check in judged.found],
        "finished": time.time(), **stamp(vault, settings),
    }  # fmt: skip
    staged.put("generator", 0, {"weights": generator.to_bytes()}, info)
    return Told(False, tuple(how.lines), len(members) + 1, forks.steps, cpu, tuple(failed))


def shortened(settings: Settings) -> Settings:
    """Settings whose fits take the share of their steps that a refresh gives them."""
    share, coder, latent = settings.refresh.fit, settings.autoencoder, settings.diffusion
    return settings.override(
        autoencoder__steps=math.ceil(share * coder.steps),  # it may have none
        diffusion__steps=math.ceil(share * latent.steps),
    )


def _check_there(defence: Defence) -> None:
    """Refuse a vault that has no whole population and generator yet."""
    vault, members = defence.vault, defence.vault.entries("member")
    if vault.entry("generator") is None or vault.live() is None:
        raise VaultError(f"{vault.path} has no generator yet; run `g2d fit {vault.path}` first")
    if len(members) < 2:
        raise PopulationError(f"{vault.path} has no population to refresh; run `g2d population`")


def _check_enough(found: Sorted) -> None:
    """Refuse records of which too few are new, or that are of one class on a side."""
    counts = {name: len(split) for name, split in found.sides.items()}
    shown = ", ".join(f"{count} for {name}" for name, count in counts.items())
    if min(counts.values()) < LEAST:
        raise DataError(
            f"too few of the records are new: {shown} ({_left_out(found) or 'none left out'}); "
            f"each side needs {LEAST}, so give some {round(LEAST / 0.2 * 1.5)} or more"
        )
    if len(found.sides["train"].y.unique()) < 2:
        raise DataError(
            "the new records to train on are all of one class: a refresh on one class alone would "
            "teach the network to forget the others; give records of at least two"
        )


def _counted(found: Sorted) -> str:
    sides = ", ".join(f"{len(split)} {name}" for name, split in found.sides.items())
    left = _left_out(found)
    return f"records: {len(found)} new ({sides})" + (f"; {left}" if left else "")


def _left_out(found: Sorted) -> str:
    left = []
    if found.known:
        other = f", {found.relabelled} with another label" if found.relabelled else ""
        left.append(f"{found.known} known already{other}")
    if found.repeated:
        left.append(f"{found.repeated} given twice")
    if found.contradicted:
        left.append(f"{found.contradicted} with several labels")
    return "left out: " + ", ".join(left) if left else ""


# --- the folder inside the vault -----------------------------------------------------------------


def _staging(vault: Vault, digest: str, how: Refresh) -> AbstractContextManager[Vault]:
    """The folder where a refresh waits."""
    return staging(
        vault, staged_in(vault), lambda staged: _goes_on(staged, vault, digest, how),
        anew=how.anew, busy=f"another refresh of {vault.path} is running",
        left=f"what an unfinished refresh of {vault.path}",
    )  # fmt: skip


def _goes_on(staged: Vault, vault: Vault, digest: str, how: Refresh) -> bool:
    """Whether a challenger that waits is of these data and of what the source is now."""
    records = staged.entry("records")
    if records is None or how.anew:
        return False
    if not made_for(records, vault):
        how.tell("an unfinished refresh was of a former population: it is begun anew")
        return False
    if records.info.get("given") != digest:
        raise VaultError(
            f"an unfinished refresh of {vault.path} with other data waits: give those once more to "
            "go on with it, or --anew to drop it"
        )
    staged.delete("generator")  # it is judged anew: what is refused this time, nobody takes up
    return True


def _key(vault: Vault) -> bytes:
    """The key that sorts records: drawn once, at the first refresh of a vault."""
    for row in reversed(vault.sources()):
        entry = vault.entry("records", source=row["source"]) if row["source"] else None
        if entry is not None:
            return bytes.fromhex(entry.info["key"])
    return secrets.token_bytes(KEY_BYTES)


def _keep_records(staged: Vault, vault: Vault, found: Sorted, digest: str, key: bytes) -> None:
    generator = vault.entry("generator")
    assert generator is not None, "it was looked for"
    info = {
        "id": secrets.token_hex(16),
        "given": digest, "parent": vault.source, "vault": vault.identity,
        "generator": generator.files["weights"], "key": key.hex(),
        "counts": {name: len(split) for name, split in found.sides.items()},
    }  # fmt: skip
    staged.put("records", 0, {"weights": pack_records(found)}, info)
