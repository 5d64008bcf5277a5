"""The folder in which a refresh waits: what kills leave in it, and what others put there."""

from __future__ import annotations

import pytest

from g2d.core.engine import SerialEngine
from g2d.defence.refresh import Refresh, take_up
from g2d.defence.refresh.taking_up import READY
from g2d.defence.refresh.work import _staging, shortened
from g2d.defence.staging import Staging
from g2d.errors import SealingError, VaultError
from g2d.protect.sealing import make_custodian
from g2d.settings import Settings
from g2d.vault.sealing import changing
from g2d.vault.sources import STAGED, order_back
from g2d.vault.vault import Vault


@pytest.fixture
def vault(tmp_path):
    with Vault.create(tmp_path / "vault", Settings().to_toml()) as made:
        made.put("generator", 0, {"weights": b"first"}, {})
        yield made


def begin(vault: Vault, **how) -> bool:
    """Whether a refresh can begin in the folder, as it lies there."""
    with _staging(vault, "digest", Refresh(SerialEngine(), **how)) as staged:
        return staged.entry("records") is None


def test_what_a_kill_has_left_of_the_folder_is_no_obstacle(vault):
    folder = vault.path / STAGED
    (folder / "population").mkdir(0o700, parents=True)
    (folder / "population" / "000000.safetensors").write_bytes(b"its ledger has gone already")
    assert begin(vault)
    for file in folder.glob("ledger*"):
        file.write_bytes(b"")  # its tables were not committed
    assert begin(vault)


def test_a_folder_that_is_damaged_is_dropped_on_demand(vault):
    assert begin(vault)
    with Staging.open(vault.path / STAGED, write=True) as staged:
        staged.put("member", 0, {"weights": b"x"}, {})
    for file in (vault.path / STAGED).glob("ledger*"):
        file.write_bytes(b"junk" * 1000)
    with pytest.raises(VaultError, match=r"has left cannot be used .* --anew drops it"):
        begin(vault)
    assert begin(vault, anew=True)


def test_a_link_in_its_place_is_refused_and_what_it_shows_stays(vault, tmp_path):
    Vault.create(tmp_path / "other", Settings().to_toml()).close()
    (vault.path / STAGED).symlink_to(tmp_path / "other")
    for do in (lambda: begin(vault, anew=True), lambda: take_up(vault)):
        with pytest.raises(VaultError, match="is a link or a file, expected the folder"):
            do()
    assert (tmp_path / "other" / "ledger.sqlite").is_file()


def test_a_challenger_of_what_is_the_source_no_more_is_told(vault):
    """It is what a rollback, or a new fit, makes of a refresh that goes on meanwhile."""
    generator = vault.entry("generator").files["weights"]
    info = {
        "id": "1", "given": "digest", "parent": 0, "vault": vault.identity, "generator": generator,
    }  # fmt: skip
    begin(vault)
    with Staging.open(vault.path / STAGED, write=True) as staged:
        staged.put("records", 0, {"weights": b"r"}, info)
        staged.put("generator", 0, {"weights": b"g"}, {})
    assert take_up(vault) is None  # it is not ready
    with Staging.open(vault.path / STAGED, write=True) as staged:
        staged.put("generator", 0, {"weights": b"g"}, {READY: True})
    vault.put("generator", 0, {"weights": b"fitted anew"}, {})
    with pytest.raises(VaultError, match="is the source no more: run `g2d refresh` with its data"):
        take_up(vault)
    vault.put("generator", 0, {"weights": b"first"}, {})
    assert not begin(vault)  # the command once more, and what was ready is judged anew
    assert take_up(vault) is None
    with Staging.open(vault.path / STAGED, write=True) as staged:
        staged.put("generator", 0, {"weights": b"g"}, {READY: True})
    with pytest.raises(VaultError, match=r"waits in .*refreshing: remove that folder to drop it"):
        order_back(vault)
    taken = take_up(vault)
    assert (taken.source, vault.source) == (1, 1)
    assert not (vault.path / STAGED).exists()


def test_a_challenger_of_a_sealed_vault_waits_sealed(vault, tmp_path):
    pytest.importorskip("cryptography")
    url, secret = f"file:{tmp_path / 'c.key'}", b"networks of a challenger " * 9
    changing.seal(vault, make_custodian(url)[0], url)
    assert begin(vault)
    info = {
        "id": "1", "given": "digest", "parent": 0, "vault": vault.identity,
        "generator": vault.entry("generator").files["weights"],
    }  # fmt: skip
    with Staging.open(vault.path / STAGED, write=True) as staged:
        with pytest.raises(SealingError, match="nobody here has said"):
            staged.put("records", 0, {"weights": secret}, info)
        changing.share(vault, staged)
        staged.put("records", 0, {"weights": secret}, info)
        staged.put("generator", 0, {"weights": secret}, {READY: True})
    assert not any(secret[:64] in path.read_bytes() for path in files_below(vault.path))
    with pytest.raises(SealingError, match="holds networks of work that is not finished"):
        changing.unseal(vault, None)
    assert take_up(vault).source == 1
    assert vault.read(vault.entry("generator")) == secret
    assert not any(secret[:64] in path.read_bytes() for path in files_below(vault.path))


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_fits_of_a_refresh_take_their_share_of_steps_and_none_where_there_are_none():
    made = shortened(Settings().override(autoencoder__steps=0, diffusion__steps=801))
    assert (made.autoencoder.steps, made.diffusion.steps) == (0, 81)
    assert made.refresh.fit == 0.1
