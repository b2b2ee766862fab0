"""siglip-jax serve: a page and a JSON API that find visually similar items.

siglip-jax serve --index=runs/shop/index --dataset=data/shop --model=runs/shop
curl 'http://127.0.0.1:8000/similar?item=1163&k=5'
curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/search'
curl --json '{"text": "red running shoes"}' 'http://127.0.0.1:8000/search?where=gender=Women'

--dataset adds titles, pictures and filters, --model search by picture and by text; without it items are found by item.
Only this machine can reach the server, unless --host says otherwise; it has no password. Ctrl-C or SIGTERM stops it
once the requests that it has are answered. Needs `pip install 'siglip-jax[serve]'`.
"""

from __future__ import annotations

import importlib.util
import ipaddress

from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags

NEEDED = ("starlette", "uvicorn", "prometheus_client")


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("index", None, "Folder written by siglip-jax index.", required=True, flag_values=values)
    flags.DEFINE_string("dataset", None, "Folder written by siglip-jax data.", flag_values=values)
    common_flags.define_model(values, required=False)
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 for every one.", flag_values=values)
    flags.DEFINE_integer(
        "port", 8000, "Port; 0 for a free one.", lower_bound=0, upper_bound=2**16 - 1, flag_values=values
    )
    flags.DEFINE_integer(
        "waiting", 32, "Pictures and texts that may wait to be encoded; more get status 503.", lower_bound=1,
        flag_values=values,
    )  # fmt: skip
    common_flags.define_allow_low_recall(values)


def main(values: flags.FlagValues) -> None:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"{', '.join(missing)} not installed; pip install 'siglip-jax[serve]'")
    from tools.serving.run_server import run_server
    from tools.serving.served import Served

    served = Served.load(
        values.index,
        dataset=values.dataset,
        model=values.model,
        waiting=values.waiting,
        allow_low_recall=values.allow_low_recall,
    )
    run_server(served, host=values.host, port=values.port, hosts=_names(values.host))


def _names(host: str) -> list[str] | None:
    """By which the server may be asked: a loopback address has few."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return ["127.0.0.1", "localhost", "[::1]", host] if loopback else None
