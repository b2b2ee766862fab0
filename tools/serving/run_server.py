"""uvicorn around an application: bind first, say where, answer what is under way when told to stop."""

from __future__ import annotations

import signal
import socket
import time
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from siglip_jax.errors import UserError

GRACE_SECONDS = 30
LEAVING_SECONDS = 0.5  # after SIGTERM: connections are still taken, each for one more answer
BACKLOG = 2048


def run_server(app: Starlette, *, host: str, port: int, greeting: str) -> None:
    """Serves until SIGTERM or Ctrl-C. Whoever asked before that is answered.

    Args:
      greeting: printed before " at http://..." when it can be asked.

    Raises:
      UserError: an address that cannot be bound.
    """
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
    print(f"{greeting} at http://{shown}:{bound.getsockname()[1]}/", flush=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=2**16,
        server_header=False,
    )
    with bound:
        _Server(config, app).run(sockets=[bound])


class _Server(uvicorn.Server):
    """uvicorn's, but it leaves in two steps.

    uvicorn closes the socket and idle connections at once, and with them requests that have arrived and are not yet
    read. Here each connection is told to close with its next answer, and the rest follows a little later.
    """

    def __init__(self, config: uvicorn.Config, app: Starlette):
        super().__init__(config)
        self._app = app
        self._leaves: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._leaves is None and sig == signal.SIGTERM:
            self._app.state.leaving = True
            self._leaves = time.monotonic() + LEAVING_SECONDS
            self._captured_signals.append(sig)
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._leaves is not None and time.monotonic() >= self._leaves:
            self.should_exit = True
        return await super().on_tick(counter)
