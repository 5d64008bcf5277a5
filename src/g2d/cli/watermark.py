"""The commands `g2d watermark new|add|verify|check`: keys, marking, asking a suspect, claims.

Thin, like `main`, and as lazy. What keys, commitments and claims are is in `protect.watermark`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2d.cli.console import print_line, say
from g2d.cli.flags import Given, Set, merged, read_changes, with_flags
from g2d.cli.shared import (
    AcceptCode,
    Ca,
    ClientCert,
    KeyCustodian,
    TaskPath,
    TokenFile,
    VaultPath,
    code_to_load,
    configure_torch,
    made_custodian,
    prepare,
    task_path_again,
    vault_settings,
)
from g2d.cli.watermark_add import add
from g2d.errors import ClaimError, G2DError, SuspectError
from g2d.settings import Settings

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from g2d.protect.watermark.commitment import Commitment, Dated
    from g2d.protect.watermark.proof import Proof
    from g2d.protect.watermark.suspects import ModelSuspect, ServiceSuspect
    from g2d.protect.watermark.verification import Outcome
    from g2d.tasks.builtin import Blueprint
    from g2d.vault.keys import VerifyKey

app = typer.Typer(
    name="watermark",
    help="Whose weights are these? A mark that only your key explains, and how it is proven.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Roots = Annotated[
    Path | None,
    typer.Option(
        "--tsa",
        metavar="FILE",
        help="Root certificate (PEM) of the timestamp server; else the system's.",
    ),
]
Signer = Annotated[
    Path | None,
    typer.Option(metavar="PUB", help="Public key file: one of its keys must have signed."),
]
KeyOut = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="Else ~/.config/g2d/watermark-IDENTITY.key."),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE.toml", help="Settings; flags override them."),
]
KeyOrClaim = Annotated[
    Path, typer.Argument(metavar="KEY|CLAIM", help="A watermark key, or somebody's claim.")
]
Model = Annotated[
    Path | None, typer.Option("--model", metavar="FILE", help="The suspect: a checkpoint.")
]
Service = Annotated[
    str | None,
    typer.Option("--service", metavar="URL", help="The suspect: a service, Open Inference v2."),
]
TaskName = Annotated[
    str,
    typer.Option(
        "--task", metavar="NAME", help="Whose model a checkpoint is of; else the vault's."
    ),
]
OfVault = Annotated[
    Path | None, typer.Option("--vault", metavar="VAULT", help="The marked vault, or a copy.")
]
Place = Annotated[
    int | None,
    typer.Option("--set", min=0, help="Set of triggers; else one it knows, or the first unburnt."),
]
FreshSet = Annotated[
    bool,
    typer.Option("--fresh-set", help="Show this suspect another set than the one that it knows."),
]
AcceptLate = Annotated[
    bool,
    typer.Option("--accept-late", help="Of a claim: what was made before its commitment counts."),
]
AcceptOwnDate = Annotated[
    bool,
    typer.Option("--accept-own-date", help="Of a claim: believe a date that nobody signed."),
]
Suspects = Annotated[
    int | None,
    typer.Option("--suspects", min=1, help="How many were looked at (Bonferroni); else recorded."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="CLAIM.json", help="Write a claim for a neutral party."),
]
Labels = Annotated[
    str,
    typer.Option("--labels", metavar="NAME,..", help="The classes in order, if it answers names."),
]


@app.command()
@with_flags(
    Settings,
    into="given",
    names={
        "task": "task__name",
        "data": "task__data",
        "sets": "watermark__sets",
        "triggers": "watermark__triggers",
        "timestamp": "watermark__timestamp",
    },
    defaults=False,
)
def new(
    vault: VaultPath,
    given: Given,
    key: KeyOut = None,
    custodian: KeyCustodian = "",
    settings: SettingsFile = None,
    changes: Set = None,
    tsa: Roots = None,
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Draw a watermark key and commit to it, in a new vault or before its first parameters."""
    flags = merged(given, read_changes(changes or ()))
    there = (vault / "ledger.sqlite").exists()
    if not there and settings is None and "task__name" not in flags:
        raise G2DError(f"there is no vault at {vault}: check the path, or name the task of a new"
                       " one with --task")  # fmt: skip
    if there:
        _refuse_second(vault)
    defence, _ = prepare(vault, settings, flags, accept_code, marked=True)
    from g2d.protect.watermark.form import InputForm
    from g2d.protect.watermark.publishing import publish

    with defence:
        form = InputForm.of(defence.task)
        roots = _roots(tsa)
        opener = made_custodian(custodian)
        path, published = publish(defence.vault, defence.settings, form, key, roots, opener)
        began = defence.vault.begun()
    commitment = published.commitment
    print_line(f"key          {path} (mode 600; back it up: nothing is proven without it)")
    print_line(f"commitment   {vault / 'watermark.json'}, with a copy beside the key")
    _print_commitment(commitment, published.verify(commitment.created, roots=roots))
    if not commitment.signer:
        print_line(
            "It is unsigned, so that anybody who sees it can pass it off as his own, with an"
        )
        print_line(f"earlier date: have a key sign for a vault first (`g2d keys use {vault}`).")
    if commitment.late:
        print_line(f"It is {commitment.late}, so that nothing there carries the mark yet. Until")
        print_line("`g2d watermark add` no generation passes its gate: what is live goes on.")
    print_line("Publish the commitment now: the earlier others have seen it, the more it proves.")
    again = task_path_again(task_path)
    print_line(f"Next: g2d {'watermark add' if began else 'population'} {vault}{again}")


