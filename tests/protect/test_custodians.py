"""Every custodian by the same tests: what it wraps it alone unwraps, for the same context alone."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from g2d.errors import SealingError
from g2d.protect import sealing
from g2d.protect.sealing.file import FileCustodian
from g2d.protect.sealing.paper import PaperCustodian, _asked
from g2d.vault.sealing.envelope import new_key
from places import example
from software_tpm import running

FOLDERS = ("/usr/lib/softhsm", "/usr/lib/x86_64-linux-gnu/softhsm", "/usr/lib64/softhsm")
PATHS = (Path(folder, "libsofthsm2.so") for folder in FOLDERS)
SOFTHSM = next((path for path in PATHS if path.exists()), None)
CONTEXT = b"g2d vault key 1\0of these tests"


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    """A SoftHSM token of its own: what names a key in it."""
    pytest.importorskip("pkcs11", reason="needs python-pkcs11")
    if SOFTHSM is None or not shutil.which("softhsm2-util"):
        pytest.skip("needs SoftHSM (Debian: softhsm2)")
    folder = tmp_path_factory.mktemp("hsm")
    (folder / "tokens").mkdir()
    text = f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n"
    (folder / "softhsm2.conf").write_text(text)
    pin = folder / "pin"
    pin.write_text("1234\n")
    pin.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))
        pins = ["--pin", "1234", "--so-pin", "5678"]
        made = ["softhsm2-util", "--init-token", "--free", "--label", "of tests", *pins]
        subprocess.run(made, check=True, capture_output=True)
        yield (
            lambda key, pin=pin, label="of tests": (
                f"pkcs11:token={label.replace(' ', '%20')};object={key}"
                f"?module-path={SOFTHSM}&pin-source=file:{pin}"
            )
        )


@pytest.fixture(scope="module")
def tpms(tmp_path_factory):
    """Two software TPMs."""
    folder = tmp_path_factory.mktemp("tpms")
    with running(folder / "one") as one, running(folder / "two") as two:
        yield [f"tpm:{one}", f"tpm:{two}"]


@pytest.fixture(params=["file", "pkcs11", "paper", "tpm"])
def names(request, tmp_path, monkeypatch):
    """Names of two custodians of a kind; those of one kind on paper are typed."""
    if request.param == "file":
        return [f"file:{tmp_path / name}" for name in ("one.key", "two.key")]
    if request.param == "pkcs11":
        token = request.getfixturevalue("token")
        return [token(f"{name}-{tmp_path.name}") for name in ("one", "two")]
    return ["paper", "paper"] if request.param == "paper" else request.getfixturevalue("tpms")


@pytest.fixture
def pair(names, monkeypatch):
    """Two custodians of a kind."""
    if names[0] != "paper":
        return [sealing.make_custodian(name)[0] for name in names]
    typed = []
    for _ in names:
        _asked.cache_clear()
        monkeypatch.setenv("G2D_PAPER_KEY", PaperCustodian.make().text.lower())
        typed.append(sealing.custodian("paper"))
    _asked.cache_clear()
    return typed


class TestEveryCustodian:
    def test_what_it_wraps_it_unwraps(self, pair):
        key = new_key()
        blob = pair[0].wrap(key, CONTEXT)
        assert key not in blob
        assert pair[0].unwrap(blob, CONTEXT) == key
        assert pair[0].wrap(key, CONTEXT) != blob  # a nonce is used once

    def test_another_context_opens_nothing(self, pair):
        blob = pair[0].wrap(new_key(), CONTEXT)
        with pytest.raises(SealingError) as said:
            pair[0].unwrap(blob, CONTEXT + b".")
        assert "\n" not in str(said.value)

    def test_another_custodian_opens_nothing(self, pair):
        with pytest.raises(SealingError):
            pair[1].unwrap(pair[0].wrap(new_key(), CONTEXT), CONTEXT)

    def test_a_changed_or_cut_blob_opens_nothing(self, pair):
        blob = pair[0].wrap(new_key(), CONTEXT)
        flipped = [blob[:i] + bytes([blob[i] ^ 1]) + blob[i + 1 :] for i in range(0, len(blob), 7)]
        for wrong in (b"", blob[:-1], blob + b"\0", *flipped):
            with pytest.raises(SealingError):
                pair[0].unwrap(wrong, CONTEXT)

    def test_it_shows_no_key(self, pair):
        assert len(repr(pair[0])) < 200
        assert "key=" not in repr(pair[0])

    def test_it_is_the_same_when_it_is_named_again(self, names, pair):
        if names[0] == "paper":
            pytest.skip("what is typed is another key each time here")
        blob = pair[0].wrap(bytes(32), CONTEXT)
        assert sealing.custodian(names[0]).unwrap(blob, CONTEXT) == bytes(32)
        assert sealing.make_custodian(names[0])[1] is False  # nothing is made twice


def test_one_of_ones_own_is_as_docs_extending_shows_it(monkeypatch):
    space: dict = {}
    exec(compile(example("A custodian"), "docs/extending.md", "exec"), space)
    monkeypatch.setenv("OWN", "correct horse battery staple")
    own = space["Passphrase"]("OWN")
    blob = own.wrap(bytes(32), CONTEXT)
    assert own.unwrap(blob, CONTEXT) == bytes(32)
    for wrong, context in ((blob, b"other"), (blob[:-1], CONTEXT), (b"", CONTEXT)):
        with pytest.raises(SealingError):
            own.unwrap(wrong, context)
    monkeypatch.setenv("OWN", "short")
    with pytest.raises(SealingError, match="no passphrase"):
        space["Passphrase"]("OWN")


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flie:/key", "Did you mean 'file'"),
        ("", "names no custodian"),
        ("file:", "lacks the path"),
        ("file:/none/such.key", "there is no custodian"),
        ("paper:ABCD", "never an argument"),
        ("pkcs11:object=x?module-path=/m.so", "lacks token"),
        ("pkcs11:token=a;object=b;pin-value=1?module-path=/m.so", "never an argument"),
        ("pkcs11:token=a;objekt=b", "Did you mean 'object'"),
        ("pkcs11:token=a;object=b", "names no module"),
        ("pkcs11:token=a;object=b?module-path=/m.so&pin-source=/none", "cannot read the PIN"),
    ],
)
def test_a_wrong_name_is_told_in_one_line(name, said, monkeypatch):
    monkeypatch.delenv("PKCS11_MODULE_PATH", raising=False)
    with pytest.raises(SealingError, match=said) as raised:
        sealing.custodian(name)
    assert "\n" not in str(raised.value)


# --- a file ---------------------------------------------------------------------------------------


def test_a_file_is_for_its_owner_alone_and_outside_of_vaults(tmp_path):
    made = FileCustodian.make(tmp_path / "new" / "c.key")
    path = tmp_path / "new" / "c.key"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SealingError, match="exists already"):
        FileCustodian.make(path)
    path.chmod(0o640)
    with pytest.raises(SealingError, match="chmod 600"):
        FileCustodian.read(path)
    (tmp_path / "ledger.sqlite").touch()
    with pytest.raises(SealingError, match="lies in the vault"):
        FileCustodian.read(path)
    assert made.kind == "file"


@pytest.mark.parametrize("data", [b"", b"g2d custodian 1\n", b"\xff" * 99, b"x" * 4000])
def test_what_is_no_custodian_is_told(tmp_path, data):
    path = tmp_path / "c.key"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(SealingError, match=r"not the file of a custodian|cannot read"):
        FileCustodian.read(path)


def test_a_key_of_which_a_character_was_changed_is_told(tmp_path):
    path = tmp_path / "c.key"
    FileCustodian.make(path)
    words = path.read_text().split()
    words[3] = ("B" if words[3][0] == "A" else "A") + words[3][1:]
    path.write_text(" ".join(words))
    with pytest.raises(SealingError, match="or is damaged"):
        FileCustodian.read(path)


# --- paper ----------------------------------------------------------------------------------------


def test_a_paper_key_is_read_as_people_write_it():
    paper = PaperCustodian.make()
    blob = paper.wrap(bytes(32), CONTEXT)
    written = paper.text.replace("O", "0").replace("I", "1").replace("B", "8").lower()
    for text in (written, paper.text.replace(" ", "-"), paper.text.replace(" ", "")):
        assert PaperCustodian.typed(text).unwrap(blob, CONTEXT) == bytes(32)


def test_a_slip_of_the_pen_is_noticed_and_not_repeated():
    text = PaperCustodian.make().text.replace(" ", "")
    for at in (0, 30, 55):
        wrong = text[:at] + ("A" if text[at] != "A" else "C") + text[at + 1 :]
        with pytest.raises(SealingError, match="at least one character is wrong") as said:
            PaperCustodian.typed(wrong)
        assert wrong[:8] not in str(said.value)
    with pytest.raises(SealingError, match="55 were typed"):
        PaperCustodian.typed(text[1:])


def test_nobody_there_to_type_is_told(monkeypatch):
    _asked.cache_clear()
    monkeypatch.delenv("G2D_PAPER_KEY", raising=False)

    def nobody(_):
        raise EOFError

    monkeypatch.setattr("getpass.getpass", nobody)
    with pytest.raises(SealingError, match="G2D_PAPER_KEY"):
        sealing.custodian("paper")


# --- a token --------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_token_is_told(token, tmp_path):
    made = token(f"key-{tmp_path.name}")
    with pytest.raises(SealingError, match="has no AES key"):
        sealing.custodian(made)
    assert sealing.make_custodian(made)[1]
    wrong = tmp_path / "pin"
    wrong.write_text("9999")
    wrong.chmod(0o600)
    with pytest.raises(SealingError, match="PIN of token 'of tests' is wrong"):
        sealing.custodian(token(f"key-{tmp_path.name}", pin=wrong))
    wrong.chmod(0o644)
    with pytest.raises(SealingError, match="chmod 600"):
        sealing.custodian(token(f"key-{tmp_path.name}", pin=wrong))
    with pytest.raises(SealingError, match="there is no token 'gone'"):
        sealing.custodian(token("key", label="gone"))
    with pytest.raises(SealingError, match=r"none\.so"):
        sealing.custodian("pkcs11:token=a;object=b?module-path=/none.so")


def test_a_key_that_may_leave_its_token_is_refused(token, tmp_path):
    import pkcs11

    opened = pkcs11.lib(str(SOFTHSM)).get_token(token_label="of tests")
    label = f"loose-{tmp_path.name}"
    with opened.open(rw=True, user_pin="1234") as session:
        template = {pkcs11.Attribute.EXTRACTABLE: True}
        session.generate_key(pkcs11.KeyType.AES, 256, label=label, store=True, template=template)
    with pytest.raises(SealingError, match="may be taken out"):
        sealing.custodian(token(label))


def test_a_token_without_its_pin_is_told(token, tmp_path, monkeypatch):
    monkeypatch.delenv("G2D_PKCS11_PIN", raising=False)
    made = token(f"pinned-{tmp_path.name}")
    sealing.make_custodian(made)
    with pytest.raises(SealingError, match="PIN"):
        sealing.custodian(made.partition("&")[0])
    monkeypatch.setenv("G2D_PKCS11_PIN", "1234")
    assert sealing.custodian(made.partition("&")[0]).kind == "pkcs11"
    assert os.environ["G2D_PKCS11_PIN"] not in repr(sealing.custodian(made))
