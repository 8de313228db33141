"""From a model directory to answers of an exported bundle, with the real program."""

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
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a space in its name, a model and labeled photos in it."""
    root = tmp_path_factory.mktemp("out here") / "a place"
    network = randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(CLASSES)), std=0.1)
    network.save_pretrained(root / "a model")
    DeiTImageProcessor.for_size(32, 32).save_pretrained(root / "a model")
    for number in range(48):
        path = root / "photos" / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pattern(50 + number, 60, seed=number).save(path)
    return root


@pytest.fixture(scope="module")
def bundle(deit: Deit, place: Path) -> Path:
    done = deit("export", "a model", "--to", "openvino", "--precision", "int8", "--calibrate", "photos", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "same answer" in done.stdout and "openvino int8" in done.stdout
    assert done.stdout.splitlines()[-1] == "Bundle: exports/a model-openvino-int8"
    return place / "exports" / "a model-openvino-int8"


def test_a_bundle_answers_and_is_evaluated_as_the_model(deit: Deit, place: Path, bundle: Path) -> None:
    answers = {}
    for name in ("a model", bundle):
        done = deit("predict", name, "photos/кошка", "--json", "--top", "1", cwd=place)
        assert done.returncode == 0, done.stderr
        answers[name] = [row["predictions"][0]["label"] for row in json.loads(done.stdout)]
    assert len(answers[bundle]) == 16
    assert sum(one == other for one, other in zip(answers["a model"], answers[bundle], strict=True)) >= 15
    figures = {}
    for name in ("a model", bundle):
        done = deit("evaluate", name, "photos", "--json", "--device", "cpu", "--part", "all", cwd=place)
        assert done.returncode == 0, done.stderr
        figures[name] = json.loads(done.stdout)["heads"]
    for head, values in figures["a model"].items():
        assert figures[bundle][head]["top1"] == pytest.approx(values["top1"], abs=0.05)


def test_a_bad_image_is_one_error_in_its_place(deit: Deit, place: Path, bundle: Path) -> None:
    done = deit("predict", bundle, "-", "--json", stdin=b"rubbish", cwd=place)
    assert done.returncode == 1
    assert "not an image" in json.loads(done.stdout)[0]["error"]


def test_answers_of_a_bundle_need_no_torch(place: Path, bundle: Path) -> None:
    image = next((place / "photos" / "кошка").iterdir())
    code = "import sys\nfrom deit.cli.main import run\ntry:\n  run()\nexcept SystemExit as error:\n"
    code += "  assert not error.code, error.code\nassert not {'torch', 'timm', 'sklearn', 'nncf'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", str(bundle), str(image)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert any(name in done.stdout for name in CLASSES)


def test_info_names_the_runtime_and_why(deit: Deit, place: Path, bundle: Path) -> None:
    done = deit("info", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout and "a model that was not exported" in done.stdout
    done = deit("info", bundle, "--json", cwd=place)
    [choice] = json.loads(done.stdout)["choices"]
    assert (choice["runtime"], choice["reason"]) == ("openvino", "the only one here that runs it")


def test_a_bundle_is_measured(deit: Deit, place: Path, bundle: Path) -> None:
    done = deit("benchmark", bundle, "--seconds", "0.1", "--images", "photos", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["machine"]["cores"] > 0
    assert [row["runtime"] for row in content["runtimes"]] == ["openvino"]
    done = deit("benchmark", bundle, "--seconds", "0.1", cwd=place)
    assert "ms an image (p50, p99)" in done.stdout


def test_a_damaged_bundle_is_refused(deit: Deit, place: Path, bundle: Path) -> None:
    damaged = place / "damaged"
    damaged.mkdir()
    for file in bundle.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    with (damaged / "model.bin").open("r+b") as weights:
        weights.write(b"\xff" * 8)
    done = deit("predict", damaged, "photos", cwd=place)
    assert done.returncode == 2
    assert "is not the file that was exported" in done.stderr and "Traceback" not in done.stderr
