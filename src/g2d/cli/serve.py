"""The command `g2d serve`: its options, checked before anything heavy is imported.

Thin, like `cli`, which attaches it, and as lazy. Serving itself is in `service` and `cluster`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from g2d.cli.console import say
from g2d.cli.shared import (
    DataFolder,
    EngineName,
    RayAddress,
    VaultPath,
    configure_torch,
    vault_settings,
)


def serve(
    vault: VaultPath,
    every: Annotated[
        str, typer.Option(metavar="TIME", help="Rotate every 60s, 5m, 1h ..; 0: on demand only.")
    ] = "0",
    jitter: Annotated[float, typer.Option(help="Share of it by which waits vary.")] = 0.1,
    queries: Annotated[int, typer.Option(help="Rotate after so many inputs; 0: off.")] = 0,
    host: Annotated[str, typer.Option(help="Address; anything but loopback is exposed.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port; 0: any free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Also a name of this service (a proxy's); repeatable."),
    ] = None,
    name: Annotated[str, typer.Option(help="The model's name in addresses.")] = "g2d",
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Public key: serve signed ones only.")
    ] = None,
    served: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Remembers the highest number, outside the vault."),
    ] = None,
    admin_token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Admin token, mode 600; else $G2D_ADMIN_TOKEN."),
    ] = None,
    tls_cert: Annotated[str, typer.Option(metavar="FILE", help="Certificate.")] = "",
    tls_key: Annotated[str, typer.Option(metavar="FILE", help="Its private key.")] = "",
    rate: Annotated[float, typer.Option(help="Inputs of one client a second; 0: any.")] = 0.0,
    burst: Annotated[float, typer.Option(help="How many of them at once.")] = 1000.0,
    max_batch: Annotated[int, typer.Option(help="Inputs of one request.")] = 256,
    max_body: Annotated[int, typer.Option(help="Bytes of one; 0: as its inputs need.")] = 0,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="For one request.")] = "10s",
    check_every: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Check the weights in memory, twice a second at most; 0: never."
        ),
    ] = "500ms",
    data: DataFolder = None,
    engine: EngineName = "local",
    ray_address: RayAddress = "",
    replicas: Annotated[int, typer.Option(min=1, help="With --engine ray: how many.")] = 2,
    lease: Annotated[
        str, typer.Option(metavar="TIME", help="A replica's; 0: by --every, 10s at most.")
    ] = "0",
) -> None:
    """Serve the live generation over HTTP (Open Inference Protocol v2), and rotate it."""
    from g2d.service.http.options import Options, read_token, require, seconds
    from g2d.service.http.startup import check_tls, leave_on_sigterm

    if engine == "local":
        leave_on_sigterm()
    options = Options(
        host=host, port=port, name=name, every=seconds(every), jitter=jitter, queries=queries,
        check_every=seconds(check_every), max_batch=max_batch, max_body=max_body, rate=rate,
        burst=burst, timeout=seconds(timeout), tls_cert=tls_cert, tls_key=tls_key,
        allow_host=tuple(allow_host or ()),
    )  # fmt: skip
    token = read_token(admin_token_file)
    check_tls(tls_cert, tls_key)
    vault_settings(vault)
    require()
    parts: dict[str, Any] = {
        "token": token, "key": key, "served": served, "say": say,
        "data": "" if data is None else str(data.absolute()),
    }  # fmt: skip
    if engine == "ray":
        from g2d.core.ray_cluster import require as require_ray

        require_ray(extra=True)
        parts |= {"replicas": replicas, "address": ray_address, "lease": seconds(lease)}
        from g2d.service.cluster import deployment

        deployment.serve(vault, options, **parts)
        return
    from g2d.service.http import server

    bound = server.listen(options)
    configure_torch()
    server.serve(vault, options, bound=bound, **parts)
