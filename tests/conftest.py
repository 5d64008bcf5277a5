"""Shared fixtures: a tiny task and a tiny defence, built once for a whole run; the shared data."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest
from safetensors.torch import load_file, save_file
from torch import nn

import g2d
from built_once import BuiltOnce
from g2d.attacks import art
from g2d.core.engine import SerialEngine, configure_threads
from g2d.errors import G2DError
from g2d.protect.watermark import WatermarkKey
from g2d.settings import HardenSettings, Settings
from g2d.vault.signing import SigningKey
from g2d.vault.vault import Vault
from hardening import trained
from marks import few_committed, mark_key, with_mark
from places import SHARED
from tiny_tables import TINY

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts a job in the background has it ignore Ctrl-C, and so would every child.
    signal.signal(signal.SIGINT, signal.default_int_handler)

configure_threads()

# `G2D_EXAMPLES=long make test` searches forty times longer than the loop can afford.
hypothesis.settings.register_profile("loop", deadline=None, max_examples=25)
hypothesis.settings.register_profile("long", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("G2D_EXAMPLES", "loop"))


def pytest_configure() -> None:
    """Before workers import ART together."""
    with suppress(G2DError):  # not installed: its tests skip
        art.require()


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes, so that no worker is left alone with it at the end. And what
    is built once for a file is built by one worker: all tests that read it are a group."""
    for item in items:
        info = getattr(item, "_fixtureinfo", None)
        scopes = {made[-1].scope for made in info.name2fixturedefs.values()} if info else set()
        if "module" in scopes and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))

    def rank(item: pytest.Item) -> tuple[bool, float]:
        limit = item.get_closest_marker("timeout")
        return item.get_closest_marker("slow") is None, -limit.args[0] if limit else 0

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """What is imported by now stays: every full collection of garbage would walk all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def marks_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Marks of vaults lie in the run's own folder, shared by all workers, and in nobody's home."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    os.environ["G2D_STATE"] = str(shared / "state")
    (shared / "state").mkdir(mode=0o700, exist_ok=True)
    return shared / "state"


@pytest.fixture(autouse=True)
def own_state(
    marks_of_the_run: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[None]:
    """What a test with files marks is its own; only what fixtures of a whole run did is known."""
    if "tmp_path" not in request.fixturenames or os.environ["G2D_STATE"] != str(marks_of_the_run):
        yield
        return
    own = tmp_path_factory.mktemp("state") / "state"
    with suppress(shutil.Error):  # another worker builds a vault now, which is not this test's
        shutil.copytree(marks_of_the_run, own)
    os.environ["G2D_STATE"] = str(own)
    yield
    os.environ["G2D_STATE"] = str(marks_of_the_run)
    shutil.rmtree(own.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def digits() -> g2d.Task:
    return g2d.load_task("digits")


@pytest.fixture(scope="session")
def tiny_settings() -> g2d.Settings:
    from g2d.settings import build

    return build(g2d.Settings, {"task": {"name": "digits"}, **TINY}, "tests")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> BuiltOnce:
    """For what is dear to build: the first worker who needs it builds it for all."""
    return BuiltOnce(tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_vault(once: BuiltOnce, tiny_settings: Settings) -> Path:
    """A vault of digits with population, generator and the base exposed; copy it to change it."""

    def build(path: Path) -> None:
        with g2d.Defence.build("digits", path, tiny_settings, engine=SerialEngine()):
            pass

    return once.copy("tiny", build)


@pytest.fixture(scope="session")
def rotated_vault(once: BuiltOnce, tiny_vault: Path) -> Path:
    """The tiny vault after two rotations, with 3 live; copy it to change it."""

    def build(path: Path) -> None:
        shutil.copytree(tiny_vault, path)
        with g2d.Defence.open(path) as defence:
            defence.generate(2)

    return once.copy("rotated", build)


@pytest.fixture(scope="session")
def key_file(once: BuiltOnce) -> Path:
    return once.path("signing.key", lambda path: SigningKey.generate().write(path))


@pytest.fixture(scope="session")
def signed_vault(once: BuiltOnce, tiny_vault: Path, key_file: Path) -> Path:
    """The tiny vault and generations 2 and 3, signed by `key_file`; 2 is live. Copy to change."""

    def build(path: Path) -> None:
        shutil.copytree(tiny_vault, path)
        with Vault.open(path, write=True) as opened:
            settings = Settings.from_toml(opened.settings_text)
            opened.write_settings(settings.override(signing__key=str(key_file)).to_toml())
        with g2d.Defence.open(path) as defence:
            defence.generate()
            defence.generate(activate=False)

    return once.copy("signed", build)


@pytest.fixture(scope="session")
def watermark_key(once: BuiltOnce) -> Path:
    return once.path("watermark", lambda path: path.mkdir() or mark_key(path)) / "mark.key"


@pytest.fixture(scope="session")
def marked_vault(once: BuiltOnce, tiny_settings: Settings, watermark_key: Path) -> Path:
    """As the tiny vault, with a watermark from the population's start; copy it to change it."""

    def build(path: Path) -> None:
        settings = with_mark(tiny_settings, watermark_key).override(
            population__members=2, population__basins=1, population__early_steps=120,
            population__fork_steps=100, gates__distance=0.0,  # which chance would fail for so few
        )  # fmt: skip
        with g2d.Defence.create("digits", path, settings) as made:
            key = WatermarkKey.read(watermark_key)
            made.vault.write_commitment(few_committed(key, made.task, made.vault.identity))
        with g2d.Defence.build("digits", path, engine=SerialEngine()):
            pass

    return once.copy("marked", build)


@pytest.fixture
def defence(tiny_vault: Path, tmp_path: Path) -> g2d.Defence:
    copy = tmp_path / "vault"
    shutil.copytree(tiny_vault, copy)
    with g2d.Defence.open(copy) as opened:
        yield opened


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    folder = SHARED / "mnist"
    if not folder.is_dir():
        pytest.skip(f"needs MNIST in {folder}")
    return folder


def kept(once: BuiltOnce, task: g2d.Task, name: str, settings: HardenSettings) -> nn.Module:
    """A network that is trained once for a whole run."""

    def build(path: Path) -> None:
        save_file(trained(task, settings).state_dict(), path)

    model = task.model(0)
    model.load_state_dict(load_file(once.path(name, build)))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def plain(once: BuiltOnce, digits: g2d.Task) -> nn.Module:
    return kept(once, digits, "plain", HardenSettings())


@pytest.fixture(scope="session")
def hardened(once: BuiltOnce, digits: g2d.Task) -> nn.Module:
    return kept(once, digits, "hardened", HardenSettings(recipe=("adversarial",), steps=5))
