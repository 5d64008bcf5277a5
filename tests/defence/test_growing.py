"""A basin that is grown in a vault: killed, gone on with, taken up, used next; and refusals."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

import g2d
from g2d.core.types import silent
from g2d.defence import members
from g2d.defence.growing import Grow, grow, take_up_basin, work
from g2d.defence.growing.plan import Plan
from g2d.defence.members import begin_in
from g2d.defence.refresh import follow
from g2d.defence.staging import Staging
from g2d.errors import PopulationError, PrivacyError, SealingError, SettingsError, VaultError
from g2d.protect import sealing
from g2d.settings import Settings
from g2d.vault.basins import GROWING, GROWN, GROWN_MEMBER, stock_of
from g2d.vault.federated import FEDERATED
from g2d.vault.sealing import changing
from g2d.vault.sealing.envelope import is_sealed
from g2d.vault.vault import Entry, Vault
from g2d.vault.verify import verify

SOUPS = {
    "generator__space": "soup", "guidance__resting": True, "growth__members": 2,
    "growth__keep": 1,
    "guidance__polish_steps": 4, "gates__accuracy_drop": 1.0, "gates__class_drop": 1.0,
    "gates__distance": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def soups(tiny_vault, tmp_path_factory):
    """The tiny vault with soups, and a generation of each of its two basins exposed."""
    path = tmp_path_factory.mktemp("growing") / "vault"
    shutil.copytree(tiny_vault, path)
    with Vault.open(path, write=True) as opened:
        settings = Settings.from_toml(opened.settings_text).override(**SOUPS)
        opened.write_settings(settings.to_toml())
    with g2d.Defence.open(path) as defence:
        defence.fit()
        defence.generate(2, seed=0)
    return path


@pytest.fixture
def path(soups, tmp_path):
    shutil.copytree(soups, tmp_path / "vault")
    return tmp_path / "vault"


def entries_of(vault):
    kinds = ("base", "early", "member", "generator")
    return {(e.kind, e.index): e.files for kind in kinds for e in vault.entries(kind)}


def test_basins_take_turns_however_few_generations_guidance_remembers(path):
    """With memory = 1 and by what is remembered alone, one of two would have rested for ever."""
    with g2d.Defence.open(path) as defence:
        vault, settings = defence.vault, defence.settings
        last = stock_of(vault).exposed
        assert begin_in(vault, settings) == (min(last, key=last.__getitem__),)
        assert begin_in(vault, settings.override(guidance__resting=False)) == ()


def interrupt(monkeypatch):
    """Have the third training interrupted; return what is trained."""
    trained, run_job = [], work.run_job

    def killed(job):
        if len(trained) == 2:
            trained.append("killed")
            raise KeyboardInterrupt
        trained.append((job.kind, job.index))
        return run_job(job)

    monkeypatch.setattr(work, "run_job", killed)
    return trained


def test_a_basin_is_grown_whatever_kills_and_the_next_generation_begins_there(
    path, tmp_path, monkeypatch
):
    shutil.copytree(path, tmp_path / "other")
    run_job = work.run_job
    trained = interrupt(monkeypatch)
    with g2d.Defence.open(path) as writer:  # a service's worker
        assert stock_of(writer.vault).unseen == ()
        before = entries_of(writer.vault)
        with g2d.Defence.open(path, write=False) as defence:
            with pytest.raises(KeyboardInterrupt):
                grow(defence, Grow(seed=7))
            assert take_up_basin(writer.vault) is None
            said = []
            made = grow(defence, Grow(seed=8, say=said.append))  # the plan's own seed goes on
        assert trained == [
            ("early", GROWN), ("member", GROWN_MEMBER), "killed", ("member", GROWN_MEMBER + 1)
        ]  # fmt: skip
        assert (made.basin, made.members, made.cpu > 0) == (GROWN, 2, True)
        assert "at the midpoint with any other basin" in said[-1]
        assert entries_of(writer.vault) == before
        taken = take_up_basin(writer.vault)
        assert (taken.basin, taken.unseen) == (GROWN, 1)
        assert take_up_basin(writer.vault) is None
        after = entries_of(writer.vault)
        assert {key for key in after if before.get(key) != after[key]} == {
            ("early", GROWN), ("member", GROWN_MEMBER), ("member", GROWN_MEMBER + 1),
            ("generator", 0),
        }  # fmt: skip
        assert stock_of(writer.vault).retired == {0}  # of two that were seen the newest is kept
        renewed = follow(writer)
        assert renewed.generator.space.basins() == (1, GROWN)
        assert begin_in(renewed.vault, renewed.settings) == (GROWN,)
        (found,) = renewed.generate(1, seed=1)
        assert found.manifest["basin"] == GROWN
        assert stock_of(writer.vault).unseen == ()
    assert verify(path) == []
    assert not (path / GROWING).exists()
    with g2d.Defence.open(path) as again:
        kept = again.vault.entry("generator")
        again.populate()
        again.fit()  # it is the generator of these members already
        assert again.vault.entry("generator") == kept

    monkeypatch.setattr(work, "run_job", run_job)
    with g2d.Defence.open(tmp_path / "other") as other:  # the same without a kill
        with monkeypatch.context() as patched:
            patched.setattr(work, "BARRIER", 1.0)  # as if it lay in a basin that is there
            with pytest.raises(PopulationError, match=r"that was grown is basin [01], which is"):
                grow(other, Grow(seed=7))
        assert take_up_basin(other.vault) is None
        grow(other, Grow())
        assert take_up_basin(other.vault).basin == GROWN
        assert entries_of(other.vault) == after


def test_what_was_exposed_is_among_what_it_is_repelled_from(path):
    with g2d.Defence.open(path) as defence:
        s = defence.settings.population
        told = []
        against = work.Against(defence.task, defence.vault, s, 3, told.append)
        kinds = [type(source).__name__ for source in against.sources()]
        assert kinds == ["Entry", "Entry", "int", "int"]
        pools = against.pools("member", 1)
        assert len(pools) == 5
        assert len(set(pools)) == 5  # the base, two members, two generations
        assert against.pools("member", 1) == pools
        assert set(against.crafted) == {2, 3}
        (path / "generations" / "000003" / "weights.safetensors").write_bytes(b"damaged")
        other = work.Against(defence.task, defence.vault, s, 3, told.append)
        assert len(other.pools("member", 1)) == 4
        other.pools("member", 2)
    assert len(told) == 1
    assert told[0].startswith("nothing is learned against generation 3: ")


def waiting(vault, **about):
    """A plan and a generator, as they wait in the folder of a basin that is ready."""
    found = {
        "vault": vault.identity, "source": 0, "base": vault.entry("base").files["weights"],
    } | about  # fmt: skip
    of = vault.entry("generator").files["weights"]
    with Staging.create(vault.path / GROWING, vault.settings_text) as staged:
        staged.put("records", 0, {}, Plan("id", GROWN, GROWN_MEMBER, 2, 0, found).note())
        for index in range(2):
            staged.put("member", index, {"weights": b"m%d" % index}, {"basin": GROWN})
        staged.put("early", 0, {"weights": b"e"}, {"basin": GROWN})
        staged.put("generator", 0, {"weights": b"g"}, {"ready": True, "of": of})


@pytest.fixture
def bytes_alone(tmp_path):
    with Vault.create(tmp_path / "vault", Settings().to_toml()) as made:
        made.put("base", 0, {"weights": b"base"}, {})
        made.put("generator", 0, {"weights": b"first"}, {})
        yield made


def test_a_basin_of_what_the_vault_holds_no_more_is_told_and_nothing_changes(bytes_alone):
    vault = bytes_alone
    waiting(vault)
    vault.put("generator", 0, {"weights": b"fitted anew"}, {})
    before = entries_of(vault)
    with pytest.raises(VaultError, match=r"`g2d grow .*` fits it to what is there"):
        take_up_basin(vault)
    assert entries_of(vault) == before
    vault.put("generator", 0, {"weights": b"first"}, {})
    assert take_up_basin(vault).basin == GROWN
    waiting(vault, source=1)
    vault.put("early", GROWN, {"weights": b"e"}, {"plan": "another"})
    with pytest.raises(VaultError, match="beside a population or a generator"):
        take_up_basin(vault)


def test_what_fitting_took_is_noted_with_the_basin(bytes_alone):
    """The generator's own note goes with the next one."""
    vault = bytes_alone
    waiting(vault)
    with Staging.open(vault.path / GROWING, write=True) as staged:
        fitted = staged.entry("generator")
        staged.put("generator", 0, {"weights": b"g"}, {**fitted.info, "cpu_seconds": 3.5})
    take_up_basin(vault)
    assert vault.entry("early", GROWN).info["fit_cpu_seconds"] == 3.5


