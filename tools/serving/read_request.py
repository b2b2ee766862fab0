"""From a request to what is asked for, checked: the selection of its address, and a picture or a text of its body."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import anyio
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from eval.search.selection import Selection
from tools.common_flags import filters
from tools.serving.served import Query

MOST_ITEMS = 1000  # of one answer
PARAMETERS = ("item", "k", "min_score", "where", "group_by", "collapse", "diversity", "side")
MAX_BODY_BYTES = 16 * 2**20
MAX_READ_BYTES = 128 * 2**20  # of a body that is too large: read and forgotten, so that its sender hears why
BODY_SECONDS = 30.0
MAX_TEXT = 2000  # characters
_EXPECTED = "expected image/*, multipart/form-data with image or text, or application/json with a text"


def selection_of(request: Request) -> Selection:
    """k, min_score, where, group_by, collapse and diversity of the address."""
    values = request.query_params
    for name in values:
        if name not in PARAMETERS:
            raise HTTPException(400, f"parameter {name[:60]!r} is unknown; known are {', '.join(PARAMETERS)}")
        if name != "where" and len(values.getlist(name)) > 1:
            raise HTTPException(400, f"parameter {name!r} is given more than once")
    try:
        k, least = int(values.get("k", "10")), float(values.get("min_score", "-inf"))
        collapse = float(values["collapse"]) if "collapse" in values else None
        diversity = float(values.get("diversity", "0"))
    except ValueError:
        raise HTTPException(400, "k is a whole number; min_score, collapse and diversity are numbers") from None
    if k > MOST_ITEMS:
        raise HTTPException(400, f"k={k}; expected k from 1 to {MOST_ITEMS}")
    where = filters(values.getlist("where"), what="where")
    return Selection(
        k=k, least=least, where=where, group_by=values.get("group_by"), collapse=collapse, diversity=diversity
    )


async def query_of(request: Request) -> Query:
    """A picture, as the body itself or as a part of a form, or a text, as JSON or as a field of a form."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return Query("image", await body_of(request))
    if kind == "application/json":
        value = json_of(await body_of(request))
        return Query("text", _text(value.get("text")))
    if kind == "multipart/form-data":
        return await _form(request.headers, await body_of(request))
    raise HTTPException(415, f"content type {kind[:60]!r}; {_EXPECTED}")


async def body_of(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= MAX_BODY_BYTES:
                    parts.append(part)
                else:
                    parts.clear()
                if size > MAX_READ_BYTES:
                    break
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {BODY_SECONDS:g} seconds") from None
    if size > MAX_BODY_BYTES:
        raise HTTPException(413, f"more than {MAX_BODY_BYTES} bytes")
    return b"".join(parts)


def json_of(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, 'the body is not JSON; expected {"text": "red shoes"}') from None
    if not isinstance(value, dict):
        raise HTTPException(400, "the body is JSON, but no object")
    return value


def _text(text: Any) -> str:
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
        raise HTTPException(400, f'expected {{"text": "red shoes"}} of at most {MAX_TEXT} characters')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise HTTPException(400, "the text holds half a surrogate pair, which is no character") from None
    return text


async def _form(headers: Headers, body: bytes) -> Query:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(headers, stream(), max_files=1, max_fields=1, max_part_size=8 * MAX_TEXT)
    parser.spool_max_size = MAX_BODY_BYTES + 1  # never to the disk
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError) as error:
        raise HTTPException(400, f"no readable form: {getattr(error, 'message', error)}") from None
    try:
        entries = form.multi_items()
        if len(entries) != 1 or entries[0][0] not in ("image", "text"):
            raise HTTPException(400, "expected a form of one part, the file image or the field text")
        name, value = entries[0]
        if isinstance(value, UploadFile) != (name == "image"):
            raise HTTPException(400, f"expected a {'file' if name == 'image' else 'field'} named {name}")
        return Query("image", await value.read()) if isinstance(value, UploadFile) else Query("text", _text(value))
    finally:
        await form.close()
