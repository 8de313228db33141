"""Export, prediction, evaluation and benchmark of a bundle with the program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deit.images.processor import DeiTImageProcessor
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from tests.e2e.conftest import Deit
from tests.helpers import pattern, randomized, tiny_deit

CLASSES = ("golden retriever", "кошка", "鳥")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a space in its name that contains a model and labeled photos."""
    root = tmp_path_factory.mktemp("my work") / "a folder"
    network = randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(CLASSES)), std=0.1)
    network.save_pretrained(root / "a model")
    DeiTImageProcessor.for_size(32, 32).save_pretrained(root / "a model")
    for number in range(48):
        path = root / "photos" / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pattern(50 + number, 60, seed=number).save(path)
    return root


@pytest.fixture(scope="module")
def bundle(deit: Deit, work: Path) -> Path:
    done = deit("export", "a model", "--to", "openvino", "--precision", "int8", "--calibrate", "photos", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "same prediction" in done.stdout and "openvino int8" in done.stdout
    assert done.stdout.splitlines()[-1] == "Bundle: exports/a model-openvino-int8"
    return work / "exports" / "a model-openvino-int8"


def test_predictions_and_evaluation_of_a_bundle_match_the_model(deit: Deit, work: Path, bundle: Path) -> None:
    labels = {}
    for name in ("a model", bundle):
        done = deit("predict", name, "photos/кошка", "--json", "--top", "1", cwd=work)
        assert done.returncode == 0, done.stderr
        labels[name] = [row["predictions"][0]["label"] for row in json.loads(done.stdout)]
    assert len(labels[bundle]) == 16
    assert sum(first == second for first, second in zip(labels["a model"], labels[bundle], strict=True)) >= 15
    metrics = {}
    for name in ("a model", bundle):
        done = deit("evaluate", name, "photos", "--json", "--device", "cpu", "--split", "all", cwd=work)
        assert done.returncode == 0, done.stderr
        metrics[name] = json.loads(done.stdout)["heads"]
    for head, values in metrics["a model"].items():
        assert metrics[bundle][head]["top1"] == pytest.approx(values["top1"], abs=0.05)


def test_unreadable_image_is_an_error_in_its_row(deit: Deit, work: Path, bundle: Path) -> None:
    done = deit("predict", bundle, "-", "--json", stdin=b"rubbish", cwd=work)
    assert done.returncode == 1
    assert "not an image" in json.loads(done.stdout)[0]["error"]


def test_prediction_with_a_bundle_does_not_load_torch(work: Path, bundle: Path) -> None:
    image = next((work / "photos" / "кошка").iterdir())
    code = "import sys\nfrom deit.cli.main import run\ntry:\n  run()\nexcept SystemExit as error:\n"
    code += "  assert not error.code, error.code\nassert not {'torch', 'timm', 'sklearn', 'nncf'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", str(bundle), str(image)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert any(name in done.stdout for name in CLASSES)


def test_info_shows_the_runtime_and_the_reason(deit: Deit, work: Path, bundle: Path) -> None:
    done = deit("info", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout and "a model that was not exported" in done.stdout
    done = deit("info", bundle, "--json", cwd=work)
    [choice] = json.loads(done.stdout)["choices"]
    assert (choice["runtime"], choice["reason"]) == ("openvino", "the only installed runtime for it")


def test_benchmark_of_a_bundle(deit: Deit, work: Path, bundle: Path) -> None:
    done = deit("benchmark", bundle, "--seconds", "0.1", "--images", "photos", "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["machine"]["cores"] > 0
    assert [row["runtime"] for row in content["runtimes"]] == ["openvino"]
    done = deit("benchmark", bundle, "--seconds", "0.1", cwd=work)
    assert "ms per image (p50, p99)" in done.stdout


def test_damaged_bundle_is_an_error(deit: Deit, work: Path, bundle: Path) -> None:
    damaged = work / "damaged"
    damaged.mkdir()
    for file in bundle.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    with (damaged / "model.bin").open("r+b") as weights:
        weights.write(b"\xff" * 8)
    done = deit("predict", damaged, "photos", cwd=work)
    assert done.returncode == 2
    assert "is not the file that was exported" in done.stderr and "Traceback" not in done.stderr
