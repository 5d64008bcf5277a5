"""The backdoor's table: each stage beside the vault where nobody is malicious; what gates did."""

from __future__ import annotations

import math

from benchmarks.federated import backdoor, inversion
from g2d.defence.gates import GateResult


def row(asr, ratio, **more):
    one = {"accuracy": 0.9, "gate": 0.9, "asr": asr}
    scanned = one | {"ratio": ratio, "named": ratio < 0.6}
    return {"base": [scanned], "members": [one], "generations": [scanned], "gated": [],
            "cpu_seconds": 90.0, **more}  # fmt: skip


def test_candidates_that_gates_rejected_are_counted_over_a_kill(tmp_path):
    path = tmp_path / "stopped.json"
    failed = GateResult("backdoor", False, 0.4, 0.6, "looks like a backdoor", title="t", n=1)
    passed = GateResult("accuracy", True, 0.9, 0.8, "", title="t", n=1)
    backdoor.Stopped(path).note("gated", [failed, passed])
    again = backdoor.Stopped(path)
    again.note("gated", [failed])
    assert backdoor.Stopped(path).counts == {"gated": {"rejected": 2, "backdoor": 2}}


def test_every_stage_stands_beside_the_vault_where_nobody_is_malicious():
    counts = {"gated": {"rejected": 8, "backdoor": 8}}
    rows = {
        "f 0 | centred-clipping": row(0.02, 0.8, stopped={}),
        "f 4 | mean": row(1.0, 0.3, stopped=counts, refused="no candidate passed"),
        "f 4 | centred-clipping": row(0.03, 0.7, stopped={}),
    }
    told = backdoor.table([{"rows": rows}])
    assert "| 0.30 to 0.30, 0.30 to 0.30 | open 0; gated 8 (backdoor 8) | no candidate" in told
    assert "| f 0 \\| centred-clipping | 2.0 (worst 2.0) / 90.0 (worst 90.0) |" in told
    [[what, _, reached]] = backdoor.targets([{"rows": rows}])
    assert what.endswith("centred-clipping, f = 4")
    assert reached == "3.0 %; members 3.0 %; where nobody is malicious 2.0 %"


def test_what_was_not_unrolled_is_not_told():
    rows = {f"40 | {kind}": [{"ssim": 0.1, "best": 0.2, "psnr": 9.0}] for kind in inversion.KINDS}
    del rows["40 | unrolled"], rows["40 | private, unrolled"]
    given = inversion.flags().parse_args(["--counts", "1", "40"])
    told = inversion.targets([{"rows": rows}], given)
    assert [line[0] for line in told] == [
        "SSIM, 40 records: plain gradients (control)", "SSIM, 40 records: message",
        "SSIM, 40 records: private",
    ]  # fmt: skip
    assert math.isnan(inversion.mean_of([{"rows": rows}], "40 | unrolled", "ssim"))