app.command()(add)


@app.command()
def verify(
    proof: KeyOrClaim,
    model: Model = None,
    service: Service = None,
    task: TaskName = "",
    vault: OfVault = None,
    place: Place = None,
    suspects: Suspects = None,
    fresh_set: FreshSet = False,
    out: Out = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
    name: Annotated[str, typer.Option(help="The service's model name.")] = "g2d",
    labels: Labels = "",
    signer: Signer = None,
    tsa: Roots = None,
    task_path: TaskPath = None,
    accept_late: AcceptLate = False,
    accept_own_date: AcceptOwnDate = False,
) -> None:
    """Ask a suspect about one set of triggers; exit 1 unless it carries the mark."""
    _refuse_two(model, service, out)
    configure_torch()
    from g2d.core.exchange import Credentials
    from g2d.protect.watermark.claim import refuse_doubtful
    from g2d.protect.watermark.proof import Proof
    from g2d.protect.watermark.suspects import ServiceSuspect

    known = Proof.read(proof, vault, place)
    dated = known.check(_trusted(signer), _roots(tsa))
    if known.claim is not None:  # whoever has the key knows when he made it
        late = known.late(dated)
        refuse_doubtful(known.commitment, dated, late, accept_late, accept_own_date)
    asked: ModelSuspect | ServiceSuspect
    if service is None:
        asked = _network(model, task, vault, known.commitment)
    else:
        asker = Credentials.read(token_file, ca, client_cert)
        asked = ServiceSuspect(service, name, asker, names=_split(labels))
    outcome = known.ask(asked, suspects, shown=service is not None, fresh=fresh_set)
    _print_outcome(known, asked, dated, outcome)
    if outcome.marked and out is not None:
        known.show(outcome, asked, out)
        print_line(f"claim        {out}: whoever gets it sees the key of set {outcome.place}")
    _print_left(known)
    if not outcome.marked:
        raise G2DError(f"{asked.name} is not shown to carry the mark: {outcome.hits} hits, and"
                       f" {outcome.needed} are needed; no claim is written")  # fmt: skip


@app.command()
def check(
    claim: Annotated[Path, typer.Argument(metavar="CLAIM", help="A claim of ownership.")],
    signer: Signer = None,
    tsa: Roots = None,
    accept_late: AcceptLate = False,
    accept_own_date: AcceptOwnDate = False,
) -> None:
    """Check a claim by itself: key, commitment, signature, dates, arithmetic; nothing is asked."""
    from g2d.protect.watermark.claim import Claim, refuse_doubtful, utc

    found = Claim.read(claim)
    dated, commitment = found.check(_trusted(signer), _roots(tsa)), found.published.commitment
    refuse_doubtful(commitment, dated, commitment.late, accept_late, accept_own_date)
    if not found.outcome.marked:
        raise ClaimError(f"{claim} claims {found.outcome.hits} hits, and {found.outcome.needed} are"
                         " needed: it proves nothing")  # fmt: skip
    print_line(f"claim        {utc(found.date)}, by the claimant's own word")
    print_line(f"suspect      {found.suspect} {found.digest}".rstrip())
    _print_hits(found.outcome)
    _print_commitment(commitment, dated)
    if commitment.late:
        print_line(f"The commitment is {commitment.late}.")
    print_line("The claim agrees with itself. What the suspect answers, only the suspect says:")
    print_line(f"Next: g2d watermark verify {claim} --model FILE, or --service URL")


# --- what is given -------------------------------------------------------------------------------


