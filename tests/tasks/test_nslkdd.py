"""NSL-KDD: read exactly, refused where malformed; its attacker stays a flow's sender."""

import gzip

import pytest
import torch

from g2d.attacks import pgd
from g2d.errors import DataError
from g2d.tasks import nslkdd
from g2d.tasks.builtin import blueprint, load_task
from g2d.tasks.nslkdd import FEATURES, FILES, WIDTH, FlowScale, budget, held_out, load_nslkdd
from small_data import shared
from small_models import source

NAMES = list(FEATURES)
FLOW = ["0", "tcp", "http", "SF", "181", "5450", *["0"] * 16, "9", "9", *["0.5"] * 7, "255", "9",
        *["0.25"] * 8, "normal", "20"]  # fmt: skip


def flow(**changed):
    places = {"protocol": 1, "service": 2, "flag": 3, "src_bytes": 4, "label": 41}
    row = list(FLOW)
    for name, value in changed.items():
        row[places[name]] = value
    return ",".join(row)


def write(folder, lines=None, test=None):
    rows = lines or [flow(label="neptune" if i % 2 else "normal") for i in range(20)]
    for name, content in zip(FILES, (rows, test or rows), strict=True):
        (folder / name).write_bytes(gzip.compress("\n".join(content).encode()))
    return folder


def test_a_flow_becomes_numbers_and_three_categories(tmp_path):
    lines = [flow(label="smurf", service="tftp_u", src_bytes="42")]
    x = load_nslkdd(write(tmp_path, test=lines)).test.x[0]
    assert x.shape == (WIDTH,)
    assert x[NAMES.index("src_bytes")] == 42
    assert x[NAMES.index("count")] == 9
    groups = [x[list(group)] for group in budget().one_hot]
    assert [int(g.sum()) for g in groups] == [1, 1, 1]
    places = [int(g.argmax()) for g in groups]
    assert places == [1, len(nslkdd.SERVICES), nslkdd.FLAGS.index("SF")]  # unseen: the last column


def test_held_out_flows_are_in_no_split(tmp_path):
    lines = [flow(src_bytes=str(i), label="neptune" if i % 2 else "normal") for i in range(100)]
    splits = load_nslkdd(write(tmp_path, lines), 3)
    parts = [splits.train, splits.guide, splits.gate, held_out(tmp_path, 3)]
    seen = torch.cat([part.x[:, NAMES.index("src_bytes")] for part in parts])
    assert sorted(seen.tolist()) == list(range(100))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        # (without the time, or two workers that collect in different seconds disagree)
        (gzip.compress(b"1,2,3\n", mtime=0), "line 1: 3 columns, expected 43"),
        (gzip.compress(flow(src_bytes="many").encode(), mtime=0), "line 1: could not convert"),
        (b"no gzip", "cannot be read"),
        (gzip.compress(flow().encode(), mtime=0)[:-9], "cannot be read"),
        (None, "is not there; expected NSL-KDD as"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path, content, says):
    path = write(tmp_path) / FILES[0]
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        load_nslkdd(tmp_path)
    assert "\n" not in str(caught.value)


def test_scaling_is_fitted_on_nothing():
    x = torch.zeros(2, WIDTH)
    x[1, NAMES.index("count")], x[1, NAMES.index("same_srv_rate")] = 511, 1
    scaled = FlowScale()(x)
    assert scaled[0].abs().max() == 0
    assert scaled[1].sum() == pytest.approx(2.0)
    assert not FlowScale().state_dict()


def test_detection_at_one_per_cent_of_false_alarms():
    score = torch.cat([torch.arange(1000.0), torch.tensor([988.5, 989.5, 2000.0, -5.0])])
    logits = torch.stack([torch.zeros_like(score), score], 1)
    y = torch.tensor([0] * 1000 + [1] * 4)
    assert nslkdd.threshold(logits, y) == 989
    assert nslkdd.alarms(logits, y, 989) == (0.5, 0.01)
    assert nslkdd.detection_rate(logits, y) == 0.5


def test_the_real_flows_and_their_attacker():
    task = load_task("nsl-kdd", str(shared("nslkdd")))
    assert [len(s.y) for s in (task.splits.train, task.splits.test)] == [12092, 22544]
    plan = blueprint("nsl-kdd")
    assert (plan.shape, plan.classes) == (task.splits.test.x.shape[1:], task.classes)
    x, y = task.splits.test.x[:200], task.splits.test.y[:200]
    found = pgd(task.model(0), x, y, eps=task.eps, steps=5, generator=source(0), bounds=task.reach)
    moved, b = found - x, task.budget
    assert (moved.abs() <= task.reach.radius(task.eps, x) * (1 + 1e-6) + 1e-3).all()
    assert (moved[:, list(b.grow)] >= 0).all()
    assert torch.equal(found[:, list(b.integer)], found[:, list(b.integer)].round())
    assert torch.equal(found[:, list(b.one_hot[0])], x[:, list(b.one_hot[0])])  # no protocol
    assert (found[:, list(b.one_hot[1])].sum(1) == 1).all()
    assert not torch.equal(found, x)
