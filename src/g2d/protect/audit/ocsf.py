"""Records of an audit log as a SIEM takes them: OCSF (Open Cybersecurity Schema Framework) 1.3.0.

One JSON object a record. What a class has no attribute for is under `unmapped`, so nothing is lost;
an event that is not known here is a Base Event. The chain stays in the log: an export proves
nothing by itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from g2d import __version__
from g2d.protect.audit.records import CHECKPOINT, CLOSE, GAP, HELD, OPEN, RECOVERED, SUSPECT, Record

VERSION = "1.3.0"
_INFORMATIONAL, _LOW, _MEDIUM, _HIGH = 1, 2, 3, 4
_CRITICAL = 5
_LEVELS = {"notice": _LOW, "critical": _CRITICAL}  # of an alarm; a warning is of its class's
_SUCCESS, _FAILURE = 1, 2
_OTHER = 99

Facts = Mapping[str, Any]
Attributes = Callable[[Record], dict[str, Any]]


@dataclass(frozen=True)
class _Class:
    """A class and an activity of OCSF, how bad it is, and what else the class asks for."""

    uid: int
    activity: int
    severity: int
    attributes: Attributes
    status: int = _SUCCESS
    label: str = ""


def to_ocsf(record: Record, log: str = "") -> dict[str, Any]:
    """Map a record; `log`: the log's identity, which makes its number unique."""
    kind = _CLASSES.get(record.name, _UNKNOWN)
    moment = datetime.fromisoformat(record.time[:26] + "+00:00")
    name, text = record.name, record.facts.get("text")
    event: dict[str, Any] = {
        "activity_id": kind.activity,
        "category_uid": kind.uid // 1000,
        "class_uid": kind.uid,
        "type_uid": kind.uid * 100 + kind.activity,
        "severity_id": kind.severity,
        "status_id": kind.status,
        "time": round(moment.timestamp() * 1000),
        "message": f"{name}: {text}" if text else name,
        "metadata": {
            "version": VERSION,
            "product": {"name": "g2d", "vendor_name": "G2D", "version": __version__},
            "log_name": "g2d audit",
            "uid": f"{log}:{record.sequence}" if log else str(record.sequence),
            "sequence": record.sequence,
            "original_time": record.time,
            "event_code": name,
        },
        "unmapped": {"prev": record.previous, **record.facts},
    }
    if kind.activity == _OTHER:
        event["activity_name"] = kind.label or name
    return event | kind.attributes(record)


# --- what classes ask for ------------------------------------------------------------------------


def _app(_: Record) -> dict[str, Any]:
    return {"app": {"name": "g2d", "vendor_name": "G2D", "version": __version__}}


def _endpoint(facts: Facts) -> dict[str, Any]:
    address = str(facts.get("client") or "")
    return {"ip": address} if address else {"name": "unknown"}


def _user(facts: Facts) -> dict[str, Any]:
    who = facts.get("who")
    found: dict[str, Any] = {"name": str(who) if who else "unknown"}
    return found | ({"type": str(facts["how"]), "type_id": _OTHER} if facts.get("how") else {})


def _call(record: Record) -> dict[str, Any]:
    user = _user(record.facts)
    if user["name"] == "unknown":
        user["name"] = "operator"  # the holder of the one admin token
    return {
        "actor": {"user": user},
        "api": {"operation": str(record.facts.get("call")), "service": {"name": "g2d"}},
        "src_endpoint": _endpoint(record.facts),
    }


def _logon(record: Record) -> dict[str, Any]:
    reason = record.facts.get("reason") or record.name
    return {
        "user": _user(record.facts),
        "service": {"name": "g2d"},
        "src_endpoint": _endpoint(record.facts),
        "status_detail": str(reason),
        "http_request": {"url": {"path": str(record.facts.get("call", ""))}},
    }


def _finding(record: Record) -> dict[str, Any]:
    facts = record.facts
    kind = str(facts.get("kind") or facts.get("reason") or record.name)
    text = facts.get("text")
    info: dict[str, Any] = {"uid": f"{record.name}-{record.sequence}", "title": kind}
    found: dict[str, Any] = {"finding_info": info | ({"desc": str(text)} if text else {})}
    found |= {"is_alert": True, "status_id": 1}  # of a finding: new
    if facts.get("level") in _LEVELS:
        found["severity_id"] = _LEVELS[facts["level"]]
    seen = _of_client(str(facts.get("client") or ""))
    if facts.get("evidence"):
        seen["data"] = facts["evidence"]
    return found | ({"evidences": [seen]} if seen else {})


