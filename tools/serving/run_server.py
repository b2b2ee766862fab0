"""uvicorn around the application: bind first, say where, answer what is under way when told to stop."""

from __future__ import annotations

import socket

import uvicorn

from siglip_jax.errors import UserError
from tools.serving.app import make_app
from tools.serving.served import Served

GRACE_SECONDS = 30
BACKLOG = 2048


def run_server(served: Served, *, host: str, port: int, hosts: list[str] | None) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
      UserError: an address that cannot be bound.
    """
    index = served.answers.index
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)  # before the address is printed: who reads it may ask at once
    except OSError as error:
        bound.close()
        raise UserError(f"cannot listen at {host}:{port} ({error.strerror}); give another --host or --port") from error
    shown = f"[{host}]" if ":" in host else host
    print(
        f"{len(index)} items of generation {index.generation} at http://{shown}:{bound.getsockname()[1]}/", flush=True
    )
    config = uvicorn.Config(
        make_app(served, hosts=hosts),
        log_level="warning",
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=2**16,
        server_header=False,
    )
    with bound:
        uvicorn.Server(config).run(sockets=[bound])
