"""Networks that the red team keeps beside a sealed vault: sealed too, and read by its workers."""

from types import SimpleNamespace

import pytest
import torch

from g2d.errors import CheckpointError, SealingError
from g2d.protect.sealing import make_custodian
from g2d.redteam.chains import NetworkStore
from g2d.redteam.context import AttackContext, Network
from g2d.vault.sealing import changing
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import digest, pack

pytest.importorskip("cryptography")

STATE = {"weight": torch.arange(600.0).reshape(20, 30)}
DATA = pack(STATE)


@pytest.fixture
def vault(tmp_path):
    url = f"file:{tmp_path / 'c.key'}"
    with Vault.create(tmp_path / "vault", "[task]\n") as made:
        made.accept({"weights": DATA}, {}, activate=True)
        changing.seal(made, make_custodian(url)[0], url)
        yield made


def context(vault):
    """What a worker has of the vault before any task is loaded."""
    made = AttackContext.__new__(AttackContext)
    made.spec = SimpleNamespace(vault=str(vault.path))
    return made


def test_a_network_is_kept_sealed_wherever_its_folder_is(vault, tmp_path):
    for folder in (vault.path / "redteam" / "networks", tmp_path / "elsewhere"):
        store = NetworkStore(folder, vault.sealing)
        kept = store.keep("soup", "k" * 12, 0, DATA)
        (path,) = folder.glob("*.safetensors")
        assert DATA[100:200] not in path.read_bytes()
        before = path.read_bytes()
        assert store.keep("soup", "k" * 12, 0, DATA) == kept
        assert path.read_bytes() == before  # what is there is not written again
        assert store.find("soup", "k" * 12, 0).digest == kept.digest == digest(DATA)
        assert torch.equal(context(vault).state(kept)["weight"], STATE["weight"])


def test_a_worker_reads_a_generation_of_a_sealed_vault(vault):
    network = Network(str(vault.generation_file(1)), digest(DATA), "1")
    assert torch.equal(context(vault).state(network)["weight"], STATE["weight"])
    other = Network(network.path, digest(b"other"), "1")
    with pytest.raises(CheckpointError, match="has changed"):
        context(vault).state(other)


def test_without_the_custodian_a_worker_says_so(vault, tmp_path):
    (tmp_path / "c.key").unlink()
    network = Network(str(vault.generation_file(1)), digest(DATA), "1")
    with pytest.raises(SealingError, match="there is no custodian"):
        context(vault).state(network)


def test_beside_a_plain_vault_networks_are_plain(tmp_path):
    with Vault.create(tmp_path / "plain", "[task]\n") as plain:
        kept = NetworkStore(tmp_path / "networks", plain.sealing).keep("soup", "k" * 12, 0, DATA)
        (path,) = (tmp_path / "networks").glob("*.safetensors")
        assert path.read_bytes() == DATA
        assert torch.equal(context(plain).state(kept)["weight"], STATE["weight"])