@pytest.mark.parametrize(
    ("how", "named"),
    [(Grow(members=6), "--members 6"), (Grow(seed=9), "--seed"), (Grow(members=2, seed=0), "")],
)
def test_what_a_plan_that_goes_on_has_otherwise_is_said(how, named):
    said = []
    how.say = said.append
    Plan("id", GROWN, GROWN_MEMBER, 2, 0, {}).tell_kept(how)
    assert len(said) == bool(named)
    assert all(named in line and "--anew" in line and "2 members" in line for line in said)


def test_a_refresh_goes_first_and_what_a_kill_left_after_the_commit_goes(bytes_alone):
    vault = bytes_alone
    waiting(vault)
    refresh = vault.path / "refreshing"
    Staging.create(refresh, vault.settings_text).close()
    assert take_up_basin(vault) is None
    shutil.rmtree(refresh)
    shutil.copytree(vault.path / GROWING, vault.path.with_name("kept"))
    assert take_up_basin(vault).basin == GROWN
    kept = entries_of(vault)
    shutil.copytree(vault.path.with_name("kept"), vault.path / GROWING)
    assert take_up_basin(vault) is None
    assert entries_of(vault) == kept
    assert not (vault.path / GROWING).exists()


def test_a_link_in_its_place_is_refused(bytes_alone, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (bytes_alone.path / GROWING).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VaultError, match="is a link or a file, expected the folder of a basin"):
        take_up_basin(bytes_alone)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"privacy__enabled": True}, PrivacyError, "is private, and each training of it is paid"),
        ({"population__recipe": "seeds"}, SettingsError, "makes each member a basin of its own"),
        ({"population__early_steps": 0, "population__basins": 1}, SettingsError, "the one basin"),
        ({"growth__members": 1}, SettingsError, "give it 2 members or more"),
    ],
)
def test_where_no_basin_can_be_grown_one_line_says_why(path, changes, error, said):
    with g2d.Defence.open(path, write=False) as defence:
        if "privacy__enabled" in changes:
            object.__setattr__(defence.settings.privacy, "enabled", True)
        else:
            defence.settings = defence.settings.override(**changes)
        with pytest.raises(error, match=said):
            grow(defence, Grow())
    assert not (path / GROWING).exists()


