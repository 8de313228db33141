"""The scripts and the notebook in ``examples`` run on small data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deit.images.processor import DeiTImageProcessor
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from tests.helpers import pattern, randomized, tiny_deit

EXAMPLES = Path(__file__).parents[2] / "examples"
CLASSES = ("circle red", "квадрат", "三角")
# Runs the code cells of a notebook in order, in one namespace, as a kernel does, with one epoch per run.
RUN_NOTEBOOK = """
import json
import re
import sys
from pathlib import Path

namespace = {"__name__": "__main__"}
for number, cell in enumerate(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        source = re.sub(r"EPOCHS = \\d+", "EPOCHS = 1", "".join(cell["source"]))
        exec(compile(source, f"cell {number}", "exec"), namespace)
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``my photos`` of three classes and a distilled ``model`` of the same classes."""
    root = tmp_path_factory.mktemp("examples")
    for number in range(45):
        path = root / "my photos" / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pattern(40 + number, 50, seed=number).save(path)
    network = randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(CLASSES)), std=0.1)
    network.save_pretrained(root / "model")
    DeiTImageProcessor.for_size(32, 32).save_pretrained(root / "model")
    return root


def run(work: Path, *arguments: str | Path, stdin: str = "") -> list[str]:
    """Runs Python with these arguments in the folder, and returns the lines that it printed."""
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=work,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "DEIT_CACHE": str(work / "cache"), "PYTHONUTF8": "1"},
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_own_photos(work: Path) -> None:
    image = Path("my photos") / CLASSES[0] / "0.png"
    lines = run(work, EXAMPLES / "own_photos.py", "my photos", image, "missing.png", "--tiny", "--out", "runs")
    assert [line.split(":")[0] for line in lines] == [
        *("Teacher", "Student, class", "Student, distillation", "Student, both", str(image), "missing.png")
    ]
    assert any(name in lines[-2] for name in CLASSES)


def test_finetune_with_teacher(work: Path) -> None:
    lines = run(
        *(work, EXAMPLES / "finetune_with_teacher.py", "my photos", "--model", "model", "--epochs", "1", "--batch-size", "16"),
        *("--teacher-arch", "test_resnet", "--teacher-image-size", "32", "--out", "finetuned"),
    )
    assert [line.split(":")[0] for line in lines] == ["class", "distillation", "both", "teacher", "Model"]
    assert (work / "finetuned" / "student" / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize("options", [(), ("--model", "model")])
def test_transformers_drop_in(work: Path, options: tuple[str, ...]) -> None:
    image = Path("my photos") / CLASSES[1] / "1.png"
    lines = run(work, EXAMPLES / "transformers_drop_in.py", image, *options, "--out", f"saved{len(options)}")
    assert set(lines[0].replace(",", "").split()[::2]) <= {"cat", "dog", "bird"} or CLASSES[1] in lines[0]
    assert lines[-1] == f"Saved to saved{len(options)}; the reloaded model predicts the same"


def test_export_and_predict(work: Path) -> None:
    script = (EXAMPLES / "export_and_predict.py", "model", "--to", "openvino", "--calibrate", "my photos")
    rows = [json.loads(line) for line in run(work, *script, "--images", "my photos")]
    assert len(rows) == 45
    assert all(row["predictions"][0]["label"] in CLASSES for row in rows)
    first, second = (json.loads(line) for line in run(work, *script, stdin=f"{rows[0]['image']}\nmissing.png\n"))
    assert first["predictions"][0]["label"] == rows[0]["predictions"][0]["label"]
    assert "missing.png" in second["error"]


def test_quickstart_notebook(work: Path) -> None:
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], {cell["cell_type"] for cell in notebook["cells"]}) == (4, {"code", "markdown"})
    lines = run(work, "-c", RUN_NOTEBOOK, EXAMPLES / "quickstart.ipynb")
    assert lines[0].startswith("Teacher: ")
    assert [line.split()[0] for line in lines if " top-1 " in line] == ["class", "distillation", "both"]
    assert sum(line.startswith("true ") for line in lines) == 8


def test_every_example_is_listed() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in files)
