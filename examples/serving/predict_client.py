"""Photos to embeddings from a server: TensorFlow Serving's REST, predict_server.py, or an endpoint of Vertex AI.

python predict_client.py http://127.0.0.1:8501/v1/models/shop:predict a.jpg b.png   # a line of JSON for each photo
python predict_client.py https://REGION-aiplatform.googleapis.com/v1/ENDPOINT:predict --token="$(gcloud auth \
print-access-token)" a.jpg
"""

import argparse
import base64
import json
import pathlib
import urllib.error
import urllib.request


def request_body(photos: list[bytes]) -> bytes:
    """JSON of encoded photos. The one input's name ends in _bytes, so a server knows that these are no texts."""
    return json.dumps({"instances": [{"b64": base64.b64encode(photo).decode()} for photo in photos]}).encode()


def embed(url: str, photos: list[bytes], *, token: str = "") -> list[list[float]]:
    """An embedding for each; RuntimeError with the server's words where it refuses one."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, request_body(photos), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["predictions"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: status {error.code}: {error.read().decode(errors='replace')[:500]}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("photos", nargs="+", type=pathlib.Path)
    parser.add_argument("--token", default="")
    options = parser.parse_args()
    for embedding in embed(options.url, [photo.read_bytes() for photo in options.photos], token=options.token):
        print(json.dumps(embedding))


if __name__ == "__main__":
    main()
