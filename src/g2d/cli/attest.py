"""The commands of `g2d attest`: files in, files out; the two sides need no network.

Thin, like `main`, and as lazy. What is attested and released is in `protect.attestation`. On the
host that serves run `enroll`, `quote` and `open`, which ask its TPM; the rest runs where
generations are made.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2d.cli.attest_shared import (
    label_of,
    mark_first,
    newest_here,
    open_to_release,
    show_approver,
    show_endorsement,
    show_pcrs,
    values_of,
)
from g2d.cli.console import print_line
from g2d.errors import SealingError

if TYPE_CHECKING:
    from g2d.protect.attestation.enrolment import Host
    from g2d.protect.attestation.quotes import Proven

app = typer.Typer(
    name="attest",
    help="Hosts that prove their state by a TPM, and get a vault's key for that.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

HostFile = Annotated[
    Path, typer.Argument(metavar="HOST", help="What is remembered of the host.")
]  # fmt: skip
Out = Annotated[Path, typer.Argument(metavar="OUT", help="File to write, for the other side.")]
Quote = Annotated[Path, typer.Argument(metavar="QUOTE", help="What `g2d attest quote` wrote.")]
VaultArgument = Annotated[Path, typer.Argument(metavar="VAULT", help="Folder of the sealed vault.")]
Tpm = Annotated[
    str,
    typer.Option("--tpm", metavar="TCTI", help="Where the TPM is; else $G2D_TPM, or /dev/tpmrm0."),
]
Age = Annotated[int, typer.Option(min=1, metavar="SECONDS", help="For how long a nonce holds.")]
Key = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Key for approvals, made if absent; else ~/.config/g2d/approvals.key.",
    ),
]
_AGE = 300
_EXPECTED = "what `g2d attest enroll` wrote on the other side"


@app.command()
def enroll(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="What the other side wrote; none: begin, here."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What to write for the other side.")
    ] = None,
    host: Annotated[
        Path | None, typer.Option(metavar="HOST", help="File that remembers the host.")
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(metavar="PEM", help="Certificates of the TPM's maker; repeatable."),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure-software-tpm", help="Take a TPM that no maker vouches for."),
    ] = False,
    pcrs: Annotated[str, typer.Option(help="PCRs that tell the host's state, as in 7,14.")] = "14",
    first: Annotated[
        int, typer.Option(min=0, metavar="NUMBER", help="First generation that is counted.")
    ] = 0,
    every: Annotated[
        int, typer.Option(min=1, help="Generations that the TPM's counter counts as one.")
    ] = 60,
    keep: Annotated[
        int, typer.Option(min=0, help="Counts by which an older release still opens.")
    ] = 1,
    counter: Annotated[
        int | None, typer.Option(min=0x01800000, max=0x01BFFFFF, help="Index of that counter.")
    ] = None,
    key: Key = None,
    age: Age = _AGE,
    tpm: Tpm = "",
) -> None:
    """Enrol a host, in four steps: hand the file that each side wrote to this command on the other.

    Host, generating side, host, generating side: the file says which step is next.
    """
    from g2d.protect.attestation import enrolment
    from g2d.protect.sealing.tpm import pcrs_of
    from g2d.protect.tpm import documents

    if file is None:
        _request(_needed(out, "--out"), counter, tpm)
        return
    kind = documents.kind_of(documents.read(file))
    if kind == enrolment.Request.KIND:
        if host is not None and host.exists() and _is_enrolled(host):
            raise SealingError(f"{host} remembers a host already: name another file with --host")
        terms = enrolment.Terms(pcrs_of(pcrs), first, every, keep)
        _challenge(file, terms, _needed(host, "--host"), _needed(out, "--out"), root, insecure, key)
    elif kind == enrolment.Challenge.KIND:
        _answer(file, _needed(out, "--out"), tpm)
    elif kind == enrolment.Answer.KIND:
        _finish(file, _needed(host, "--host"), age)
    else:
        raise SealingError(f"{file} belongs to no step of an enrolment: expected {_EXPECTED}")


def _needed(path: Path | None, flag: str) -> Path:
    if path is None:
        raise typer.BadParameter(f"this step needs {flag} FILE")
    return path


def _is_enrolled(path: Path) -> bool:
    from g2d.protect.attestation.enrolment import Pending
    from g2d.protect.tpm.documents import kind_of, read

    return kind_of(read(path)) != Pending.KIND


def _request(out: Path, index: int | None, tpm: str) -> None:
    from g2d.protect.attestation.host import request
    from g2d.protect.tpm import counter, documents
    from g2d.protect.tpm.device import open_device

    with open_device(tpm) as device:
        made = request(device, counter.DEFAULT_INDEX if index is None else index)
    documents.store(out, made)
    show_endorsement(made.endorsement)
    if not made.certificate:
        print_line("certificate  none: the other side will need --insecure-software-tpm")
    print_line(f"Next, on the generating side: g2d attest enroll {out} --host HOST --out FILE")


def _challenge(
    file: Path, terms: object, host: Path, out: Path, root: list[Path] | None, insecure: bool,
    key: Path | None,
) -> None:  # fmt: skip
    from g2d.protect.attestation import enrolment, release
    from g2d.protect.attestation.certificates import load_roots
    from g2d.protect.tpm import documents

    assert isinstance(terms, enrolment.Terms)
    request = documents.load(enrolment.Request, file)
    roots = load_roots(root or ())
    approver = release.PolicyKey.read(key or release.default_policy_key()).area
    challenge, pending = enrolment.begin(request, terms, roots, insecure, time.time(), approver)
    documents.store(host, pending)
    documents.store(out, challenge)
    show_endorsement(pending.endorsement)
    show_approver(approver)
    print_line("Compare them with what the host says: who carries files may have swapped sides.")
    if not pending.vouched:
        print_line("warning      no maker vouches for this TPM: whoever runs it may read its keys")
    print_line(f"Next, on the host: g2d attest enroll {out} --out FILE")


def _answer(file: Path, out: Path, tpm: str) -> None:
    from g2d.protect.attestation.enrolment import Challenge
    from g2d.protect.attestation.host import answer
    from g2d.protect.attestation.pinned import pin
    from g2d.protect.tpm import documents
    from g2d.protect.tpm.device import open_device
    from g2d.protect.tpm.publics import name_of

    challenge = documents.load(Challenge, file)
    with open_device(tpm) as device:
        made = answer(device, challenge)
        device.flush()  # its slots are few
        if challenge.approver:
            pin(name_of(device.storage()[1]), challenge.approver)
            show_approver(challenge.approver)
    documents.store(out, made)
    print_line(f"Next, on the generating side: g2d attest enroll {out} --host HOST")


def _finish(file: Path, host: Path, age: int) -> None:
    from g2d.protect.attestation import enrolment
    from g2d.protect.tpm import documents

    pending = documents.load(enrolment.Pending, host)
    answer = documents.load(enrolment.Answer, file)
    made = enrolment.finish(pending, answer, time.time(), age)
    documents.store(host, made)
    show_pcrs(made.pcrs)
    for number in sorted(number for number, value in made.pcrs.items() if not any(value)):
        print_line(f"warning      PCR {number} is zero: nothing extends it, and it proves nothing")
    print_line(f"{host} is enrolled in this state. Next: g2d attest ask {host} FILE")


@app.command()
def ask(host: HostFile, out: Out) -> None:
    """Draw a nonce for a host to answer; an earlier one holds no more."""
    from g2d.protect.attestation import enrolment
    from g2d.protect.tpm import documents

    asking, question = enrolment.ask(documents.load(enrolment.Host, host), time.time())
    documents.store(host, asking)
    documents.store(out, question)
    print_line(f"Next, on the host: g2d attest quote {out} FILE")


@app.command()
def quote(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `g2d attest ask` wrote.")],
    out: Out,
    tpm: Tpm = "",
) -> None:
    """Have this host's TPM quote its state."""
    from g2d.protect.attestation.enrolment import Ask
    from g2d.protect.attestation.host import evidence
    from g2d.protect.tpm import documents
    from g2d.protect.tpm.device import open_device

    question = documents.load(Ask, file)
    with open_device(tpm) as device:
        made = evidence(device, question)
    documents.store(out, made)
    show_pcrs(made.pcrs)


