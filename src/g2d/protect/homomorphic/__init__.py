"""Homomorphic inference: a server answers for inputs that it cannot read (CKKS, by SEAL).

    plan = Plan.of(network, shape)           both sides know it; it holds no weights
    keys = SecretKeys.new(plan)              client; `upload()` goes to the server, once
    answer = evaluate(plan, encode(plan, state_dict), EvaluationKeys.read(upload, plan), query)

The client's inputs and answers are secret from the server, as long as no exact decryption is shown
to it (`keys`). The server's weights are not secret from what logits tell, and nothing here shows a
client that the server computed what it should. Needs `pip install 'g2d[he]'`.
"""

from g2d.protect.homomorphic.encoding import Encoded, encode
from g2d.protect.homomorphic.errors import HomomorphicError, Unsupported
from g2d.protect.homomorphic.evaluation import evaluate
from g2d.protect.homomorphic.keys import EvaluationKeys, SecretKeys
from g2d.protect.homomorphic.plan import Limits, Plan
from g2d.protect.homomorphic.reading import pre_activations

__all__ = [
    "Encoded",
    "EvaluationKeys",
    "HomomorphicError",
    "Limits",
    "Plan",
    "SecretKeys",
    "Unsupported",
    "encode",
    "evaluate",
    "pre_activations",
]
