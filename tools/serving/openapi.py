"""The addresses of `siglip-jax serve` for machines: an OpenAPI 3.1 description."""

from __future__ import annotations

from typing import Any

from siglip_jax import __version__


def _answer(schema: str, *, errors: tuple[int, ...] = ()) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    failed = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    found: dict[str, Any] = {"200": {"description": "found", "content": content}}
    return found | {str(status): {"description": "one line", "content": failed} for status in errors}


def _parameter(name: str, schema: dict[str, Any], *, place: str = "query", text: str = "") -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "description": text, "schema": schema}


_K = _parameter("k", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 10})
_LEAST = _parameter("min_score", {"type": "number"}, text="cosine from which an item is shown")
_WHERE = _parameter(
    "where", {"type": "array", "items": {"type": "string"}}, text="attribute=value; values of one attribute add up"
)
_ID = _parameter("item", {"type": "string"}, place="path")
_TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": _TEXT},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    },
}
_ITEM = {
    "type": "object",
    "required": ["id", "title", "attributes"],
    "properties": {
        "id": {"type": "string"},
        "score": {"type": "number"},
        "title": {"type": "string"},
        "attributes": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_ANSWER = {
    "type": "object",
    "required": ["query", "generation", "items"],
    "properties": {
        "query": {"type": "object"},
        "generation": {"type": "string"},
        "items": {"type": "array", "items": {"$ref": "#/components/schemas/Item"}},
    },
}

DESCRIPTION: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "siglip-jax serve", "version": __version__},
    "paths": {
        "/similar": {
            "get": {
                "parameters": [{**_parameter("item", {"type": "string"}), "required": True}, _K, _LEAST, _WHERE],
                "responses": _answer("Answer", errors=(400, 404)),
            }
        },
        "/search": {
            "post": {
                "parameters": [_K, _LEAST, _WHERE],
                "requestBody": _BODY,
                "responses": _answer("Answer", errors=(400, 408, 413, 415, 503)),
            }
        },
        "/items/{item}": {"get": {"parameters": [_ID], "responses": _answer("Item", errors=(404,))}},
    },
    "components": {
        "schemas": {
            "Answer": _ANSWER,
            "Item": _ITEM,
            "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
        }
    },
}
