"""The command `g2d serve`: its options, checked before anything heavy is imported.

Thin, like `cli`, which attaches it, and as lazy. Serving itself is in `service` and `cluster`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from g2d.cli.console import say
from g2d.cli.flags import Given, with_flags
from g2d.cli.shared import (
    DataFolder,
    EngineName,
    RayAddress,
    TaskPath,
    VaultPath,
    configure_torch,
    refuse_ray,
    vault_settings,
)
from g2d.service.http.options import Options, read_token, require, seconds
from g2d.service.http.startup import (
    check_access,
    check_encrypted,
    check_tls,
    leave_on_sigterm,
    refuse_on_ray,
    refuse_policy_on_ray,
)


@with_flags(Options, into="given")
def serve(
    vault: VaultPath,
    given: Given,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Public key file: serve only what it signed."),
    ] = None,
    served: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File outside the vault that remembers the highest number served."
        ),
    ] = None,
    admin_token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Admin token, mode 600; else $G2D_ADMIN_TOKEN."),
    ] = None,
    audit: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Audit log; else in the state folder. none: no log is written."
        ),
    ] = "",
    data: DataFolder = None,
    engine: EngineName = "local",
    ray_address: RayAddress = "",
    replicas: Annotated[
        int, typer.Option(min=1, help="Number of replicas, with --engine ray.")
    ] = 2,
    lease: Annotated[
        str, typer.Option(metavar="TIME", help="Lease of a replica; 0: by --every, at most 10s.")
    ] = "0",
    task_path: TaskPath = None,
) -> None:
    """Serve the live generation over HTTP (Open Inference Protocol v2), and rotate it."""
    if engine == "local":
        leave_on_sigterm()
    options, token = Options(**given), read_token(admin_token_file)
    if engine == "ray":
        refuse_on_ray(options)
    check_tls(options.tls_cert, options.tls_key)
    check_access(options, token)
    settings = vault_settings(vault)
    require()
    check_encrypted(options.serving(settings.serve), engine == "ray")
    if engine == "ray":
        refuse_ray(vault)
        _refuse_plaintext(vault)
        refuse_policy_on_ray(options.serving(settings.serve))
    parts: dict[str, Any] = {
        "token": token, "key": key, "served": served, "audit": audit, "say": say,
        "data": "" if data is None else str(data.absolute()),
    }  # fmt: skip
    if engine == "ray":
        _on_ray(vault, options, {"replicas": replicas, "address": ray_address}, lease, parts)
    else:
        _here(vault, options, parts)


def _here(vault: Path, options: Options, parts: dict[str, Any]) -> None:
    from g2d.service.http import server

    bound = server.listen(options)
    configure_torch()
    server.serve(vault, options, bound=bound, **parts)


def _refuse_plaintext(vault: Path) -> None:
    """What a service on this machine refuses to serve, a cluster does not serve either."""
    from g2d.service.released import holds_releases_alone

    if (vault / "ledger.sqlite").exists():
        holds_releases_alone(vault)


def _on_ray(
    vault: Path, options: Options, where: dict[str, Any], lease: str, parts: dict[str, Any]
) -> None:
    from g2d.core.ray_cluster import require as require_ray

    require_ray(extra=True)
    where["lease"] = seconds(lease)
    from g2d.service.cluster import deployment

    deployment.serve(vault, options, **parts, **where)
