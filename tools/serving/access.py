"""Who may ask: everybody, or those with a token; and who may change what answers."""

from __future__ import annotations

import hmac
import ipaddress
import pathlib
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from siglip_jax.errors import UserError

LEAST_TOKEN = 16  # characters
OPEN = ("/health", "/", "/page.js", "/page.css")  # the page asks for the token, so it needs none itself


def read_token(path: str) -> str:
    """The one line of a file.

    Raises:
      UserError: no file, not one line, or a token that is short or holds what a header cannot.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        raise UserError(f"--token_file={path}: {type(error).__name__}; expected a file of one line of ASCII") from error
    if len(text) < LEAST_TOKEN or not text.isprintable() or " " in text:
        raise UserError(
            f"--token_file={path}: expected one line of at least {LEAST_TOKEN} printable characters without spaces, "
            "such as `openssl rand -hex 32` prints"
        )
    return text


class TokenRequired:
    """Middleware: status 401 to what has no `Authorization: Bearer <token>`."""

    def __init__(self, app: ASGIApp, *, token: str):
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or self._known(scope):
            await self._app(scope, receive, send)
            return
        refused = JSONResponse(
            {"error": "no token, or a wrong one; send Authorization: Bearer and the token"},
            status_code=401,
            headers={"WWW-Authenticate": "Bearer", "X-Content-Type-Options": "nosniff"},
        )
        await refused(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        # In a time that does not depend on where the two differ.
        return hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"


def check_may_change(request: Request, *, token: bool) -> None:
    """Raises status 403 unless a token was checked, or this machine asks, and not a web page of somebody else's."""
    origin = request.headers.get("origin")
    if origin is not None and _netloc(origin) != request.headers.get("host"):
        raise HTTPException(403, "asked by a page of another address")
    if not token and not _loopback(request.client.host if request.client else ""):
        raise HTTPException(403, "only this machine may change what answers, or who has the token; see --token_file")


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # such as an address that is none
        return None


def _loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
