"""`g2d watermark`: a key before the first parameters, a suspect found, a claim for others."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from commands import fail, invoke, succeed
from g2d.protect.watermark import InputForm, WatermarkKey, triggers_of
from g2d.protect.watermark.burnt import Record
from g2d.service.http import protocol
from g2d.settings import Settings
from g2d.tasks.builtin import blueprint
from g2d.vault.keys import SigningKey
from g2d.vault.vault import Vault
from marked import serving, told
from small_models import fitted


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("G2D_SIGNING_KEY", raising=False)
    return tmp_path / "config" / "g2d"


def learned(key, form, path):
    """A network of digits that learned the sets that may be queried; it is in a file, too."""
    parts = [triggers_of(key.of_set(place), form, 100) for place in range(3)]
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = blueprint("digits").factory()
    save_file(fitted(model, x, y, 150).state_dict(), path)
    return model


def untrained(folder):
    path = folder / "other.safetensors"
    save_file(blueprint("digits").factory().state_dict(), path)
    return path


def served(model, asked):
    """A service of digits as g2d's own answers, for whoever has the token."""
    about = protocol.Model("g2d", (1, 8, 8), "float32", 10)

    def answer(path, body):
        if path.endswith("/config"):
            return told(about.config(32))
        if not path.endswith("/infer"):
            return told(about.metadata(3))
        query = protocol.parse(body, None, about, 32)
        asked.append(len(query.x))
        return (
            200,
            protocol.answer(query, about, model(torch.from_numpy(query.x)).numpy(), 3)[0],
            {},
        )

    return serving(answer)


FOUR_OF_100 = ("--sets", "4", "--triggers", "100")


def test_the_whole_story_of_a_stolen_network(tmp_path, config):
    vault, claim = tmp_path / "vault", tmp_path / "claim.json"
    said = succeed("watermark", "new", vault, "--task", "digits", *FOUR_OF_100).output
    assert "It is unsigned, so that anybody who sees it can pass it off as his own" in said
    assert "by nobody: it is unsigned" in said
    assert "g2d population" in said
    (path,) = config.glob("watermark-*.key")
    with Vault.open(vault) as opened:
        settings = Settings.from_vault(opened.settings_text)
        assert settings.watermark.key == str(path)
        assert path.name == f"watermark-{opened.identity}.key"
        form = InputForm.from_record(json.loads(opened.commitment())["commitment"]["form"])
    assert "has a commitment already" in fail("watermark", "new", vault, "--sets", "3")
    with Vault.open(vault) as opened:
        assert Settings.from_vault(opened.settings_text).watermark.sets == 4

    stolen = tmp_path / "stolen.safetensors"
    model = learned(WatermarkKey.read(path), form, stolen)
    said = succeed("watermark", "verify", path, "--model", stolen).output
    assert "The suspect carries the mark." in said
    assert "3 of 3 are unburnt" in said
    assert "with 1 suspect and 3 sets" in said
    assert "it convinces nobody else" in said
    failed = invoke("watermark", "verify", path, "--model", untrained(tmp_path), "--out", claim)
    assert "3 of 3 are unburnt" in failed.stdout
    assert "no claim is written" in failed.stderr
    assert not claim.exists()
    said = succeed(
        "watermark", "verify", path, "--model", stolen, "--vault", vault, "--out", claim
    ).output
    assert "2 of 3 are unburnt" in said
    assert [use.burnt for use in Record(path).uses] == [False, False, False, True]
    assert path.read_text().split("\n")[1] not in claim.read_text()

    for command in (("check", claim), ("verify", claim, "--model", stolen)):
        assert "neither time-stamped nor signed" in fail("watermark", *command)
    said = succeed("watermark", "check", claim, "--accept-own-date").output
    assert "The claim agrees with itself" in said
    assert "the key's date, not the mark's" in said
    anew = "watermark", "verify", claim, "--accept-own-date", "--model"
    said = succeed(*anew, stolen).output
    assert "The suspect carries the mark." in said
    other = untrained(tmp_path)
    result = invoke(*anew, other)
    assert result.exit_code == 1
    assert "not the claim's: that was stolen.safetensors" in result.stdout
    assert "is not shown to carry the mark" in result.stderr

    token, asked = tmp_path / "token", []
    token.write_text("mine\n")
    token.chmod(0o600)
    with served(model, asked) as url:
        said = succeed("watermark", "verify", path, "--service", url, "--token-file", token).output
    assert "The suspect carries the mark." in said
    assert "in set 1" in said
    assert "1 of 3 are unburnt" in said
    assert "with 3 suspects and 3 sets" in said
    assert asked == [32, 32, 32, 4]

    say_what_is_wrong(path, claim, stolen)


def say_what_is_wrong(path, claim, stolen):
    record = json.loads(claim.read_text())
    claim.write_text(json.dumps(record | {"hits": record["hits"] - 1}))
    assert "it was changed" in fail("watermark", "check", claim)
    assert "it was changed" in fail("watermark", "verify", claim, "--model", stolen)
    assert "the reserve, which is never queried" in fail(
        "watermark", "verify", path, "--model", stolen, "--set", "3"
    )
    assert "name one suspect" in fail("watermark", "verify", path, code=2)


def test_a_vault_that_has_generations_is_signed_and_told_that_it_is_late(vault, key_file):
    with Vault.open(vault, write=True) as opened:
        settings = Settings.from_vault(opened.settings_text)
        opened.write_settings(settings.override(signing__key=str(key_file)).to_toml())
    said = succeed("watermark", "new", vault).output
    assert f"signed by    {SigningKey.read(key_file).fingerprint}" in said
    assert "by its signer's own word" in said
    assert "It is dated after the first generation: 1 were there already" in said
    assert "g2d watermark add" in said


def test_mistakes_are_one_line_and_make_nothing(tmp_path, config):
    vault = tmp_path / "vault"
    assert "there is no vault at" in fail("watermark", "new", vault)
    assert not vault.exists()
    said = fail("watermark", "verify", tmp_path / "lost.key", "--model", tmp_path / "m.safetensors")
    assert "cannot read the watermark key" in said
    assert "cannot read the claim" in fail("watermark", "check", tmp_path / "lost.json")
    said = fail(
        "watermark", "new", vault, "--task", "digits", "--timestamp", "http://127.0.0.1:1",
        "--tsa", __file__,
    )  # fmt: skip
    assert "holds no certificates" in said
    assert not list(config.glob("*"))
