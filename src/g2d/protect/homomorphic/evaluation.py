"""The server's side: an answer from a query, with neither decrypted.

Each step is a sum of products with rotated ciphertexts; then partial sums are folded, one prime is
dropped, the bias is added and the result squared. The last step is laid out so that every slot of
its result holds a logit, a copy of one, or zero: nothing has to be masked away. An encryption of
zero under the client's public key is added at the end, since the query's own randomness, times
weights, would otherwise stand in the answer for the client to solve. That holds for a client that
follows the protocol. A hostile one gets strictly more than one who asks in plain: his keys are of
his own making, and may be degenerate (a public key of zeros hides nothing); he lays the first
layer's patches out, and need not take them from one image; and noise is not flooded, so that what
he can learn of the weights from it is not bounded.
"""

from __future__ import annotations

from typing import Any

from g2d.protect.homomorphic.batch import run_batch
from g2d.protect.homomorphic.encoding import Encoded
from g2d.protect.homomorphic.errors import HomomorphicError
from g2d.protect.homomorphic.keys import EvaluationKeys, refuse_transparent
from g2d.protect.homomorphic.packing import Program
from g2d.protect.homomorphic.plan import Plan
from g2d.protect.homomorphic.rotations import Tree
from g2d.protect.homomorphic.seal import (
    SEAL_ERRORS,
    Level,
    body,
    levels,
    load,
    sealapi,
    seeded_size,
)
from g2d.protect.homomorphic.wire import SEED, ciphertext_file, pack, unpack

__all__ = ["evaluate"]


def evaluate(plan: Plan, encoded: Encoded, evaluation: EvaluationKeys, query: bytes) -> bytes:
    """The answer to a query: encrypted logits.

    Raises:
        HomomorphicError: weights or keys are of another plan; the query is cut off, of another
            plan or level, damaged, or transparent.
    """
    if encoded.digest != plan.digest:
        raise HomomorphicError("the weights are encoded for another plan: encode them for this one")
    if evaluation.digest != plan.digest:
        raise HomomorphicError("the keys are of another plan: make and upload keys for this one")
    sources = _read(plan, query)
    try:
        if plan.packing == "batch":
            made = run_batch(plan, encoded, evaluation, list(sources.values()))
        else:
            made = [_run(plan, encoded, evaluation, sources)]
        answers = [_fresh(plan, evaluation, one) for one in made]
    except SEAL_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise HomomorphicError(f"SEAL cannot evaluate the query: {reason}") from error
    words = [body(answer)[-2 * plan.parameters.degree * 8 :] for answer in answers]
    return pack("answer", plan.digest, words)


def _read(plan: Plan, query: bytes) -> dict[int, Any]:
    """A query's ciphertexts, by their number."""
    parameters = plan.parameters
    level = levels(parameters)[parameters.levels]
    sizes = [seeded_size(level.primes, level.degree)] * plan.ciphertexts
    found = {}
    for i, part in enumerate(unpack("query", plan.digest, query, sizes)):
        words, seed = part[:-SEED], part[-SEED:]
        scale = parameters.input_scale
        file = ciphertext_file(level.id, level.degree, level.primes, scale, words, seed)
        found[i] = load(sealapi().Ciphertext(), level, file, "query")
        refuse_transparent(found[i], "query")
    return found


def _run(plan: Plan, encoded: Encoded, keys: EvaluationKeys, sources: dict[int, Any]) -> Any:
    """All steps; the last one's result, at level 1."""
    here = levels(plan.parameters)
    for i, program in enumerate(plan.programs):
        level, below = here[plan.level(i)], here[plan.level(i) - 1]
        rotations = keys.rotations.get(level.primes)
        sources = _rotated(sources, program.babies, level, rotations)
        total = _sum(program, encoded.products[i], sources, level, rotations)
        for step in program.folds:
            total = _plus_rotated(total, step, level, rotations)
        level.evaluator.rescale_to_next_inplace(total)
        if encoded.biases[i] is not None:
            below.evaluator.add_plain_inplace(total, encoded.biases[i])
        if i + 1 < len(plan.programs):
            below.evaluator.square_inplace(total)
            below.evaluator.relinearize_inplace(total, keys.squares[below.primes])
            for step in program.pools:
                total = _plus_rotated(total, step, below, keys.rotations[below.primes])
        sources = {0: total}
    return sources[0]


def _rotated(sources: dict[int, Any], babies: Tree, level: Level, keys: Any) -> dict[int, Any]:
    """The sources, with every baby step of the only one."""
    found = dict(sources)
    for value, parent, step in babies:
        found[value] = sealapi().Ciphertext()
        level.evaluator.rotate_vector(found[parent], step, keys, found[value])
    return found


def _sum(
    program: Program, products: tuple[Any, ...], sources: dict[int, Any], level: Level, keys: Any
) -> Any:
    """The sum of all products, giant steps from the largest to the root."""
    sums: dict[int, Any] = {}
    for (source, giant), plain in zip(program.terms, products, strict=True):
        if plain is None:
            continue
        made = sealapi().Ciphertext()
        level.evaluator.multiply_plain(sources[source], plain, made)
        _add(sums, giant, made, level)
    for value, parent, step in reversed(program.giants):
        if value in sums:
            made = sums.pop(value)
            level.evaluator.rotate_vector_inplace(made, step, keys)
            _add(sums, parent, made, level)
    return sums[0]


def _add(sums: dict[int, Any], where: int, made: Any, level: Level) -> None:
    if where in sums:
        level.evaluator.add_inplace(sums[where], made)
    else:
        sums[where] = made


def _plus_rotated(total: Any, step: int, level: Level, keys: Any) -> Any:
    turned = sealapi().Ciphertext()
    level.evaluator.rotate_vector(total, step, keys, turned)
    level.evaluator.add_inplace(total, turned)
    return total


def _fresh(plan: Plan, keys: EvaluationKeys, made: Any) -> Any:
    """The same numbers with new randomness."""
    level = levels(plan.parameters)[1]
    zero, fresh = level.encode([0.0], made.scale), sealapi().Ciphertext()
    sealapi().Encryptor(level.context, keys.public).encrypt(zero, fresh)
    level.evaluator.add_inplace(made, fresh)
    return made
