"""What an operator may choose when serving: frozen, checked, no secret among them."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from g2d.core.platforms import others_may_read
from g2d.errors import G2DError, SettingsError
from g2d.settings.fields import Checked, free, one_of, within
from g2d.settings.serve import ServeSettings

TOKEN_VARIABLE = "G2D_ADMIN_TOKEN"  # noqa: S105 (its name, not a token)
_SPAN = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|d)?", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LEAST_TOKEN = 16


@dataclass(frozen=True)
class Options(Checked):
    """How a vault is served: times in seconds, sizes in bytes. Each is a flag of `g2d serve`."""

    every: float = within(
        0.0, 3.2e7, 0.0, "mean time between rotations, as 60s, 5m or 1h; 0: on demand only",
        unit="s",
    )  # fmt: skip
    jitter: float = within(
        0.0, 0.9, 0.1, "share of `every` and of `queries` by which each wait is drawn, in secret"
    )
    queries: int = within(0, 10**12, 0, "rotate after so many inputs; 0: off")
    monitor: tuple[str, ...] = free(
        (), "built-in monitors that look on, or all; beside those of the vault's settings",
        metavar="NAME", since="0.2",
    )  # fmt: skip
    host: str = free("127.0.0.1", "address to bind to; anything but loopback is exposed")
    port: int = within(0, 65_535, 8000, "port to bind to; 0: any free one")
    allow_host: tuple[str, ...] = free(
        (), "names that a Host header may be (a proxy's), besides loopback's", metavar="NAME"
    )
    root_path: str = free(
        "", "prefix of every address behind a proxy, as /g2d; taken off where it is there",
        metavar="PATH", since="0.2",
    )  # fmt: skip
    name: str = free("g2d", "name of the model in addresses")
    tls_cert: str = free("", "certificate file", metavar="FILE")
    tls_key: str = free("", "its private key file", metavar="FILE")
    client_ca: str = free("", "CA certificates whose clients may ask (mTLS)", metavar="FILE")
    client_crl: str = free("", "their certificates that are revoked", metavar="FILE")
    jwks: str = free("", "public keys (JWKS) whose bearer tokens may ask", metavar="FILE")
    jwt_audience: str = free("", "the audience (aud) that a token must be for", metavar="NAME")
    jwt_issuer: str = free("", "the issuer (iss) that a token must be of", metavar="NAME")
    jwt_roles_claim: str = free("roles", "a token's claim that lists its roles", metavar="NAME")
    access: str = free("", "roles and quotas by identity, in TOML", metavar="FILE")
    rate: float = within(0.0, 1e9, 0.0, "requests and inputs of one client in a second; 0: any")
    burst: float = within(1.0, 1e9, 1000.0, "how many of them may come at once")
    client_connections: int = within(
        0, 10**6, 0, "connections of one client at once, but of loopback; 0: half of all there may"
        " be", since="0.2",
    )  # fmt: skip
    max_batch: int = within(1, 65_536, 256, "inputs of one request, and of one batch")
    max_body: int = within(0, 1 << 31, 0, "bytes of a request's body; 0: by the task's inputs")
    max_bodies: int = within(
        0, 1 << 40, 0, "bytes of all bodies under way, half of them of one client; 0: 256 MiB, or"
        " four of the largest", since="0.2",
    )  # fmt: skip
    max_waiting: int = within(1, 10**7, 4096, "inputs that may wait before requests are refused")
    timeout: float = within(
        0.01, 3600.0, 10.0, "time for a request to arrive and be answered", unit="s"
    )
    drain: float = within(
        0.0, 3600.0, 10.0, "time for answers under way when the service ends", unit="s"
    )
    patience: float = within(
        1.0, 86_400.0, 900.0, "time a candidate may take before it is given up", unit="s"
    )
    check_every: float = within(
        0.0, 3600.0, 0.5,
        "time between checks of the weights in memory, twice a second at most; 0: never", unit="s",
    )  # fmt: skip
    layout: str = one_of(
        ("secret", "plain"), "secret",
        "how parameters lie in memory: as a secret of each load says, or as in the file",
        since="0.2",
    )  # fmt: skip
    policy: str = free(
        "", "who is answered by which live generation: global, sticky, vote, random or keyed; else"
        " as the vault's settings say", metavar="NAME", since="0.2",
    )  # fmt: skip
    live: int = within(
        0, 16, 0, "generations live at once, but under global; 0: as the vault's settings say",
        since="0.2",
    )  # fmt: skip
    answers: str = free(
        "", "what an answer tells: scores, rounded, label or aaa; else as the vault's settings say",
        metavar="NAME", since="0.2",
    )  # fmt: skip
    encrypted: bool = free(
        False, "answer ciphertexts, too, whose inputs and answers the service cannot read; plain"
        " inputs are answered as before", since="0.2",
    )  # fmt: skip
    encrypted_only: bool = free(
        False, "answer ciphertexts alone: plain inputs are refused, so that none is sent by"
        " mistake", since="0.2",
    )  # fmt: skip
    encrypted_processes: int = within(
        1, 256, 1, "processes that evaluate ciphertexts; each holds every live generation encoded,"
        " and four clients' keys", since="0.2",
    )  # fmt: skip
    encrypted_waiting: int = within(
        1, 10_000, 4, "ciphertexts that wait or are evaluated before requests are refused, half of"
        " them of one client", since="0.2",
    )  # fmt: skip
    encrypted_keys: int = within(
        1, 10_000, 16, "clients' evaluation keys that are kept, as files of some 50 MB",
        since="0.2",
    )  # fmt: skip
    encrypted_idle: float = within(
        1.0, 3.2e7, 86_400.0, "time until evaluation keys that nobody uses are deleted", unit="s",
        since="0.2",
    )  # fmt: skip
    encrypted_timeout: float = within(
        1.0, 3600.0, 120.0, "time for keys or a ciphertext to arrive, and to be answered",
        unit="s", since="0.2",
    )  # fmt: skip
    observer: tuple[str, ...] = free(
        (), "your own 'module:factory', shown what was answered", metavar="NAME"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise SettingsError(
                f"the model's name is {self.name!r}, expected up to 64 letters, digits, . _ or -"
            )
        if 0 < self.max_body < 1024:
            raise SettingsError(
                f"max_body is {self.max_body}, expected 1024 bytes or more, or 0: as the task needs"
            )
        for name in self.allow_host:
            if not _HOST.fullmatch(name):
                raise SettingsError(
                    f"allow_host is {name!r}, expected a host's name without scheme and port"
                )
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", self.root_path):
            raise SettingsError(
                f"root_path is {self.root_path!r}, expected one like /g2d: it begins with a slash"
                " and does not end with one"
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise SettingsError("TLS needs both files: give --tls-cert and --tls-key")
        self._check_access()
        self.serving(ServeSettings())

    def serving(self, settings: ServeSettings) -> ServeSettings:
        """A vault's `[serve]`, with what was given here in its place.

        Raises:
            SettingsError: there is no such policy or kind of answers.
        """
        return replace(
            settings,
            policy=self.policy or settings.policy,
            live=self.live or settings.live,
            answers=self.answers or settings.answers,
            encrypted="only"
            if self.encrypted_only
            else "also"
            if self.encrypted
            else settings.encrypted,
        )

    def _check_access(self) -> None:
        """Say which of the options that say who may ask cannot do without another."""
        issued = bool(self.jwt_audience), bool(self.jwt_issuer)
        if self.client_ca and not self.tls_cert:
            raise SettingsError("--client-ca needs TLS: give --tls-cert and --tls-key")
        if self.client_crl and not self.client_ca:
            raise SettingsError("--client-crl revokes certificates of --client-ca: give both")
        if self.jwks and not all(issued):
            raise SettingsError(
                "--jwks needs --jwt-audience and --jwt-issuer: a token that was issued for another"
                " service must not open this one"
            )
        if any(issued) and not self.jwks:
            raise SettingsError(
                "--jwt-audience and --jwt-issuer say which tokens pass: give --jwks"
            )
        if not self.jwt_roles_claim:
            raise SettingsError("jwt_roles_claim is empty, expected a claim's name, as roles")
        if self.access and not self.authenticated:
            raise SettingsError("--access says what whom may do: give --client-ca or --jwks, too")

    @property
    def authenticated(self) -> bool:
        """Whether whoever asks must say who he is."""
        return bool(self.client_ca or self.jwks)

    @property
    def exposed(self) -> bool:
        """Whether others than this machine can connect."""
        try:
            return not ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host != "localhost"


def require() -> None:
    """Raise a `G2DError` unless everything of the extra `serve` is installed."""
    for name in ("fastapi", "uvicorn", "httptools", "orjson", "prometheus_client", "cryptography"):
        if importlib.util.find_spec(name) is None:
            raise G2DError(f"serving needs {name}: pip install 'g2d[serve]'")


def seconds(text: str) -> float:
    """Read a time span: "60s", "500ms", "5m", "1h", "1d", or a bare number of seconds.

    Raises:
        SettingsError: it is something else.
    """
    found = _SPAN.fullmatch(text.strip())
    if not found:
        raise SettingsError(f"{text!r} is not a time span: write 60s, 500ms, 5m, 1h or 1d")
    return float(found[1]) * _UNITS[found[2] or "s"]


def span(value: float) -> str:
    """Write seconds as the shortest time span: `seconds(span(x)) == x` for what a flag shows."""
    for unit, size in reversed(_UNITS.items()):
        if value >= size and (value / size).is_integer():
            return f"{value / size:.0f}{unit}"
    return f"{value:g}"


def read_token(file: Path | None) -> bytes | None:
    """Read the admin token from a file, or else from the environment; None: there is none.

    Raises:
        SettingsError: the file cannot be read or is open to others, or the token is too short.
    """
    if file is None:
        text, where = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
        if not text:
            return None
    else:
        where = str(file)
        try:
            if others_may_read(stat.S_IMODE(file.stat().st_mode)):
                raise SettingsError(f"{file} is open to others: run `chmod 600 {file}` first")
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read the admin token in {file}: {error}") from error
    token = text.strip().encode("utf-8", "surrogateescape")
    if not re.fullmatch(rb"[!-~]{%d,}" % _LEAST_TOKEN, token):
        raise SettingsError(
            f"the admin token in {where} is too weak: expected one line of {_LEAST_TOKEN} or more"
            " ASCII characters without spaces, such as `openssl rand -hex 32` prints"
        )
    return token
