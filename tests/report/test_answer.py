"""The answer on top of the page: made of rows that are found by their kind."""

from g2d.report import page as report
from pages import drawn, picked, told, words


def test_the_answer_is_made_of_the_rows_numbers(results):
    said = {label: text.replace("\u00a0", " ") for label, text in told(results).items()}
    buys, lacks = said["What rotation buys"], said["What it does not"]
    assert "(joint over the last 5 exposed generations) flip 35 % of the examples" in buys
    assert "95 % on the base, if it never changed; 45 % if every rotation" in buys
    assert (
        "72 % without rotation, 48 % with one every 500 queries (24 % of the finds outlive" in buys
    )
    assert "cost a generation 80 % of the examples cost the next one 1 %" in buys
    assert "still flips 80 % on average and 85 % of the worst generation; 90 % of the" in lacks
    assert "Whoever owns the generator flips 55 % (frozen model: 92 %)" in lacks


def test_rotation_that_does_not_help_is_not_sold(results):
    """Equal or higher rates move to the third box, or are called no gain."""
    stale = picked(results, family="stale")
    results["rows"] += [row | {"target": "unrotated"} for row in stale if row["target"] == "frozen"]
    for row in picked(results, family="stale") + picked(results, family="query"):
        row["value"] = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 100}
        row["harm"] = 0.7
    said = told(results)
    assert "(no gain beyond chance)" in said["What rotation buys"]
    assert "queries" not in said["What rotation buys"]
    assert "Rotation does not stop this attacker." in said["What it does not"]


def test_bit_flips_that_reach_the_unseen_are_not_hidden(results):
    row = picked(results, family="bit-flips", target="generated")[1]
    later = row | {"kind": "bit-flips-later"}
    later["value"] = {"value": 0.4, "low": 0.3, "high": 0.5, "n": 100}
    joint = row | {"kind": "bit-flips-joint", "threat": "flips found jointly"}
    joint["value"] = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 100}
    kept = row | {"kind": "bit-flips-kept-secret-order", "threat": "in secret order"}
    kept["value"] = {"value": 0.0, "low": 0.0, "high": 0.1, "n": 100}
    hidden = row | {"kind": "bit-flips-layout-next", "threat": "in the secret layout"}
    hidden["value"] = {"value": 0.02, "low": 0.0, "high": 0.1, "n": 100}
    results["rows"] = [kept, *results["rows"], joint, later, hidden]
    said = {label: text.replace("\u00a0", " ") for label, text in told(results).items()}
    assert (
        "cost the next one 1 % and later ones 40 %, 2 % in the secret layout of its service."
        in said["What rotation buys"]
    )
    assert "on several at once cost unseen ones 70 %." in said["What it does not"]


def test_the_most_successful_stale_attack_is_told_beside_the_joint_one(results):
    row = picked(results, family="stale", target="generated")[0]
    row["value"], row["harm"] = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 100}, 0.6
    assert "try (reads one exposed generation): 60" in told(results)["What rotation buys"]


def test_rows_from_before_the_key_are_drawn_and_the_answer_says_what_to_do(results, tmp_path):
    for row in results["rows"]:
        del row["kind"]
    seen = words(drawn(results, tmp_path))
    assert "older than the keys by which rows are told apart; run `g2d attack` again" in seen
    assert "The threat matrix" in seen
    assert report.markdown(results).count("\n| ") > len(results["rows"])


def test_words_select_no_row(results):
    """Whatever a threat and its attack are called, the answer is the same."""
    before = told(results)
    for row in results["rows"]:
        if row["family"] != "stale":  # names one of them
            row["threat"] = f"renamed {row['threat'][::-1]}"
    assert told(results) == before
