"""The server's own records alone are no straw man: a rate that is too high for them is lowered."""

from g2d.settings import Settings
from g2d.tasks.inference import accuracy, load_model
from g2d.training.federated.simulate import trained_alone


def test_a_rate_at_which_one_owner_learns_nothing_is_lowered(digits):
    records = digits.splits.guide.take(range(40))
    settings = Settings().override(federated__local_rate=3.0, population__batch=20)
    state = trained_alone(digits, records, settings, 200, 3)
    assert accuracy(load_model(digits, state), records) > 0.5
