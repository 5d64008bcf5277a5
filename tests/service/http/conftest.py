"""A service over stand-ins behind a real socket, with our doors and connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sockets import serving


@pytest.fixture
def served_socket() -> Iterator[str]:
    """Its address, host and port."""
    with serving(patience=60.0) as served:
        host, port = served.bound.getsockname()
        yield f"{host}:{port}"
