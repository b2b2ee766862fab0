"""The addresses of `siglip-jax serve` for machines: an OpenAPI 3.1 description."""

from __future__ import annotations

from typing import Any

from siglip_jax import __version__

_ANYWHERE = (401,)  # where the server has a token


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(schema: str, *, errors: tuple[int, ...] = ()) -> dict[str, Any]:
    content = {"application/json": {"schema": _schema(schema)}}
    failed = {"application/json": {"schema": _schema("Error")}}
    found: dict[str, Any] = {"200": {"description": "found", "content": content}}
    return found | {str(status): {"description": "one line", "content": failed} for status in (*errors, *_ANYWHERE)}


def _parameter(name: str, schema: dict[str, Any], *, place: str = "query", text: str = "") -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "description": text, "schema": schema}


_SELECTION = [
    _parameter("k", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 10}),
    _parameter("min_score", {"type": "number"}, text="cosine from which an item is shown"),
    _parameter(
        "where",
        {"type": "array", "items": {"type": "string"}},
        text="attribute=value or attribute=10..50; values of one attribute add up",
    ),
    _parameter("group_by", {"type": "string"}, text="attribute; of the items that share a value, the best"),
    _parameter(
        "collapse", {"type": "number", "exclusiveMinimum": 0, "maximum": 1}, text="cosine of near-duplicates, left out"
    ),
    _parameter(
        "diversity", {"type": "number", "minimum": 0, "maximum": 1, "default": 0}, text="0 nearest, 1 least alike"
    ),
    _parameter("side", {"enum": ["active", "candidate"], "default": "active"}, text="of two encoders, which answers"),
]
_ID = _parameter("item", {"type": "string", "minLength": 1}, place="path")
_TEXT = {"type": "string", "minLength": 1, "maxLength": 2000}
_BYTES = {"type": "string", "format": "binary"}


def _one_of(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}


_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": _one_of("text", _TEXT)},
        "multipart/form-data": {"schema": {"oneOf": [_one_of("image", _BYTES), _one_of("text", _TEXT)]}},
        **{f"image/{kind}": {"schema": _BYTES} for kind in ("jpeg", "png", "webp", "gif")},
    },
}
_NAME = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_SIDE = {
    "generation": _NAME,
    "items": _COUNT,
    "image": {"type": "boolean"},
    "text": {"type": "boolean"},
    "model": _NAME,
}
_SCHEMAS: dict[str, Any] = {
    "Answer": {
        "type": "object",
        "required": ["query", "generation", "items"],
        "properties": {
            "query": {"type": "object"},
            "generation": _NAME,
            "collapsed": _COUNT,
            "unmatched": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
            "items": {"type": "array", "items": _schema("Item")},
        },
    },
    "Item": {
        "type": "object",
        "required": ["id", "title", "attributes"],
        "properties": {
            "id": _NAME,
            "score": {"type": "number"},
            "picture": {"type": "integer", "minimum": 1},
            "collapsed": _COUNT,
            "title": {"type": "string"},
            "attributes": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    },
    "Filters": {
        "type": "object",
        "required": ["choices", "ranges", "groups"],
        "properties": {
            "choices": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
            "ranges": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "number"}}},
            "groups": {"type": "array", "items": _NAME},
        },
    },
    "Standing": {
        "type": "object",
        "required": ["status", "generation", "items", "image", "text"],
        "properties": {
            "status": {"enum": ["ok", "leaving"]},
            **_SIDE,
            "candidate": {"type": "object", "properties": _SIDE},
            "previous": _NAME,
            "broken": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    },
    "Comparison": {
        "type": "object",
        "required": ["active", "candidate", "queries", "k", "overlap", "rank_biased_overlap"],
        "properties": {
            "active": {"type": "object"},
            "candidate": {"type": "object"},
            "queries": {"type": "object", "additionalProperties": _COUNT},
            "overlap": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
            "rank_biased_overlap": {"type": ["number", "null"], "minimum": 0, "maximum": 1.000001},
        },
    },
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
}
_FOLDER = {"content": {"application/json": {"schema": {"type": "object", "properties": {"index": _NAME}}}}}

DESCRIPTION: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "siglip-jax serve", "version": __version__},
    "security": [{"token": []}, {}],
    "paths": {
        "/similar": {
            "get": {
                "parameters": [{**_parameter("item", {"type": "string"}), "required": True}, *_SELECTION],
                "responses": _answer("Answer", errors=(400, 404, 504)),
            }
        },
        "/search": {
            "post": {
                "parameters": _SELECTION,
                "requestBody": _BODY,
                "responses": _answer("Answer", errors=(400, 408, 413, 415, 503, 504)),
            }
        },
        "/items/{item}": {"get": {"parameters": [_ID], "responses": _answer("Item", errors=(404,))}},
        "/images/{item}": {
            "get": {
                "parameters": [_ID],
                "responses": {
                    **_answer("Error", errors=(404,)),
                    "200": {"description": "found", "content": {"image/*": {"schema": _BYTES}}},
                },
            }
        },
        "/filters": {"get": {"responses": _answer("Filters")}},
        "/ready": {"get": {"responses": _answer("Standing", errors=(503,))}},
        "/compare": {"get": {"responses": _answer("Comparison", errors=(404,))}},
        "/reload": {
            "post": {"requestBody": _FOLDER, "responses": _answer("Standing", errors=(400, 403, 408, 409, 413))}
        },
        "/switch": {"post": {"responses": _answer("Standing", errors=(400, 403))}},
        "/rollback": {"post": {"responses": _answer("Standing", errors=(400, 403))}},
    },
    "components": {"schemas": _SCHEMAS, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
}
