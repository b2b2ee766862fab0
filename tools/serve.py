"""siglip-jax serve: a page and a JSON API that find visually similar items.

siglip-jax serve --index=runs/shop/index --dataset=data/shop --model=runs/shop
curl 'http://127.0.0.1:8000/similar?item=1163&k=5'
curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/search'
curl -F image=@photo.jpg 'http://127.0.0.1:8000/search?group_by=product&diversity=0.3'
curl --json '{"text": "red running shoes"}' 'http://127.0.0.1:8000/search?where=gender=Women&where=price=10..50'

--dataset adds titles, pictures and filters, --model search by picture and by text; without it items are found by item.
A new generation in the index's folder is taken up while the server runs; --candidate answers beside it, from an index
of another encoder. Only this machine can reach the server, unless --host says otherwise; --token_file makes everybody
show a token. Ctrl-C or SIGTERM stops it once the requests that it has are answered. Needs
`pip install 'siglip-jax[serve]'`.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import logging

from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags

NEEDED = ("starlette", "uvicorn", "prometheus_client", "python_multipart")


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("index", None, "Folder written by siglip-jax index.", required=True, flag_values=values)
    flags.DEFINE_string("dataset", None, "Folder written by siglip-jax data.", flag_values=values)
    common_flags.define_model(values, required=False)
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 for every one.", flag_values=values)
    flags.DEFINE_integer(
        "port", 8000, "Port; 0 for a free one.", lower_bound=0, upper_bound=2**16 - 1, flag_values=values
    )
    flags.DEFINE_string(
        "token_file", None, "File of one line: only who sends it as a bearer token is answered.", flag_values=values
    )
    flags.DEFINE_integer(
        "waiting", 32, "Pictures and texts that may wait to be encoded; more get status 503.", lower_bound=1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "batch", 16, "Pictures or texts that are encoded at once, where so many wait.", lower_bound=1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "timeout", 10.0, "Seconds that an answer may take; then status 504.", lower_bound=0.01, flag_values=values
    )
    flags.DEFINE_float(
        "reload", 2.0, "Seconds between two looks for a new index or dataset in their folders; 0: only when POST "
        "/reload asks for it.", lower_bound=0, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "candidate", None, "Index of another encoder, which answers beside the first.", flag_values=values
    )
    flags.DEFINE_string("candidate_model", None, "The encoder of --candidate.", flag_values=values)
    flags.DEFINE_float(
        "compare", 0.1, "Share of the queries that --candidate answers too, for /compare.", lower_bound=0,
        upper_bound=1, flag_values=values,
    )  # fmt: skip
    common_flags.define_allow_low_recall(values)


def main(values: flags.FlagValues) -> None:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"{', '.join(missing)} not installed; pip install 'siglip-jax[serve]'")
    if values.candidate_model is not None and values.candidate is None:
        raise UserError("--candidate_model needs --candidate, the index that it made")
    from tools.serving.access import read_token
    from tools.serving.app import make_app
    from tools.serving.generations import Generations
    from tools.serving.run_server import run_server
    from tools.serving.served import GenerationSource, ServedItems

    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("tools.serving").setLevel(logging.INFO)  # which generation answers
    token = None if values.token_file is None else read_token(values.token_file)
    options = {"items": ServedItems(values.dataset), "batch": values.batch, "waiting": values.waiting}
    options["allow_low_recall"] = values.allow_low_recall
    source = GenerationSource("index", values.index, model=values.model, **options)
    candidate = None
    if values.candidate is not None:
        candidate = GenerationSource("candidate", values.candidate, model=values.candidate_model, **options)
    generations = Generations(source, candidate)
    active = generations.standing.active
    app = make_app(
        generations,
        hosts=_names(values.host),
        token=token,
        timeout=values.timeout,
        compare=values.compare,
        reload=values.reload,
    )
    greeting = f"{len(active.answers.index)} items of generation {active.name}"
    run_server(app, host=values.host, port=values.port, greeting=greeting)


def _names(host: str) -> list[str] | None:
    """By which the server may be asked: a loopback address has few."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return ["127.0.0.1", "localhost", "[::1]", host] if loopback else None
