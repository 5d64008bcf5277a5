"""What a policy must not forget: its secret, and that what was retired stays so."""

import json
import stat
from pathlib import Path

import pytest

from g2d.core.platforms import state_folder
from g2d.errors import VaultError
from g2d.service.http.startup import refuse_policy_on_ray
from g2d.service.loader import VaultLoader
from g2d.service.opening import open_live
from g2d.service.policy_state import begin, retire
from g2d.settings import ServeSettings

STICKY, GLOBAL = ServeSettings(policy="sticky"), ServeSettings()


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    return tmp_path / "vault"


def file() -> Path:
    (found,) = (state_folder() / "serving").glob("*.json")
    return found


def test_a_first_start_has_one_live_and_a_restart_those_that_were(place):
    secret, numbers = begin(place, STICKY, [1, 2, 3])
    assert (len(secret), numbers) == (32, [3])
    assert begin(place, STICKY, [1, 2, 3, 5, 6]) == (secret, [3, 5, 6])
    assert begin(place, STICKY, [1, 2, 3, 5, 6, 7]) == (secret, [5, 6, 7])
    assert begin(place.with_name("other"), STICKY, [1])[0] != secret
    assert stat.S_IMODE(next((state_folder() / "serving").glob("*.json")).stat().st_mode) == 0o600


def test_what_was_retired_is_not_live_again_whatever_the_settings_become(place):
    begin(place, STICKY, [1])
    wide = ServeSettings(policy="vote", live=5)
    secret, numbers = begin(place, wide, [1, 2, 3, 4, 5, 6])
    assert numbers == [4, 5, 6], "three were live"
    assert begin(place, wide, [1, 2, 3, 4, 5, 6, 7])[1] == [4, 5, 6, 7]
    assert begin(place, GLOBAL, [1, 2, 3, 4, 5, 6, 7, 8]) == (b"", [8])
    assert begin(place, wide, [7, 8, 9]) == (secret, [9]), "all but the newest were retired"


def test_what_left_while_it_was_served_is_not_live_again_after_a_restart(place):
    begin(place, STICKY, [1])
    begin(place, STICKY, [1, 2, 3])
    retire(place, 3)
    assert begin(place, STICKY, [1, 2, 3, 4])[1] == [3, 4]
    retire(place, 2)
    assert begin(place, STICKY, [1, 2, 3, 4])[1] == [3, 4], "nothing lowers it"
    begin(place, GLOBAL, [4, 5])
    retire(place, 9)
    assert json.loads(file().read_text())["policy"] == "global"
    retire(place.with_name("other"), 3)  # where nothing is kept, nothing is noted


def test_where_the_newest_alone_is_live_nothing_is_kept(place):
    assert begin(place, GLOBAL, [1, 2]) == (b"", [2])
    assert not state_folder().exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"secret": "ab", "policy": "sticky", "live": 3, "first": 1}']
)
def test_a_damaged_file_is_said_and_not_made_anew(place, text):
    begin(place, STICKY, [1])
    file().write_text(text)
    with pytest.raises(VaultError, match=r"is not what `g2d serve` wrote .* delete it"):
        begin(place, STICKY, [1])
    assert file().read_text() == text
    assert begin(place, GLOBAL, [1]) == (b"", [1]), "it needs none of it"


def test_a_state_folder_that_cannot_be_written_is_said(place):
    state_folder().parent.mkdir(exist_ok=True)
    state_folder().write_text("a file")
    with pytest.raises(
        VaultError, match=r"serving policies keep in the state folder .* set G2D_STATE"
    ):
        begin(place, STICKY, [1])


def test_the_secret_of_a_file_is_hex_of_32_bytes(place):
    secret, _ = begin(place, STICKY, [1])
    assert bytes.fromhex(json.loads(file().read_text())["secret"]) == secret


def test_a_cluster_says_that_it_has_one_live(place):
    refuse_policy_on_ray(GLOBAL)
    with pytest.raises(Exception, match=r"with --engine ray only the newest .* --policy global"):
        refuse_policy_on_ray(STICKY)


def test_what_is_live_beside_the_newest_is_verified_and_a_damaged_one_left_out(vault, loader):
    def opened(policy: ServeSettings = STICKY) -> list[int]:
        return [each.number for each in open_live(loader, policy, vault).live.snapshots]

    newest = loader.live()
    assert opened(GLOBAL) == [newest]
    assert opened() == [newest]
    loads, plain = [], VaultLoader.load
    exposed = [newest - 2, newest - 1, newest]  # as if these had been live

    def load(self, number, after):
        loads.append((number, after))
        if number == broken:
            raise VaultError("its digest is another's")
        return plain(self, newest, newest - 1)

    broken = -99
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loader, "exposures", lambda: exposed)
        patched.setattr(VaultLoader, "load", load)
        patched.setattr("g2d.service.opening.begin", lambda *_: (bytes(32), exposed))
        assert len(opened()) == 3
        assert loads == [(newest - 1, newest - 2), (newest - 2, newest - 3)]
        broken = newest - 1
        found = open_live(loader, STICKY, vault)
        assert len(found.live.snapshots) == 1
        assert found.left_out == (
            f"generation {newest - 1} and what is older are live no more: its digest is another's"
        )
    assert json.loads(file().read_text())["first"] == newest