@app.command()
def verify(
    quote: Quote,
    host: HostFile,
    accept_state: Annotated[
        bool,
        typer.Option("--accept-state", help="The host was updated, and you know: expect this."),
    ] = False,
    age: Age = _AGE,
) -> None:
    """Verify what a host quoted, and say which PCR changed; exit 1 if one did."""
    from dataclasses import replace

    from g2d.protect.tpm import documents
    from g2d.protect.tpm.policies import changed

    known, heard, proven = _hear(quote, host, age)
    told = changed(proven.pcrs, known.pcrs)
    show_pcrs(proven.pcrs)
    print_line(f"counter      {proven.count}, {proven.clock.resets} starts")
    if told and not accept_state:
        raise SealingError(
            f"{host} is not in the state that is expected: {told}; if you know of its update, add"
            " --accept-state"
        )
    if told:  # the nonce is used up, too: a release asks for one of its own
        documents.store(host, replace(heard, pcrs=dict(proven.pcrs)))
    print_line(f"{host} is in the state that is expected{' from now on' if told else ''}.")


@app.command()
def release(
    vault: VaultArgument,
    host: HostFile,
    quote: Quote,
    number: Annotated[
        int | None, typer.Option(min=1, help="Generation to release; else the live one.")
    ] = None,
    key: Key = None,
    age: Age = _AGE,
) -> None:
    """Release a generation of a sealed vault to a host, in the state that it has just proved."""
    from g2d.protect.attestation import release as releasing
    from g2d.protect.tpm import documents
    from g2d.vault.sealing import released
    from g2d.vault.sealing.changing import require
    from g2d.vault.sealing.envelope import new_key

    approver = releasing.PolicyKey.read(key or releasing.default_policy_key())
    with open_to_release(vault) as opened:
        record = require(opened)
        wanted = opened.live() or 0 if number is None else number
        _, heard, proven = _hear(quote, host, age)
        fresh, context = new_key(), released.context_of(opened, wanted)
        made, after = releasing.release(heard, proven, fresh, context, wanted, approver)
        bundle = released.make_bundle(opened, record, wanted, fresh, documents.encode(made))
        documents.store(host, after)  # before the vault: what was released is known in any case
        label = label_of(host, after)
        released.hold(opened, record, label, wanted, bundle, after.oldest(wanted))
    print_line(f"Generation {wanted} of {vault} is released to {host}.")
    print_line("Next, on the host, where the vault's folder lies or arrives: g2d attest open VAULT")


