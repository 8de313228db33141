"""The servers of ``serving.py``, each a program that listens on a port of the loopback.

    python -m benchmarks.serving_contenders MODEL PORT

starts FastAPI with transformers as many tutorials do: an endpoint that is not async, which Starlette runs in its thread pool,
decodes the file by Pillow, and calls transformers' image processor and classifier in torch.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Any, Self

import torch
import transformers
import uvicorn
from fastapi import FastAPI, File, UploadFile
from PIL import Image

from benchmarks.http_load import HOST, Connection, post
from deit.system.openmp import SPIN_VARIABLE, WAIT_VARIABLE

DEIT, LITSERVE, FASTAPI = "deit serve", "LitServe, transformers", "FastAPI, transformers"
TORCH = "torch fp32"
LITSERVE_BATCH, LITSERVE_TIMEOUT = 8, 0.01  # images, and seconds to wait for them
START_SECONDS = 120  # until a server that does not answer is given up
STOP_SECONDS = 20
TOP = 5
BOUNDARY = "boundary-of-the-form"


class TransformersClassifier:
    """transformers' image processor and classifier, in fp32 with torch's default threads.

    Args:
        path: a saved model.
    """

    def __init__(self, path: str) -> None:
        self._processor: Any = transformers.AutoImageProcessor.from_pretrained(path)  # type: ignore[no-untyped-call]
        self._model = transformers.AutoModelForImageClassification.from_pretrained(path).eval()

    def __call__(self, images: Sequence[Image.Image]) -> list[list[dict[str, Any]]]:
        """Returns the most likely classes of each image."""
        inputs = self._processor(images=list(images), return_tensors="pt")
        with torch.inference_mode():
            top = self._model(**inputs).logits.softmax(-1).topk(TOP)
        labels = self._model.config.id2label
        return [
            [{"label": labels[label], "probability": value} for value, label in zip(*row, strict=True)]
            for row in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Contender:
    """A server.

    Attributes:
        name: in the table.
        runs: what computes the logits, and in which precision.
        module: that is run with ``arguments``.
        arguments: of the program; ``{port}`` is the port.
        request: that it is sent.
    """

    name: str
    runs: str
    module: str
    arguments: tuple[str, ...]
    request: bytes


def contenders(bundles: Mapping[str, str], model: str | None, content: bytes) -> list[Contender]:
    """Returns the servers to compare.

    Args:
        bundles: exported models by what computes their logits.
        model: the same one before its export, which transformers can load; None leaves the servers of torch out.
        content: the file that is sent.
    """
    body, form = post(content, "image/jpeg"), _form(content)
    found = [Contender(DEIT, runs, "deit", ("serve", path, "--port", "{port}"), body) for runs, path in bundles.items()]
    if model is None:
        return found
    found.append(Contender(DEIT, TORCH, "deit", ("serve", model, "--port", "{port}"), body))
    if importlib.util.find_spec("litserve") is None:
        print("LitServe is left out; to compare it: pip install litserve", file=sys.stderr)
    else:
        found.append(Contender(LITSERVE, TORCH, "benchmarks.serving_litserve", (model, "{port}"), form))
    found.append(Contender(FASTAPI, TORCH, "benchmarks.serving_contenders", (model, "{port}"), form))
    return found


def _form(content: bytes) -> bytes:
    """Returns a request with a file as a form."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    body = head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    return post(body, f"multipart/form-data; boundary={BOUNDARY}", "/predict")


class Program:
    """A running server, which is stopped at the end of the context.

    Args:
        contender: the server.

    Attributes:
        port: that it listens on.

    Raises:
        RuntimeError: it does not answer.
    """

    def __init__(self, contender: Contender) -> None:
        with socket.create_server((HOST, 0)) as free:
            self.port: int = free.getsockname()[1]
        arguments = [argument.format(port=self.port) for argument in contender.arguments]
        command = [sys.executable, "-m", contender.module, *arguments]
        self._command = " ".join(command)
        # torch's threads by default, whatever this shell, or the benchmark for the predictor, says
        own = {"OMP_NUM_THREADS", WAIT_VARIABLE, SPIN_VARIABLE}
        environment = {name: value for name, value in os.environ.items() if name not in own}
        self._process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            asyncio.run(self._wait_until_ready(contender.request))
        except BaseException:
            self._stop()
            raise

    async def _wait_until_ready(self, request: bytes) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                connection = await Connection.open(self.port)
                status = await connection.send(request)
                connection.close()
            except OSError:
                await asyncio.sleep(0.2)
                continue
            if status == 200:
                return
            raise RuntimeError(f"The server answers with {status}: {self._command}")
        raise RuntimeError(f"The server does not start: {self._command}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        """Stops the program and the processes that it has started."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):  # none is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def main() -> None:
    path, port = sys.argv[1:]
    classify, app = TransformersClassifier(path), FastAPI()

    @app.post("/predict")
    def predict(file: Annotated[UploadFile, File()]) -> list[dict[str, Any]]:
        [prediction] = classify([Image.open(file.file).convert("RGB")])
        return prediction

    uvicorn.run(app, host=HOST, port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
