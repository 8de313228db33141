"""LitServe with transformers, for ``serving.py``; LitServe is not among the requirements.

    python -m benchmarks.serving_litserve MODEL PORT

One worker on the CPU, which batches what arrives within 10 ms, up to 8 images. LitServe reads the annotations of the methods,
so they are not postponed.
"""

import importlib
import sys
from typing import Any

from fastapi import Request
from PIL import Image

from benchmarks.http_load import HOST
from benchmarks.serving_contenders import LITSERVE_BATCH, LITSERVE_TIMEOUT, TransformersClassifier

litserve: Any = importlib.import_module("litserve")


class ClassifierApi(litserve.LitAPI):  # type: ignore[misc]
    """Classifies the file of a form.

    Args:
        path: a saved model.
    """

    def __init__(self, path: str) -> None:
        super().__init__(max_batch_size=LITSERVE_BATCH, batch_timeout=LITSERVE_TIMEOUT)
        self._path = path

    def setup(self, device: str) -> None:
        """Loads the model in the worker."""
        del device  # the CPU
        self._classify = TransformersClassifier(self._path)

    def decode_request(self, request: Request) -> Image.Image:
        """Decodes the file of a form: LitServe has read the form already."""
        return Image.open(request["file"].file).convert("RGB")

    def predict(self, images: list[Image.Image]) -> list[list[dict[str, Any]]]:
        """Classifies a batch."""
        return self._classify(images)

    def encode_response(self, prediction: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the response to a request."""
        return {"predictions": prediction}


def main() -> None:
    path, port = sys.argv[1:]
    server = litserve.LitServer(ClassifierApi(path), accelerator="cpu", workers_per_device=1)
    server.run(host=HOST, port=int(port), log_level="warning", access_log=False, generate_client_file=False)


if __name__ == "__main__":
    main()
