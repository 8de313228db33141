"""Predictions on Ray: how its workers are chosen, what they compute, and how errors reach the user."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deit.data.packing import pack
from deit.errors import CheckpointError, InterruptedWorkError, UserError, WorkError
from deit.images.limits import max_pixels
from deit.inference import ray_engine
from deit.inference.predict_files import PackedImages, probe
from deit.inference.predictor import Prediction, Predictor
from deit.models.modeling import DeiTForImageClassification
from deit.system.signals import stop_on_signals
from tests.helpers import pattern, randomized, tiny_deit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    randomized(DeiTForImageClassification(tiny_deit()), 0).save_pretrained(path)
    return path


def node(cores: float, gpus: float = 0, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cores, **({"GPU": gpus} if gpus else {})}}


@pytest.mark.parametrize(
    ("nodes", "workers", "cores", "gpus"),
    [
        ([node(2)], 1, 2, 0),
        ([node(8), node(8), node(8, alive=False)], 2, 8, 0),
        ([node(4), node(9), node(0)], 3, 4, 0),
        ([node(16, 4), node(64, 8), node(32)], 12, 4, 1),
    ],
)
def test_pool_of_a_cluster(nodes: list[dict[str, Any]], workers: int, cores: float, gpus: float) -> None:
    assert ray_engine._pool(nodes) == ray_engine._Pool(workers, cores, gpus)


def test_cluster_without_cores() -> None:
    with pytest.raises(WorkError, match="no cores for workers"):
        ray_engine._pool([node(0), node(4, alive=False)])


def worker(model: Path, predictor: Predictor, folder: Path, packed: str | None = None) -> ray_engine._PartPredictor:
    arguments = {"name": str(model), "device": "cpu"}
    return ray_engine._PartPredictor(arguments, 2, packed, str(folder), probe(predictor).tolist(), max_pixels())


def predicted(worker: ray_engine._PartPredictor, names: list[str], first: int) -> list[dict[str, Any]]:
    batch = {"number": np.array([7]), "names": np.array([json.dumps(names)], object), "first": np.array([first])}
    result = worker(batch)
    assert result["number"] == [7]
    rows: list[dict[str, Any]] = json.loads(result["predictions"][0])
    return rows


def assert_same(rows: list[dict[str, Any]], expected: list[Prediction]) -> None:
    for row, prediction in zip(rows, expected, strict=True):
        found = ray_engine._prediction(row)
        assert (found.image, found.labels, found.error) == (prediction.image, prediction.labels, prediction.error)
        assert found.probabilities == pytest.approx(prediction.probabilities, rel=1e-4)  # batches of other sizes


def test_worker_predicts_files_and_packed_images(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    data = tmp_path / "photos"
    for number in range(6):
        path = data / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pattern(40, 40, number).save(path)
    pack(data, tmp_path / "shards")
    monkeypatch.chdir(tmp_path)
    predictor = Predictor.from_pretrained(model, "cpu")
    packed = PackedImages(str(tmp_path / "shards"))
    names = ["missing.png", *(str(path.relative_to(tmp_path)) for path in sorted(data.rglob("*.png"))[:2])]
    expected = predictor(names, 2)
    rows = predicted(worker(model, predictor, tmp_path), names, 0)
    assert_same(rows, expected)
    assert rows[0]["error"]
    expected = predictor([packed.open(index) for index in (1, 2)], 2, packed.names[1:3])
    assert_same(predicted(worker(model, predictor, Path("/"), str(tmp_path / "shards")), list(packed.names[1:3]), 1), expected)


def test_worker_with_another_model(tmp_path: Path, model: Path) -> None:
    other = tmp_path / "other"
    randomized(DeiTForImageClassification(tiny_deit()), 1).save_pretrained(other)
    with pytest.raises(CheckpointError, match="is another model"):
        worker(other, Predictor.from_pretrained(model, "cpu"), tmp_path)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999999"])
def test_address_where_nothing_answers(address: str) -> None:
    with pytest.raises(UserError, match="no Ray cluster"):
        ray_engine._check_address(address)


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_addresses_that_ray_finds_by_itself(address: str) -> None:
    ray_engine._check_address(address)


def test_error_of_a_worker_is_reported() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"number": 1}
        raise ValueError("first line\nthe cause")

    found = ray_engine._in_background(rows())
    assert next(found) == {"number": 1}
    with pytest.raises(WorkError, match="failed: the cause"):
        next(found)


def test_signal_while_a_part_is_awaited() -> None:
    end = threading.Event()

    def rows() -> Iterator[dict[str, Any]]:
        end.wait()
        yield {}

    with stop_on_signals() as stop:
        stop.set()
        with pytest.raises(InterruptedWorkError):
            next(ray_engine._in_background(rows()))
    end.set()
