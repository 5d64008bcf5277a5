"""Kits: what each organisation is given to take part, made by NVFlare's provisioning.

A kit is a folder: a certificate and its key, the authority's certificate, `run.toml` (who is who)
and `settings.toml`. The authority's own key is thrown away: nobody joins a run later. Knows no
torch.
"""

from __future__ import annotations

import ssl
import stat
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g2d.core.files import fill_file, make_folder, read_plain, read_text
from g2d.core.platforms import others_may_read
from g2d.errors import DAMAGE, G2DError, SettingsError
from g2d.settings import Settings
from g2d.settings.fields import as_toml
from g2d.training.federated.messages import is_identity

SERVER = "server"
"""The server's name: of its kit, and in its certificate."""
DAYS = 360  # for which certificates hold; NVFlare's own
_ROOT, _RUN, _SETTINGS = "rootCA.pem", "run.toml", "settings.toml"
_MOST = 1 << 20


@dataclass(frozen=True)
class Kit:
    """A kit that was read and found sound.

    Attributes:
        name: whose it is. address: the server's, HOST:PORT. clients: the names of all of them.
        text: of settings.toml.
    """

    path: Path
    name: str
    address: str
    clients: tuple[str, ...]
    text: str

    @property
    def is_server(self) -> bool:
        """Whether it is the server's."""
        return self.name == SERVER

    @property
    def certificate(self) -> Path:
        """File of its certificate."""
        return self.path / ("server.crt" if self.is_server else "client.crt")

    @property
    def key(self) -> Path:
        """File of its private key."""
        return self.certificate.with_suffix(".key")

    @property
    def root(self) -> Path:
        """File of the authority's certificate."""
        return self.path / _ROOT

    @property
    def settings_file(self) -> Path:
        """File of the settings that all train by."""
        return self.path / _SETTINGS

    def settings(self, **changes: Any) -> Settings:
        """Return these settings with changes."""
        return Settings.from_toml(self.text, str(self.settings_file)).override(**changes)


def check_installed() -> None:
    """Say how NVFlare is installed, if it is not.

    Raises:
        G2DError: it is not.
    """
    try:
        import nvflare  # noqa: F401
    except ImportError as error:
        raise G2DError(
            "clients in processes of their own need NVFlare: pip install 'g2d[federated]'"
        ) from error


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT.

    Raises:
        SettingsError: it is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16 or host != host.strip():
        raise SettingsError(
            f"--server {address!r} is no HOST:PORT under which clients reach the server, such as "
            "train.example.org:8002"
        )
    return host.strip("[]"), int(port)


def provision(folder: Path, address: str, clients: Sequence[str], settings: Settings) -> list[Path]:
    """Make a kit for the server and one for each client; return their folders.

    Args:
        address: HOST:PORT under which clients reach the server; its certificate names the host.

    Raises:
        SettingsError: names or address do not fit. G2DError: NVFlare is not installed, or one of
            the folders exists.
    """
    check_installed()
    host, _ = split_address(address)
    for name in clients:
        # A client's certificate names the client as a host, too: it may not pass for the server.
        # A dot parts the names of NVFlare's cells, and a certificate holds 64 characters.
        odd = not is_identity(name) or "." in name
        if odd or name.lower() in (SERVER, host.lower(), "localhost"):
            raise SettingsError(
                f"{name!r} can be no client's name: letters, digits and dashes, 64 at most, and "
                f"neither {SERVER!r} nor the server's host"
            )
    if len({name.lower() for name in clients}) != len(clients) or not clients:
        raise SettingsError("name each client once, by --client NAME; there has to be one at least")
    made = [folder / name for name in (SERVER, *clients)]
    if there := [path for path in made if path.exists()]:
        raise G2DError(f"{there[0]} exists already: make kits in a new folder")
    text = settings.override(federated__clients=len(clients), task__data="").to_toml()
    with tempfile.TemporaryDirectory() as work:
        issued = _issue(Path(work), host, clients)
        make_folder(folder, 0o700)
        for path in made:
            _fill(path, issued / path.name / "startup", address, clients, text)
    return made


def _issue(work: Path, host: str, clients: Sequence[str]) -> Path:
    """Have NVFlare make an authority, and certificates that it signs; the folder of kits."""
    from nvflare.lighter.ctx import CtxKey
    from nvflare.lighter.entity import Project
    from nvflare.lighter.impl.cert import CertBuilder
    from nvflare.lighter.impl.workspace import WorkspaceBuilder
    from nvflare.lighter.provisioner import Provisioner

    project = Project("g2d", "clients that train a population together")
    ports = {"fed_learn_port": 8002, "admin_port": 8003}  # wanted by its checks, used by nobody
    project.set_server(SERVER, "g2d", {"default_host": host, "host_names": [host], **ports})
    for name in clients:
        project.add_client(name, "g2d", {})
    made = Provisioner(str(work), [WorkspaceBuilder(), CertBuilder(DAYS)]).provision(
        project, logger=_Quiet()
    )
    if made.get(CtxKey.BUILD_ERROR):
        raise G2DError("NVFlare could not make the kits' certificates")
    return Path(made[CtxKey.CURRENT_PROD_DIR])


class _Quiet:
    """What NVFlare says while it provisions is of its own start-up scripts, which are left out."""

    def info(self, *_: object) -> None:
        """Say nothing."""

    debug = warning = error = info


def _fill(path: Path, issued: Path, address: str, clients: Sequence[str], text: str) -> None:
    make_folder(path, 0o700)
    for file in sorted(issued.iterdir()):
        fill_file(path / file.name, file.read_bytes(), 0o600)
    run = {"name": path.name, "server": address, "clients": tuple(clients)}
    lines = "".join(f"{key} = {as_toml(value)}\n" for key, value in run.items())
    fill_file(path / _RUN, lines.encode(), 0o600)
    fill_file(path / _SETTINGS, text.encode(), 0o600)


def read_kit(path: Path) -> Kit:
    """Read a kit.

    Raises:
        G2DError: something of it is missing, damaged, open to others, or of another name.
    """
    try:
        told = tomllib.loads(read_text(path / _RUN, _MOST))
        kit = Kit(
            path, _text(told["name"]), _text(told["server"]),
            tuple(_text(name) for name in told["clients"]), read_text(path / _SETTINGS, _MOST),
        )  # fmt: skip
        if kit.name not in (SERVER, *kit.clients):
            raise ValueError(f"{kit.name!r} is not among the clients")
        for file in (kit.certificate, kit.root, kit.key):
            read_plain(file, _MOST)
        mode = stat.S_IMODE(kit.key.stat().st_mode)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(kit.certificate, kit.key, password="")
        context.load_verify_locations(kit.root)
    except (OSError, TypeError, *DAMAGE) as error:
        raise G2DError(
            f"{path} is no sound kit ({type(error).__name__}: {error}): `g2d federated provision`"
            " makes them"
        ) from error
    if others_may_read(mode):
        raise G2DError(f"{kit.key} is open to others: run `chmod 600 {kit.key}` first")
    _check_name(kit)
    split_address(kit.address)
    return kit


def _check_name(kit: Kit) -> None:
    """What a certificate says is what the server goes by: a kit under another name is of no use."""
    check_installed()
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    found = x509.load_pem_x509_certificate(kit.certificate.read_bytes())
    names = [str(a.value) for a in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [kit.name]:
        raise G2DError(
            f"{kit.certificate} is of {', '.join(names) or 'nobody'}, and {_RUN} says {kit.name}"
        )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
