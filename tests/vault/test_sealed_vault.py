"""A sealed vault: nothing of it lies in plaintext, and who has its key uses it as any other."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from benchmarks.sealing.scan import blocks_of, found_in, tensors_of
from commands import edit_ledger
from g2d.errors import BrokenSealError, RefusedError, SealingError, VaultError
from g2d.protect import sealing
from g2d.protect.sealing.file import FileCustodian
from g2d.protect.sealing.paper import PaperCustodian
from g2d.vault.keys import SigningKey
from g2d.vault.ledger import FORMAT, SEALED_FORMAT
from g2d.vault.sealing import changing, released
from g2d.vault.signing import sign_generation, verify_generation
from g2d.vault.vault import Vault
from g2d.vault.verify import verify

pytest.importorskip("cryptography")

DIGESTS = {"task": "t", "population": "p", "generator": "g", "gates": [], "exposed": []}


def network(seed: int) -> bytes:
    draw = np.random.default_rng(seed)
    return save({"weight": draw.normal(size=(40, 30)).astype("f4"), "bias": np.ones(9, "f4")})


def scan(folder, wanted: set[bytes]) -> list[str]:
    """Files below a folder in which a block lies."""
    return list(found_in(folder, wanted))


@pytest.fixture
def filled(vault):
    """A vault with an entry of each kind and two generations."""
    vault.put("base", 0, {"weights": network(0)}, {})
    vault.put("generator", 0, {"weights": network(1)}, {})
    for index in range(3):
        vault.put("member", index, {"weights": network(10 + index), "attacks": network(20)}, {})
    for seed in (30, 31):
        vault.accept({"weights": network(seed), "attacks": network(seed + 10)}, {}, activate=True)
    return vault


@pytest.fixture
def url(tmp_path):
    return f"file:{tmp_path / 'custodian' / 'c.key'}"


@pytest.fixture
def custodian(url):
    return sealing.make_custodian(url)[0]


@pytest.fixture
def sealed(filled, custodian, url):
    changing.seal(filled, custodian, url)
    return filled


SEEDS = (0, 1, 10, 11, 12, 20, 30, 31, 40, 41, 50, 51, 60)
PLAIN = blocks_of(tensors_of(network(seed) for seed in SEEDS))


def test_nothing_of_a_sealed_vault_lies_in_plaintext(filled, custodian, url):
    assert len(scan(filled.path, PLAIN)) == 12  # the scan finds what is there
    done = changing.seal(filled, custodian, url)
    assert (done.files, done.before) == (12, 0)
    filled.accept({"weights": network(50), "attacks": network(51)}, {}, activate=True)
    filled.put("base", 0, {"weights": network(60)}, {})
    assert scan(filled.path, PLAIN) == []
    assert filled.read_generation(3) == network(50)
    filled.close()
    with Vault.open(filled.path) as again:
        assert again.read(again.entry("base")) == network(60)
        assert again.read_generation(1, "attacks") == network(40)
    assert verify(filled.path) == []


def test_sealing_changes_no_digest_manifest_or_row(filled, custodian, url):
    before = filled.generations(), filled.entries("member"), filled.exposures()
    manifest = (filled.path / "generations" / "000001" / "manifest.json").read_bytes()
    changing.seal(filled, custodian, url)
    assert (filled.generations(), filled.entries("member"), filled.exposures()) == before
    assert (filled.path / "generations" / "000001" / "manifest.json").read_bytes() == manifest


def test_unsealing_gives_every_byte_back(filled, custodian, url):
    files = sorted(filled.path.rglob("*.safetensors"))
    before = [path.read_bytes() for path in files]
    changing.seal(filled, custodian, url)
    assert changing.seal(filled, custodian, url).files == 0
    assert changing.unseal(filled, None).files == 12
    assert [path.read_bytes() for path in files] == before
    assert filled._rows("PRAGMA user_version")[0][0] == FORMAT
    filled.close()
    with Vault.open(filled.path, write=True) as again:
        again.put("base", 0, {"weights": b"plain"}, {})


def test_an_older_g2d_refuses_a_sealed_vault(sealed):
    assert sealed._rows("PRAGMA user_version")[0][0] == SEALED_FORMAT > FORMAT


def test_a_generation_that_was_signed_verifies_as_before(vault, custodian, url):
    key = SigningKey.generate()
    made = sign_generation(
        vault, {"weights": network(1), "attacks": network(2)}, DIGESTS, key,
        source=vault_source(vault), lifetime=1.0, activate=True,
    )  # fmt: skip
    changing.seal(vault, custodian, url)
    found = verify_generation(vault, 1, key.public, after=0, now=made.created)
    assert found.weights == network(1)
    assert verify(vault.path, key.public) == []
    path = vault.generation_file(1, "attacks")
    path.write_bytes(path.read_bytes()[:-40] + bytes(40))
    with pytest.raises(RefusedError, match="was changed since it was sealed") as refused:
        verify_generation(vault, 1, key.public, after=0, now=made.created)
    assert refused.value.reason == "digest"


def vault_source(vault):
    from g2d.settings import Settings

    return Settings.from_vault(vault.settings_text, "task.toml").source


# --- whose key it is ------------------------------------------------------------------------------


def test_without_its_custodian_it_says_so_and_reads_nothing(sealed, url, monkeypatch):
    sealed.close()
    path = url.removeprefix("file:")
    shutil.move(path, path + ".gone")
    with Vault.open(sealed.path) as opened:
        with pytest.raises(SealingError, match=r"there is no custodian .*c\.key"):
            opened.read_generation(1)
        assert opened.live() == 2  # the ledger stays readable
    found = verify(sealed.path)
    assert [problem.kind for problem in found] == ["custodian"]
    assert found[0].what.startswith("12 sealed files are whole and in their places")
    with Vault.open(sealed.path, write=True) as opened, pytest.raises(SealingError):
        opened.put("base", 0, {"weights": network(60)}, {})
    assert scan(sealed.path, PLAIN) == []


def test_a_vault_that_was_carried_elsewhere_names_nothing_by_itself(sealed, url, tmp_path):
    sealed.close()
    other = tmp_path / "elsewhere"
    shutil.copytree(sealed.path, other)
    with Vault.open(other) as opened, pytest.raises(SealingError, match="nobody here has said"):
        opened.read_generation(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("G2D_CUSTODIAN", url)
        with Vault.open(other) as opened:
            assert opened.read_generation(1) == network(30)


def test_a_second_custodian_opens_it_when_the_first_is_lost(sealed, url):
    paper = PaperCustodian.make()
    changing.add_custodian(sealed, paper, "paper")
    with pytest.raises(SealingError, match="no custodian 9"):
        changing.remove_custodian(sealed, 9)
    left = changing.remove_custodian(sealed, 1)
    assert [one.kind for one in left.held] == ["paper"]
    with pytest.raises(SealingError, match="is the last one"):
        changing.remove_custodian(sealed, 2)
    sealed.close()
    with Vault.open(sealed.path) as opened:
        with pytest.raises(SealingError, match="no custodian of kind 'file'"):
            opened.read_generation(1)
        opened.sealing.key(opened.sealing.record, paper)
        assert opened.read_generation(1) == network(30)


def test_another_file_custodian_does_not_open_it(sealed, tmp_path, monkeypatch):
    sealed.close()
    other = f"file:{tmp_path / 'other.key'}"
    sealing.make_custodian(other)
    monkeypatch.setenv("G2D_CUSTODIAN", other)
    with Vault.open(sealed.path) as opened, pytest.raises(SealingError, match="does not open it"):
        opened.read_generation(1)


class Tpm(FileCustodian):
    """A stand-in: each machine has a TPM of its own, and all are of one kind."""

    kind = "tpm"


def test_a_host_opens_its_release_although_the_vault_is_sealed_by_another_tpm(
    filled, tmp_path, monkeypatch
):
    here, there = (Tpm.make(tmp_path / f"{name}.key") for name in ("here", "there"))
    changing.seal(filled, here, "tpm:")
    fresh = bytes(32)
    wrapped = there.wrap(fresh, released.context_of(filled, 2))
    bundle = released.make_bundle(filled, filled.sealing.record, 2, fresh, wrapped)
    released.hold(filled, filled.sealing.record, "edge", 2, bundle)
    filled.close()
    monkeypatch.setattr("g2d.vault.sealing.sealer.new_custodian", lambda url: there)
    with Vault.open(filled.path) as opened:
        for number in (1, 2, 1):
            if number == 2:
                assert opened.read_generation(number) == network(31)
                continue
            with pytest.raises(SealingError, match=r"does not open it|was not released to this"):
                opened.read_generation(number)
    monkeypatch.setattr("g2d.vault.sealing.sealer.new_custodian", lambda url: here)
    with Vault.open(filled.path) as opened:
        assert opened.read_generation(1) == network(30)


# --- what others do to it -------------------------------------------------------------------------


def test_swapped_plain_and_changed_files_are_refused_and_told(sealed):
    one, two = (sealed.generation_file(number) for number in (1, 2))
    kept = one.read_bytes(), two.read_bytes()
    one.write_bytes(kept[1])
    with pytest.raises(BrokenSealError, match="sealed as generation 2, weights"):
        sealed.read_generation(1)
    assert [(p.kind, p.where) for p in verify(sealed.path)] == [
        ("sealing", "generations/000001/weights.safetensors")
    ]
    one.write_bytes(network(30))
    with pytest.raises(BrokenSealError, match="not sealed, in a vault that is"):
        sealed.read_generation(1)
    assert [p.kind for p in verify(sealed.path)] == ["sealing"]
    one.write_bytes(kept[0][:-50])
    with pytest.raises(VaultError, match="is cut off") as said:
        sealed.read_generation(1)
    assert "\n" not in str(said.value)
    one.write_bytes(kept[0])
    assert verify(sealed.path) == []


def test_a_ledger_that_says_no_more_that_it_is_sealed_gets_no_plaintext(sealed):
    sealed.close()
    edit_ledger(sealed.path, "DROP TABLE sealing", f"PRAGMA user_version = {FORMAT}")
    with pytest.raises(SealingError, match="was sealed here, and its ledger says so no more"):
        Vault.open(sealed.path, write=True)
    with Vault.open(sealed.path) as opened, pytest.raises(SealingError, match="does not say"):
        opened.read_generation(1)


@pytest.mark.parametrize(("name", "value"), [("state", "unsealing"), ("key", "0" * 16)])
def test_a_record_that_somebody_changed_gets_neither_plaintext_nor_his_key(sealed, name, value):
    sealed.close()
    edit_ledger(sealed.path, f"UPDATE sealing SET record = json_set(record, '$.{name}', '{value}')")
    with pytest.raises(SealingError, match="or names another key"):
        Vault.open(sealed.path, write=True)


@pytest.mark.parametrize("record", ["DROP TABLE sealing", "state", "key"])
def test_a_ledger_that_changes_while_it_is_open_gets_no_plaintext_either(sealed, record):
    change = {"state": "unsealing", "key": "0" * 16}.get(record)
    if change:
        record = f"UPDATE sealing SET record = json_set(record, '$.{record}', '{change}')"
    edit_ledger(sealed.path, record)
    with Vault.open(sealed.path) as reader:  # the red team writes beside a vault that it reads
        for opened in (sealed, reader):
            with pytest.raises(SealingError, match="or names another key"):
                opened.sealing.shut(b"", partial(opened.sealing.other, "network", "", b""))
    with pytest.raises(SealingError, match="or names another key"):
        sealed.accept({"weights": network(50)}, {}, activate=True)
    assert scan(sealed.path, PLAIN) == []


def test_that_a_vault_is_sealed_is_remembered_where_a_variable_names_the_custodian(
    sealed, url, tmp_path, monkeypatch
):
    sealed.close()
    other = shutil.copytree(sealed.path, tmp_path / "elsewhere")
    monkeypatch.setenv("G2D_CUSTODIAN", url)
    with Vault.open(other, write=True) as opened:
        opened.put("base", 0, {"weights": network(60)}, {})
    edit_ledger(other, "DROP TABLE sealing")
    with pytest.raises(SealingError, match="was sealed here"):
        Vault.open(other, write=True)


def test_work_beside_a_sealed_vault_stays_sealed_whatever_its_ledger_says(sealed, tmp_path):
    class Beside(Vault):
        remembered = False

    with Beside.create(tmp_path / "beside", "[task]\n") as beside:
        changing.share(sealed, beside)
        edit_ledger(beside.path, "DROP TABLE sealing")
        with pytest.raises(SealingError, match="or names another key"):
            beside.put("member", 0, {"weights": network(60)}, {})
        assert scan(beside.path, PLAIN) == []


def test_a_custodian_that_fails_is_asked_once_by_verify(sealed, monkeypatch):
    sealed.close()
    asked = []

    def refuse(url):
        asked.append(url)
        raise SealingError("the PIN is wrong")

    monkeypatch.setattr("g2d.vault.sealing.sealer.new_custodian", refuse)
    (problem,) = verify(sealed.path)
    assert "12 sealed files" in problem.what
    assert len(asked) == 1


@pytest.mark.parametrize("record", ["", "{}", "[1]", '{"custodians": [{}]}', "[" * 9999])
def test_a_damaged_record_is_one_line(sealed, record):
    sealed.close()
    edit_ledger(sealed.path, f"UPDATE sealing SET record = '{record}'")
    with Vault.open(sealed.path) as opened, pytest.raises(SealingError, match="is damaged") as said:
        opened.read_generation(1)
    assert "\n" not in str(said.value)
    assert "sealing" in {problem.kind for problem in verify(sealed.path)}


@pytest.mark.parametrize("name", ["backup.pt", "generations/000001/old.bin", "redteam/model.npz"])
def test_a_file_that_is_none_of_the_vault_is_named_before_anything_is_sealed(
    filled, custodian, url, name
):
    path = filled.path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(network(30))
    with pytest.raises(SealingError, match="is no file of the vault"):
        changing.seal(filled, custodian, url)
    assert filled.sealing.record is None


@pytest.mark.parametrize("place", ["{}/refreshing", "{}/growing", "{}.marking", "{}.federated"])
def test_work_that_waits_is_finished_first(filled, custodian, url, place):
    Path(place.format(filled.path)).mkdir()
    with pytest.raises(SealingError, match="holds networks of work that is not finished"):
        changing.seal(filled, custodian, url)
    assert filled.sealing.record is None


def test_networks_of_the_red_team_and_secret_limits_are_sealed_too(filled, custodian, url):
    folder = filled.path / "redteam" / "networks"
    folder.mkdir(parents=True)
    (folder / "soup-1.safetensors").write_bytes(network(41))
    (folder / "soup-1.json").write_text("{}")
    (folder / ".soup-2.safetensors.0123456789ab").write_bytes(network(41))  # of a kill
    limit = b'{"limit": 17.25, "a secret that is longer than one block of sixty-four bytes": 1}'
    (filled.path / "privacy-gate.json").write_bytes(limit)
    assert changing.seal(filled, custodian, url).files == 14
    assert scan(filled.path, PLAIN | {limit[:64]}) == []
    assert filled.sealing.content(folder / "soup-1.safetensors") == network(41)
    changing.unseal(filled, None)
    assert (filled.path / "privacy-gate.json").read_bytes() == limit


def test_a_damaged_file_stops_sealing_and_nothing_is_lost(filled, custodian, url):
    path = filled.path / "population" / "000001.safetensors"
    kept = path.read_bytes()
    path.write_bytes(kept[:-1])
    with pytest.raises(VaultError, match=r"000001\.safetensors is corrupt"):
        changing.seal(filled, custodian, url)
    assert filled.read_generation(2) == network(31)
    filled.accept({"weights": network(50)}, {}, activate=True)  # it goes on meanwhile, sealed
    assert "sealing" in {problem.kind for problem in verify(filled.path)}
    path.write_bytes(kept)
    assert changing.seal(filled, custodian, url).before > 0
    assert scan(filled.path, PLAIN) == []
    assert verify(filled.path) == []


# --- vaults beside --------------------------------------------------------------------------------


def test_work_beside_a_sealed_vault_is_sealed_under_its_key(sealed, tmp_path):
    class Beside(Vault):
        remembered = False

    with Beside.create(tmp_path / "beside", "[task]\n") as beside:
        changing.share(sealed, beside)
        beside.put("member", 0, {"weights": network(60)}, {})
        assert scan(beside.path, PLAIN) == []
    with Beside.open(tmp_path / "beside", write=True) as beside:
        with pytest.raises(SealingError):
            beside.read(beside.entry("member"))
        changing.share(sealed, beside)
        assert beside.read(beside.entry("member")) == network(60)


def test_work_that_was_begun_in_plaintext_is_not_taken_for_a_sealed_vault(sealed, tmp_path):
    with Vault.create(tmp_path / "beside", "[task]\n") as beside:
        beside.put("member", 0, {"weights": network(60)}, {})
        with pytest.raises(SealingError, match="was begun before"):
            changing.share(sealed, beside)