def _of_client(client: str) -> dict[str, Any]:
    """Who an alarm is about: an address, a network of addresses, or an identity."""
    if not client:
        return {}
    try:
        ipaddress.ip_network(client)
    except ValueError:
        return {"actor": {"user": {"name": client}}}
    return {"src_endpoint": {"name" if "/" in client else "ip": client}}


def _generation(record: Record) -> dict[str, Any]:
    number = str(record.facts.get("generation"))
    entity = {"name": f"generation {number}", "uid": number, "type": "model parameters"}
    return {"entity": entity}


def _log_activity(_: Record) -> dict[str, Any]:
    return {"log_name": "g2d audit", "log_provider": "g2d"}


def _nothing(_: Record) -> dict[str, Any]:
    return {}


_LIFECYCLE, _API, _ERROR, _AUTHENTICATION = 6002, 6003, 6008, 3002
_ENTITY, _FINDING, _EVENT_LOG = 3004, 2004, 1008
_UNKNOWN = _Class(0, _OTHER, _INFORMATIONAL, _nothing)
_CLASSES: Mapping[str, _Class] = {
    "start": _Class(_LIFECYCLE, 3, _INFORMATIONAL, _app),
    "stop": _Class(_LIFECYCLE, 4, _INFORMATIONAL, _app),
    "stopping": _Class(_LIFECYCLE, 4, _INFORMATIONAL, _app),
    "configuration": _Class(_LIFECYCLE, _OTHER, _INFORMATIONAL, _app, label="Configure"),
    "serving": _Class(_LIFECYCLE, _OTHER, _INFORMATIONAL, _app, label="Configure"),
    "released": _Class(_LIFECYCLE, _OTHER, _INFORMATIONAL, _app, label="Release"),
    "access_changed": _Class(_LIFECYCLE, _OTHER, _INFORMATIONAL, _app, label="Configure"),
    "keys taken": _Class(_LIFECYCLE, _OTHER, _INFORMATIONAL, _app, label="Take keys"),
    "swap": _Class(_LIFECYCLE, 8, _INFORMATIONAL, _app),
    "paused": _Class(_LIFECYCLE, 7, _LOW, _app),
    "resumed": _Class(_LIFECYCLE, 6, _INFORMATIONAL, _app),
    "hurried": _Class(_LIFECYCLE, _OTHER, _LOW, _app, label="Prioritise"),
    "replica": _Class(_LIFECYCLE, 3, _INFORMATIONAL, _app),
    "rolled out": _Class(_LIFECYCLE, 8, _INFORMATIONAL, _app),
    "admin": _Class(_API, 3, _INFORMATIONAL, _call),
    "wrong_token": _Class(_AUTHENTICATION, 1, _MEDIUM, _logon, _FAILURE),
    "denied": _Class(_AUTHENTICATION, 1, _MEDIUM, _logon, _FAILURE),
    "held_off": _Class(_AUTHENTICATION, 1, _MEDIUM, _logon, _FAILURE),
    "crowded": _Class(_LIFECYCLE, _OTHER, _MEDIUM, _app, label="Shed load"),
    "alarm": _Class(_FINDING, 1, _HIGH, _finding),
    "refused": _Class(_FINDING, 1, _HIGH, _finding),
    "rejected": _Class(_FINDING, 1, _INFORMATIONAL, _finding),
    "accepted": _Class(_FINDING, 1, _HIGH, _finding),
    "older copy": _Class(_FINDING, 1, _HIGH, _finding),
    "failed": _Class(_ERROR, 1, _MEDIUM, _nothing, _FAILURE),
    "broken": _Class(_ERROR, 1, _MEDIUM, _nothing, _FAILURE),
    "server": _Class(_ERROR, 1, _MEDIUM, _nothing, _FAILURE),
    "spare": _Class(_ENTITY, 1, _INFORMATIONAL, _generation),
    "signed": _Class(_ENTITY, 3, _INFORMATIONAL, _generation),
    "committed": _Class(_ENTITY, 3, _INFORMATIONAL, _generation),
    OPEN: _Class(_EVENT_LOG, 3, _INFORMATIONAL, _log_activity),
    CLOSE: _Class(_EVENT_LOG, 4, _INFORMATIONAL, _log_activity),
    CHECKPOINT: _Class(_EVENT_LOG, _OTHER, _INFORMATIONAL, _log_activity, label="Sign"),
    GAP: _Class(_EVENT_LOG, _OTHER, _HIGH, _log_activity, _FAILURE, "Drop"),
    HELD: _Class(_EVENT_LOG, _OTHER, _LOW, _log_activity, label="Hold back"),
    RECOVERED: _Class(_EVENT_LOG, _OTHER, _MEDIUM, _log_activity, label="Recover"),
    SUSPECT: _Class(_EVENT_LOG, _OTHER, _HIGH, _log_activity, _FAILURE, "Suspect"),
}
