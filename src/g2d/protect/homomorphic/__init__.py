"""Homomorphic inference: a server answers for inputs that it cannot read (CKKS, by SEAL).

    plan = Plan.of(network, shape)           both sides know it; it holds no weights
    keys = SecretKeys.new(plan)              client; `upload()` goes to the server, once
    answer = evaluate(plan, encode(plan, state_dict), EvaluationKeys.read(upload, plan), query)

The client's inputs and answers are secret from a server that computes what it should, as long as no
exact decryption is shown to it (`keys`). One that answers with ciphertexts of its own making learns
about the key, hence about every query ever sent, from the client's reactions: whether it goes on
after `SecretKeys.decrypt` is a bit. So collect all answers before one is decrypted, as
`service.client.encrypted` does, and make fresh keys after any that was noise. Nothing here shows a
client that the server computed what it should. The server's weights are not secret from what logits
tell, and a hostile client is told more (`evaluation`). Needs `pip install 'g2d[he]'`.
"""

from g2d.protect.homomorphic.encoding import Encoded, encode
from g2d.protect.homomorphic.errors import HomomorphicError, Unsupported
from g2d.protect.homomorphic.evaluation import evaluate
from g2d.protect.homomorphic.keys import EvaluationKeys, SecretKeys
from g2d.protect.homomorphic.plan import Limits, Plan
from g2d.protect.homomorphic.ranges import Ranges, ranges_of
from g2d.protect.homomorphic.reading import pre_activations

__all__ = [
    "Encoded",
    "EvaluationKeys",
    "HomomorphicError",
    "Limits",
    "Plan",
    "Ranges",
    "SecretKeys",
    "Unsupported",
    "encode",
    "evaluate",
    "pre_activations",
    "ranges_of",
]
