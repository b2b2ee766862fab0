"""Requests made from the description, right and wrong ones, by schemathesis: what is answered is what it describes."""

import collections
import json

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.python import asgi
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tools.serving.app import make_app
from tools.serving.generations import Generations
from tools.serving.openapi import DESCRIPTION
from tools.serving.served import GenerationSource, ServedItems

WRONG = schemathesis.GenerationMode.NEGATIVE
CHECKS = [not_a_server_error, response_schema_conformance, content_type_conformance]


@pytest.fixture
def app(tmp_path, save_index):
    save_index(tmp_path / "a", 0)
    save_index(tmp_path / "b", 1)
    generations = Generations(
        GenerationSource("index", tmp_path / "a", items=ServedItems(None), model="pixels:2x2"),
        GenerationSource("candidate", tmp_path / "b", model="pixels:2x2"),
    )
    return make_app(generations, compare=0.5)


@pytest.mark.parametrize("examples", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_fuzzed_requests_give_what_is_described(app, examples):
    async def from_here(scope, receive, send):
        """Asked by this machine, which may change what answers."""
        await app({**scope, "client": ("127.0.0.1", 1)} if scope["type"] == "http" else scope, receive, send)

    schema = schemathesis.openapi.from_asgi("/openapi.json", from_here)
    statuses = collections.defaultdict(set)
    with asgi.get_client(from_here) as client:
        for found in schema.get_all_operations():
            operation = found.ok()

            @hypothesis.settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(
                case=operation.as_strategy()
                | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
            )
            def ask(case):
                response = case.call(session=client)
                statuses[case.operation.path].add(response.status_code)
                case.validate_response(response, checks=CHECKS)

            ask()
    assert statuses.keys() == DESCRIPTION["paths"].keys()
    assert all(each & {200, 404, 400, 415} for each in statuses.values())


def test_every_address_of_the_application_is_described(app):
    pages = {"/", "/page.js", "/page.css", "/health", "/metrics", "/openapi.json"}
    described = {path.replace("{item}", "{item:path}") for path in DESCRIPTION["paths"]}
    assert {route.path for route in app.routes} == described | pages
    assert json.loads(json.dumps(DESCRIPTION)) == DESCRIPTION
