"""Photos to embeddings over HTTP from a SavedModel, in the JSON of TensorFlow Serving and of Vertex AI.

siglip-jax export --model=runs/shop --dataset=data/shop --output=runs/shop-savedmodel --text=none
python predict_server.py runs/shop-savedmodel      # needs tensorflow-cpu, and nothing of siglip-jax
python predict_client.py http://127.0.0.1:8501/v1/models/shop:predict a.jpg

POST {"instances": [{"b64": "..."}]} gives {"predictions": [[0.1, ...], ...]}, or status 400 and {"error": "..."}, which
names a bad picture. A GET is answered once the model is loaded. Vertex AI says by AIP_HTTP_PORT and AIP_PREDICT_ROUTE
where it will ask; without these every path is answered, at --port.
"""

import argparse
import base64
import contextlib
import http.server
import json
import os
import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf

with contextlib.suppress(ImportError):
    import tensorflow_text  # noqa: F401 (operations of an export with --text=strings)

MOST_BYTES = 32 * 2**20  # of a request


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    path_asked = os.environ.get("AIP_PREDICT_ROUTE", "")

    embed: Callable[[list[bytes]], list[list[float]]]  # of the model that is served

    def do_GET(self) -> None:
        self._answer(200, {"state": "AVAILABLE"})

    def do_POST(self) -> None:
        given = self.headers.get("Content-Length") or ""
        if not given.isdecimal() or not 0 < int(given) <= MOST_BYTES:
            self.close_connection = True  # the body is not read
            status = 413 if given.isdecimal() and int(given) else 411
            return self._answer(status, {"error": f"Content-Length {given[:20]!r}; expected 1 to {MOST_BYTES} bytes"})
        body = self.rfile.read(int(given))
        if self.path_asked not in ("", self.path):
            return self._answer(404, {"error": f"{self.path}; expected {self.path_asked}"})
        try:
            photos = [base64.b64decode(each["b64"], validate=True) for each in json.loads(body)["instances"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            return self._answer(400, {"error": 'expected {"instances": [{"b64": "..."}]}'})
        try:
            self._answer(200, {"predictions": self.embed(photos) if photos else []})
        except tf.errors.InvalidArgumentError as error:
            reason = re.search(r"\[(picture \d+: [^\]]*)\]", error.message)  # the rest is where in the graph
            self._answer(400, {"error": reason[1] if reason else error.message})

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(model: Any, *, host: str, port: int) -> http.server.ThreadingHTTPServer:
    """A server that is bound and answers once `serve_forever` is called."""
    signature = model.signatures["serving_default"]

    def embed(photos: list[bytes]) -> list[list[float]]:
        found = signature(image_bytes=tf.constant(photos))
        numbers = found["embedding"].numpy()
        return (numbers * found["scale"].numpy().reshape(-1, 1) if "scale" in found else numbers).tolist()

    handler = type("OfModel", (Handler,), {"embed": staticmethod(embed)})
    return http.server.ThreadingHTTPServer((host, port), handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="folder of the SavedModel, or gs://...")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 inside a container")
    parser.add_argument("--port", type=int, default=int(os.environ.get("AIP_HTTP_PORT", "8501")), help="0: a free one")
    options = parser.parse_args()
    with serve(tf.saved_model.load(options.model), host=options.host, port=options.port) as server:
        print(f"http://{options.host}:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