def test_a_diffusion_model_and_a_zoo_are_refused(tiny_vault, path):
    with (
        g2d.Defence.open(tiny_vault, write=False) as defence,
        pytest.raises(SettingsError, match="put space = 'soup' there and run `g2d fit"),
    ):
        grow(defence, Grow())
    with g2d.Defence.open(path) as defence:
        first = defence.vault.entry("member", 0)
        files = {name: defence.vault.read(first, name) for name in first.files}
        defence.vault.put("member", 0, files, first.info | {"recipe": "adopted"})
        with pytest.raises(PopulationError, match="checkpoints that were adopted"):
            grow(defence, Grow())


def test_what_is_grown_in_a_sealed_vault_is_sealed_from_its_first_byte(path, tmp_path):
    pytest.importorskip("cryptography")
    url = f"file:{tmp_path / 'custodian' / 'c.key'}"
    custodian = sealing.make_custodian(url)[0]
    with g2d.Defence.open(path) as defence:
        changing.seal(defence.vault, custodian, url)
        with work._staging(defence, Grow(seed=3)) as staged:
            weights = defence.vault.read(defence.vault.entry("base"))
            staged.put("early", 0, {"weights": weights}, {})
            [file] = (path / GROWING / "early").glob("*.safetensors")
            assert is_sealed(file.read_bytes())
            assert staged.read(staged.entry("early", 0)) == weights
        with pytest.raises(SealingError, match="g2d grow"):
            changing.unseal(defence.vault, custodian)


def test_what_clients_have_trained_is_not_grown_here(path):
    with g2d.Defence.open(path) as defence:
        base = defence.vault.entry("base")
        files = {name: defence.vault.read(base, name) for name in base.files}
        defence.vault.put("base", 0, files, {**base.info, FEDERATED: {}})
        with pytest.raises(PopulationError, match="keep their records"):
            grow(defence, Grow())


@pytest.mark.parametrize(("space", "asked"), [("soup", 0), ("diffusion", 1)])
def test_soups_do_not_pay_the_square_of_all_members(space, asked, monkeypatch):
    """Every growth fits all members of a long life; soups do not look at who resists whom."""
    found = []
    monkeypatch.setattr(members, "unpack", lambda _: {})
    monkeypatch.setattr(members, "check_state", lambda *_: None)
    monkeypatch.setattr(members, "whole_state", lambda _: {})
    monkeypatch.setattr(members, "bank_of", lambda *_: None)
    monkeypatch.setattr(members, "replace", lambda fitted, **_: fitted)
    monkeypatch.setattr(members, "_resistance", lambda *_: found.append("asked"))
    monkeypatch.setattr(members.Generator, "fit", lambda *_, **__: "fitted")
    entries = [Entry("member", k, {}, {"basin": k % 2}, 0.0) for k in range(4)]
    read = SimpleNamespace(read=lambda *_: b"")
    task = SimpleNamespace(model=lambda _: None)
    settings = Settings().override(generator__space=space)
    assert members.fit_generator(task, read, settings, entries, {}, silent) == "fitted"
    assert len(found) == asked
