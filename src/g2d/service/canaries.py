"""What canaries tell of a service to whoever holds the vault and can only ask. Knows no torch."""

from __future__ import annotations

import time
from dataclasses import dataclass

from g2d.errors import G2DError
from g2d.protect.asking import Answer, Client, Described, datatype_of
from g2d.protect.canaries.kept import (
    CANARIES,
    Canaries,
    Verdict,
    judge_classes,
    judge_labels,
    judge_scores,
    read_canaries,
)
from g2d.vault.reading import VaultReader

_TRIES = 5  # a generation that rotates away between two requests is followed so often
_PAUSE = 2.0  # seconds until a service that is behind the vault is asked again


@dataclass(frozen=True)
class Asked:
    """A verdict, on which generation, and whether the service said that it was that one."""

    number: int
    canaries: int
    verdict: Verdict
    told: bool


def kept_canaries(vault: VaultReader, number: int) -> Canaries:
    """A generation's canaries.

    Raises:
        G2DError: there is no such generation, or it keeps none.
    """
    found = read_canaries(vault, number)
    if found is None:
        why = vault.generation(number).manifest.get(CANARIES)
        if isinstance(why, str):
            raise G2DError(f"generation {number} of {vault.path} keeps no canaries ({why[:200]})")
        raise G2DError(
            f"generation {number} of {vault.path} keeps no canaries: it was made by an older g2d,"
            " or with `[canaries] count = 0`; ask the next one that `g2d generate` makes"
        )
    return found


def ask_service(vault: VaultReader, client: Client, wanted: int | None, labels: bool) -> Asked:
    """Ask a service the canaries of what it serves, and compare.

    Args:
        wanted: the generation that has to be served; None: the vault's live one, which a service
            that rotates in between is followed to. labels: compare classes alone, whatever comes.

    Raises:
        G2DError: the service or the vault cannot be asked, it serves another model or generation,
            or one that the vault has retired; no canaries are kept, or what is answered is too
            coarse to tell anything.
    """
    described = client.describe()
    number = wanted or described.number or vault.live()
    if number is None:
        raise G2DError(f"{vault.path} has no generation yet; run `g2d fit` first")
    behind = False
    for _ in range(_TRIES):
        kept = kept_canaries(vault, number)
        _check(client, described, kept, number)
        answer = client.ask(described, kept.x)
        if described.tagged and answer.number is None:
            raise G2DError(
                f"{client.url} answers under a serving policy, and does not say which generation"
                " answered: ask as who may observe (role observe or operate), of a service whose"
                " policy is not vote; it asks itself every `[canaries] every` seconds"
            )
        heard = (answer.number, *answer.others)
        strange = [k for k in heard if k is not None and k != number]
        if strange and wanted:
            raise G2DError(
                f"{client.url} serves generation {strange[-1]}, not {wanted}: leave --generation"
                " out to ask for whichever is live"
            )
        if strange:
            number = strange[-1]
            continue
        # Now: it may have become so meanwhile. Under a policy older ones are live, too.
        live = None if wanted or described.tagged else vault.live()
        if live is None or number >= live:
            verdict = _judge(client, kept, number, answer, labels)
            return Asked(number, len(kept), verdict, answer.number is not None)
        if behind:
            raise G2DError(
                f"{client.url} serves generation {number}, the vault's live one is {live}: the"
                f" service is stuck, or was put back; --generation {number} asks about that one"
            )
        behind = True
        if answer.number is None:
            number = client.describe().number or live
        time.sleep(_PAUSE)
    raise G2DError(f"{client.url} rotated in each of {_TRIES} tries: ask again")


def _judge(client: Client, kept: Canaries, number: int, answer: Answer, labels: bool) -> Verdict:
    """Compare what was answered; refuses what is too coarse to show anything."""
    if answer.labels_only:
        verdict = judge_labels(kept, answer.values)
    elif answer.values.shape != kept.logits.shape:
        raise G2DError(
            f"{client.url} answers {answer.values.shape[1]} scores an input, and generation"
            f" {number} has {kept.logits.shape[1]}: it is another model"
        )
    else:
        verdict = (judge_classes if labels else judge_scores)(kept, answer.values)
    if not verdict.changed and 2 * verdict.compared < len(kept):
        raise G2DError(
            f"nothing could be compared: what {client.url} answers tells more than rounding hides"
            f" for {verdict.compared} of {len(kept)} canaries alone; ask where scores are not"
            " rounded, or less" + (", or leave --labels out" if labels else "")
        )
    return verdict


def _check(client: Client, described: Described, kept: Canaries, number: int) -> None:
    own = datatype_of(kept.x), kept.x.shape[1:]
    if (described.datatype, described.shape) != own:
        raise G2DError(
            f"{client.url} takes {described.datatype} inputs of shape {described.shape}, and"
            f" generation {number} {own[0]} of {own[1]}: it is another model; name it with --model"
        )