def _refuse_two(model: Path | None, service: str | None, out: Path | None) -> None:
    if (model is None) == (service is None):
        raise typer.BadParameter("name one suspect, by --model FILE or by --service URL")
    if out is not None and (out.exists() or not out.absolute().parent.is_dir()):
        raise ClaimError(f"{out} exists already, or its folder does not: name another file")


def _refuse_second(vault: Path) -> None:
    """Before its settings are touched: what was committed to is what they said then."""
    from g2d.protect.watermark.publishing import refuse_second
    from g2d.vault.vault import Vault

    with Vault.open(vault) as opened:
        refuse_second(opened)


def _trusted(signer: Path | None) -> VerifyKey | None:
    from g2d.vault.keys import read_public

    return None if signer is None else read_public(signer)


def _roots(tsa: Path | None) -> list[Certificate] | None:
    if tsa is None:
        return None
    from g2d.protect.watermark.timestamp import roots_of

    return roots_of(tsa)


def _split(labels: str) -> list[str]:
    return [part.strip() for part in labels.split(",")] if labels else []


def _network(
    model: Path | None, task: str, vault: Path | None, commitment: Commitment
) -> ModelSuspect:
    from g2d.protect.watermark.suspects import ModelSuspect

    assert model is not None
    found = ModelSuspect.read(model, _blueprint(task, vault, commitment.task))
    for note in found.notes:
        say(note, "note: ")
    return found


def _blueprint(task: str, vault: Path | None, committed: str) -> Blueprint:
    """Whose model a checkpoint is of; what a claim names is never imported."""
    from g2d.tasks.builtin import BUILTIN, blueprint
    from g2d.tasks.source import blueprint_of

    if task:
        return blueprint(task)
    if vault is not None:
        from g2d.vault.code import load_only

        settings = vault_settings(vault)
        if settings.own_code:
            load_only(code_to_load(vault, settings, False), vault, settings)
        return blueprint_of(settings.task)
    if committed in BUILTIN:
        return blueprint(committed)
    raise SuspectError(
        f"the watermark is of task {committed!r}, which is none of g2d's own: name whose model the"
        " checkpoint is of, as --task module:function"
    )


# --- what is said --------------------------------------------------------------------------------


def _print_outcome(
    known: Proof, asked: ModelSuspect | ServiceSuspect, dated: Dated, outcome: Outcome
) -> None:
    print_line(f"suspect      {asked.name} {asked.digest}".rstrip())
    if known.claim is not None and known.claim.digest not in ("", asked.digest):
        print_line(f"not the claim's: that was {known.claim.suspect} {known.claim.digest}")
    _print_hits(outcome)
    _print_commitment(known.commitment, dated)
    if late := known.late(dated):
        print_line(f"The commitment is {late}.")
    if not (dated.authority or dated.signer):
        print_line("The commitment is unsigned and has no time stamp: it convinces nobody else.")
    if outcome.marked:
        print_line("The suspect carries the mark.")


def _print_left(known: Proof) -> None:
    """How many sets nobody has seen yet, as far as the record beside the key knows."""
    if known.record is None:
        return
    left, reserve = known.record.left(known.commitment), known.commitment.reserve
    print_line(
        f"sets left    {len(left)} of {reserve} are unburnt; the reserve is never queried"
        f" ({known.record.path})"
    )


def _print_hits(outcome: Outcome) -> None:
    many = "1 suspect" if outcome.suspects == 1 else f"{outcome.suspects} suspects"
    sets = outcome.pairs // outcome.suspects
    many += f" and {sets} sets" if sets > 1 else ""
    print_line(
        f"hits         {outcome.hits} of {len(outcome.answers)} in set {outcome.place};"
        f" {outcome.needed} are needed for p < {_power(outcome.threshold)} with {many}"
    )
    print_line(f"p            {_power(outcome.p)}")


def _print_commitment(commitment: Commitment, dated: Dated) -> None:
    from g2d.protect.watermark.claim import utc

    sets = f"{commitment.reserve} sets of {commitment.n} triggers and a reserve"
    print_line(f"committed    {sets}, task {commitment.task}, vault {commitment.vault}")
    print_line(f"signed by    {dated.signer or 'nobody'}")
    print_line(f"dated        {utc(dated.time)} {dated.word}; the key's date, not the mark's")


def _power(p: float) -> str:
    """A p-value, small ones as a power of two."""
    if p == 0:
        return "less than 2^-1000"
    return f"{p:.3g}" if p > 1e-3 else f"2^{math.log2(p):.1f}".removesuffix(".0")
