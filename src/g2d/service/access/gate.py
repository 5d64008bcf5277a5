"""The gate: every request passes it, and comes out with a `Caller` or is refused.

Without a client CA and without keys for tokens, it is open as far as a newcomer's first minute
needs: anybody may infer and observe, and only the admin token operates. With either, whoever asks
anything but whether the service is alive says who he is.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from g2d.errors import SettingsError
from g2d.rotation.events import Alarm, Tell
from g2d.service.access.certificates import UnknownError
from g2d.service.access.files import Watched
from g2d.service.access.identity import (
    INFER,
    LINK,
    OBSERVE,
    OPERATE,
    ROLES,
    Caller,
    address_of,
    needed,
)
from g2d.service.access.links import Link
from g2d.service.access.policy import Policy, Quota, read_policy
from g2d.service.access.quotas import CLOSE, Body, Quotas, Rates, retry_after
from g2d.service.access.remembered import Remembered
from g2d.service.access.tls import ServerTls
from g2d.service.access.tokens import Keys, Tokens, Verified, looks_like_jwt, read_keys
from g2d.service.http.events import AccessChanged, Denied, HeldOff, WrongToken
from g2d.service.http.guesses import Guesses
from g2d.service.http.limits import AdminToken, Buckets, client_of, is_loopback
from g2d.service.http.options import Options
from g2d.service.http.protocol import RequestError
from g2d.service.http.types import Scope

OPERATOR = "operator"
"""Name of whoever has the admin token."""

_ALL, _NONE = frozenset(ROLES), frozenset[str]()
_ANYBODY = frozenset({INFER, OBSERVE})
_CERTIFIED = frozenset({INFER})  # what a certificate alone gives, without an access file
_LOOK = 1.0  # seconds between looks at the files
_WRONG, _AGAIN = 300.0, 50.0  # wrong signatures of one address at once, and a second
_TOLD = 10  # refusals that are told a second; the next one says how many were not
_KINDS = 1000  # reasons and identities of which it is remembered how many were told
_SHOWN = 64  # characters of an address that events keep
_LOOKED = ("/events", "/metrics")  # open to all without authentication, and more to the operator


@dataclass(frozen=True)
class Sources:
    """What says who may ask, read from files that are looked at again; None: there is none."""

    policy: Watched[Policy]
    keys: Watched[Keys] | None

    @classmethod
    def of(cls, options: Options) -> Sources:
        """Read the files that the options name.

        Raises:
            SettingsError: one cannot be read, or is not what its flag asks for.
        """
        default = Quota(queries=options.rate, burst=options.burst)
        access, jwks = options.access, options.jwks
        policy: Watched[Policy] = Watched(
            {"--access": access},
            lambda read: (
                read_policy(read["--access"], f"--access {access}", default)
                if access
                else Policy(default=default)
            ),
        )
        keys: Watched[Keys] | None = None
        if jwks:
            keys = Watched(
                {"--jwks": jwks}, lambda read: read_keys(read["--jwks"], f"--jwks {jwks}")
            )
        return cls(policy, keys)


class Access:
    """Says who asks, and refuses who may not; one event loop calls it.

    Args:
        tell: takes what operators and the audit should know. denied: called with the reason of
            each refusal; limited: at each request over a quota. tls: where clients' certificates
            are verified; None: by nobody here. looked: addresses open to all where nobody is asked,
            and more to the operator, besides events and metrics.

    Raises:
        SettingsError: a file is not what its flag asks for.
    """

    def __init__(
        self,
        options: Options,
        admin_token: AdminToken,
        tell: Tell,
        denied: Callable[[str], None] = lambda _: None,
        limited: Callable[[], None] = lambda: None,
        tls: ServerTls | None = None,
        looked: tuple[str, ...] = (),
    ) -> None:
        self.admin_token, self.tls = admin_token, tls
        self._tell, self._denied, self._limited = tell, denied, limited
        self._authenticated = options.authenticated
        self._sources, self._tokens = Sources.of(options), Tokens(options)
        self._buckets = Buckets(options.rate, options.burst)
        self._quotas, self._wrong, self._guesses = Quotas(), Rates(), Guesses()
        self._known, self._links = Remembered(), set[Link]()
        self._looked = (*_LOOKED, *looked)
        self._refusals = _Seldom(tell)
        self._ending = threading.Event()
        self._looking: threading.Thread | None = None

    @property
    def operable(self) -> bool:
        """Whether anybody can have the role of an operator."""
        return self.admin_token.open or self._authenticated

    # --- one request -----------------------------------------------------------------------------

    def admit(self, scope: Scope) -> Caller:
        """Return who asks, if he may ask for this address.

        Raises:
            RequestError: 401 if nobody, or somebody unknown, asks; 403 if he has not the role; 429
                after many wrong tokens, and for more connections than his quota.
        """
        roles = needed(scope["path"])
        if not roles:
            return Caller("", _NONE, "", address_of(scope))
        caller = self._identify(scope, roles)
        if roles.isdisjoint(caller.roles):
            raise self._lacking(scope, caller, roles)
        link = scope.get(LINK)
        if link is not None and caller.name not in link.names and caller.name not in ("", OPERATOR):
            try:
                self._quotas.enter(caller.name, self._quota(caller), link)
            except RequestError:
                self._limited()
                raise
        return caller

    def still(self, scope: Scope, caller: Caller) -> bool:
        """Whether who asked this may go on being answered: his token or certificate still holds."""
        roles = needed(scope["path"])
        try:
            now = self._identify(scope, roles, quiet=True)
        except RequestError:
            return False
        return now.name == caller.name and bool(roles & now.roles)

    def charge(self, caller: Caller, tokens: float) -> None:
        """Take requests and inputs from who asks; raise a 429 if there are not enough."""
        if tokens <= 0 or caller.name == OPERATOR:
            return
        try:
            if caller.name:
                self._quotas.charge(caller.name, self._quota(caller), tokens)
                return
            wait = self._buckets.take(caller.address, tokens)
            if wait > 0:
                text = f"over this client's rate; send again in {wait:.1f} s"
                raise RequestError(429, text, retry_after(wait))
        except RequestError:
            self._limited()
            raise

    def body(self, caller: Caller) -> Body | None:
        """Return what counts the bytes of who asks; None: he may send any."""
        if not caller.name or caller.name == OPERATOR:
            return None
        return self._quotas.body(caller.name, self._quota(caller))

    @property
    def _keys(self) -> Keys | None:
        return self._sources.keys.value if self._sources.keys is not None else None

    def _quota(self, caller: Caller) -> Quota:
        return self._sources.policy.value.quota(caller.name)

    # --- who asks --------------------------------------------------------------------------------

    def _identify(self, scope: Scope, roles: frozenset[str], quiet: bool = False) -> Caller:
        """Find out who asks; `quiet`: as once before, so that nothing is counted or told."""
        address = address_of(scope)
        if not self._authenticated and OPERATE not in roles:
            if scope["path"] not in self._looked or not self.admin_token.open:
                return Caller("", _ANYBODY, "", address)
        elif not self.operable:
            text = "admin calls are off: start the service with an admin token"
            raise RequestError(403, text)
        given = b""
        for key, value in scope["headers"]:
            if key == b"authorization":
                given = value
                break
        if given:
            self._known.hold_for(self._sources.policy.value, self._keys)
            if (known := self._known.find(given, address)) is not None:
                return known
            kind, _, token = given.strip().partition(b" ")
            token = token.strip() if kind.lower() == b"bearer" else b""
            if token:
                return self._by_token(scope, address, given, token, quiet)
        if not self._authenticated:
            if OPERATE in roles:
                raise self._wrong_token(scope, address)
            return Caller("", _ANYBODY, "", address)
        link = scope.get(LINK)
        if link is not None and link.peer is not None:
            return self._by_certificate(scope, address, link, quiet)
        return Caller("", _NONE, "", address)

    def _by_token(
        self, scope: Scope, address: str, given: bytes, token: bytes, quiet: bool
    ) -> Caller:
        """Take a JWT where there are keys for one; whatever else comes is the admin's, or wrong."""
        if self._sources.keys is not None and looks_like_jwt(token):
            found = self._by_jwt(scope, address, self._sources.keys.value, token, quiet)
            entry = self._sources.policy.value.entry(found.name)
            own = frozenset(entry.roles) if entry else _NONE
            caller = Caller(found.name, found.roles | own, "jwt", address)
            self._known.keep(given, caller, found.until)
            return caller
        if not quiet and (wait := self._guesses.wait(address)) > 0:
            raise _too_many(wait)
        if not self.admin_token.admits(given):
            if not quiet and (wait := self._guesses.wrong(address)) > 0:
                self._tell(HeldOff(address, wait))
            raise self._wrong_token(scope, address)
        self._guesses.right(address)
        return Caller(OPERATOR, _ALL, "token", address)

    def _wrong_token(self, scope: Scope, address: str) -> RequestError:
        self._tell(WrongToken(address, scope["path"][:_SHOWN]))
        return RequestError(401, "the admin token is missing or wrong", _challenge())

    def _by_jwt(
        self, scope: Scope, address: str, keys: Keys, token: bytes, quiet: bool
    ) -> Verified:
        """Verify a token, unless it was; one that nobody could guess, so only its cost counts."""
        found = self._tokens.known(keys, token)
        if found is not None:
            return found
        client = client_of(address)
        # A proxy on this machine may stand for everybody: one's wrong tokens are not another's.
        counted = not quiet and not is_loopback(client)
        if counted and (wait := self._wrong.wait(client, 1.0, _AGAIN, _WRONG)) > 0:
            self._denied("throttled")
            raise _too_many(wait)
        try:
            return self._tokens.verify(keys, token)
        except UnknownError as error:
            if counted and error.dear:
                self._wrong.take(client, 1.0, _AGAIN, _WRONG)
            raise self._refused(scope, address, "token", str(error), quiet) from None

    def _by_certificate(self, scope: Scope, address: str, link: Link, quiet: bool) -> Caller:
        peer, now, wrong = link.peer, time.time(), ""
        assert peer is not None
        if peer.wrong:
            wrong = peer.wrong
        elif not peer.begins <= now <= peer.ends:
            wrong = "the client certificate has expired, or does not hold yet"
        elif self.tls is None or not self.tls.holds(peer):
            wrong = "the client certificate was verified under another CA: connect again"
        if wrong:
            raise self._refused(scope, address, "certificate", wrong, quiet)
        policy = self._sources.policy.value
        entry = policy.entry(peer.name)
        roles = frozenset(entry.roles) if entry else _NONE if policy.given else _CERTIFIED
        return Caller(peer.name, roles, "certificate", address)

    # --- who may not -----------------------------------------------------------------------------

    def _refused(
        self, scope: Scope, address: str, reason: str, text: str, quiet: bool = False
    ) -> RequestError:
        if not quiet:
            self._denied(reason)
            self._refusals(Denied(address, scope["path"][:_SHOWN], reason, text))
        wrong = f'error="invalid_token", error_description="{text}"' if reason == "token" else ""
        closing = [CLOSE] if reason == "certificate" else []
        return RequestError(401, text, _challenge(wrong), *closing)

    def _lacking(self, scope: Scope, caller: Caller, roles: frozenset[str]) -> RequestError:
        """Say that who asks has not the role, or that nobody said who asks."""
        wanted = " or ".join(role for role in ROLES if role in roles)
        if not caller.name:
            text = "say who asks: a bearer token or a client certificate is needed here"
            return self._refused(scope, caller.address, "nobody", text)
        self._denied("role")
        text = f"{caller.name} has not the role {wanted}, which this address needs"
        call = scope["path"][:_SHOWN]
        self._refusals(Denied(caller.address, call, "role", text, caller.name, caller.how))
        scopes = " ".join(f"g2d:{role}" for role in ROLES if role in roles)
        return RequestError(403, text, _challenge(f'error="insufficient_scope", scope="{scopes}"'))

    # --- connections, and files that change ------------------------------------------------------

    def link(self, link: Link) -> Link | None:
        """Take a new connection, if it matters who is at its other end."""
        if not self._authenticated:
            return None
        self._links.add(link)
        return link

    def unlink(self, link: Link) -> None:
        """Forget a connection that has ended."""
        self._links.discard(link)
        self._quotas.leave(link)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to look whether files changed, every second."""
        if self._authenticated or self.tls is not None:
            self._looking = threading.Thread(
                target=self._watch, args=(loop,), name="access", daemon=True
            )
            self._looking.start()

    def stop(self) -> None:
        """Look no more."""
        self._ending.set()
        if self._looking is not None:
            self._looking.join(5.0)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._ending.wait(_LOOK):
            try:
                if self.look() and not loop.is_closed():
                    loop.call_soon_threadsafe(self.retire)
            except Exception as error:  # if it ended, no file would ever count again
                self._tell(Alarm("access", f"files were not read again: {type(error).__name__}"))

    def look(self) -> bool:
        """Read files that changed; return whether connections may be open that hold no more."""
        before = self.tls.trust if self.tls else ""
        tls = self.tls.files if self.tls is not None else None
        for files in (self._sources.policy, self._sources.keys, tls):
            try:
                changed = files.look() if files is not None else ()
            except SettingsError as error:
                self._tell(Alarm("access", f"{error}; what was read before still counts"))
                continue
            if changed:
                self._tell(AccessChanged(changed))
        return self.tls is not None and self.tls.trust != before

    def retire(self) -> None:
        """Close connections, in order, whose certificate was verified under another CA."""
        for link in list(self._links):
            peer = link.peer
            if peer is not None and (self.tls is None or not self.tls.holds(peer)):
                link.retire()


class _Seldom:
    """Tells some refusals a second, and with the next one how many were not told.

    Of each reason by itself, and of each identity: what strangers cause must not hide what somebody
    does whom we know.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._kinds: OrderedDict[tuple[str, str], tuple[int, int, int]] = OrderedDict()

    def __call__(self, event: Denied) -> None:
        kind, now = (event.reason, event.who or ""), int(time.monotonic())
        second, count, held = self._kinds.pop(kind, (now, 0, 0))
        count = count + 1 if second == now else 1
        full = count > _TOLD
        self._kinds[kind] = (now, count, held + 1 if full else 0)
        if len(self._kinds) > _KINDS:
            self._kinds.popitem(last=False)
        if not full:
            self._tell(replace(event, unsaid=held or None))


def _too_many(wait: float) -> RequestError:
    return RequestError(429, "too many wrong tokens; ask again later", retry_after(wait))


def _challenge(detail: str = "") -> tuple[bytes, bytes]:
    """The header of RFC 6750, 3; its text is of printable ASCII without quotes."""
    safe = "".join(c for c in detail if " " <= c <= "~" and c != "\\")
    value = 'Bearer realm="g2d"' + (f", {safe}" if safe else "")
    return b"www-authenticate", value.encode()