@app.command()
def approve(
    vault: VaultArgument,
    host: HostFile,
    pcr: Annotated[
        list[str], typer.Option(metavar="NUMBER=HEX", help="What a PCR will be; repeatable.")
    ],
    key: Key = None,
) -> None:
    """Approve what a host is going to boot, before it does: it opens what it has from then on."""
    from dataclasses import replace

    from g2d.protect.attestation import release as releasing
    from g2d.protect.attestation.enrolment import Host
    from g2d.protect.tpm import documents
    from g2d.protect.tpm.publics import name_of
    from g2d.vault.sealing import released
    from g2d.vault.sealing.changing import require

    known = documents.load(Host, host)
    values = {**known.pcrs, **values_of(pcr)}
    approver = releasing.PolicyKey.read(key or releasing.default_policy_key())
    with open_to_release(vault) as opened:
        record, label = require(opened), label_of(host, known)
        found = released.releases(record, label)
        bundles = {
            number: released.Bundle.decode(held[-1].blob) for number, held in sorted(found.items())
        }
        olds = {
            number: documents.decode(releasing.Released, bundle.key, f"release {number}")
            for number, bundle in bundles.items()
        }
        # A ledger may call another host's so, whose state is not this one's.
        own = {n: old for n, old in olds.items() if old.storage == name_of(known.storage)}
        if not own:
            raise SealingError(f"nothing of {vault} was released to {host} yet")
        for number, old in own.items():
            bundle = bundles[number]
            again = documents.encode(releasing.approve_again(old, values, approver))
            released.hold(opened, record, label, number, replace(bundle, key=again))
        documents.store(host, replace(known, pcrs=values))
    show_pcrs(values)
    print_line(f"{host} opens what was released to it in this state, and in no other.")


@app.command("open")
def open_released(
    vault: VaultArgument,
    number: Annotated[
        int | None, typer.Option(min=1, help="Generation to open; else the newest released.")
    ] = None,
    tpm: Tpm = "",
) -> None:
    """Open a generation that was released to this host, and from now on the vault by its TPM."""
    from g2d.protect.sealing import custodian
    from g2d.vault.sealing import released
    from g2d.vault.sealing.changing import require
    from g2d.vault.sealing.remembered import remember
    from g2d.vault.vault import Vault

    url = f"tpm:{tpm}"
    with Vault.open(vault) as opened:
        record = require(opened)
        found = released.releases(record)
        wanted = newest_here(found, tpm) if number is None else number
        about = opened.sealing.generation(wanted, "weights", "")
        if wanted in found:  # else `released_key` says what to do
            about = opened.sealing.generation(
                wanted, "weights", opened.generation(wanted).files["weights"]
            )
        released.released_key(opened, record, about, custodian(url).unwrap)
        mark_first(opened)
        remember(opened, url, record.key, whole=record.all_sealed or None)
    print_line(f"Generation {wanted} of {vault} opens here. Next: g2d serve {vault}")


def _hear(quote: Path, host: Path, age: int) -> tuple[Host, Host, Proven]:
    """A host as it was remembered, as it is to be, and what it proved."""
    from g2d.protect.attestation import enrolment
    from g2d.protect.attestation.quotes import Evidence
    from g2d.protect.tpm import documents

    known = documents.load(enrolment.Host, host)
    heard, proven = enrolment.hear(known, documents.load(Evidence, quote), time.time(), age)
    return known, heard, proven
