"""One direction: a module imports only from what stands before it. And the public names, and what `import deit` costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import deit

SOURCE = Path(deit.__file__).parent

# The house from the ground up. A module may import those before it, and none after; one that is missing here is an error.
ORDER = [
    "errors",
    "hardware",
    "memory",
    "draws",
    "files",
    "interrupts",
    "progress",
    "threads",
    "devices",
    "images",
    "variants",
    "checkpoints.hub",
    "config",
    "position",
    "checkpoints.layouts",
    "checkpoints.shapes",
    "checkpoints.tensors",
    "checkpoints.timm_config",
    "checkpoints.weights",
    "checkpoints.reading",
    "checkpoints.fitting",
    "checkpoints.writing",
    "checkpoints.facts",
    "checkpoints.card",
    "checkpoints.publishing",
    "distillation.losses",
    "outputs",
    "pretrained",
    "cpu_attention",
    "modeling",
    "resampling",
    "image_settings",
    "image_arrays",
    "batch_feature",
    "image_processor",
    "data.class_names",
    "data.sources",
    "data.mirror",
    "data.checking",
    "data.download",
    "data.mat_files",
    "data.folders",
    "data.manifest",
    "data.cifar",
    "data.fine_grained",
    "data.inaturalist",
    "data.imagenet",
    "data.named",
    "data.hub_datasets",
    "data.opening",
    "data.order",
    "data.mixing",
    "data.crops",
    "data.randaugment",
    "data.augment",
    "distillation.answers",
    "data.loader",
    "distillation.families",
    "distillation.plain",
    "distillation.hints",
    "distillation.classifiers",
    "conversion",
    "distillation.teacher",
    "inference.libraries",
    "inference.bundle",
    "inference.runtimes",
    "inference.graph",
    "inference.torch_runtime",
    "inference.loading",
    "inference.choice",
    "inference.decoding",
    "inference.predictor",
    "inference.bundle_classifier",
    "evaluation",
    "report",
    "training.recipe",
    "training.recipes",
    "training.scaling",
    "training.sizing",
    "training.settings",
    "training.masking",
    "training.samples",
    "distillation.stored",
    "training.optimization",
    "training.state",
    "training.step",
    "training.first_weights",
    "training.start",
    "training.loop",
    "training.account",
    "training.run",
    "distillation.store",
    "inference.parity",
    "inference.real_images",
    "inference.formats",
    "inference.quantization",
    "inference.export",
    "inference.benchmark",
    "serving",
    "cli.common",
    "cli.benchmark",
    "cli.convert",
    "cli.data",
    "cli.evaluate",
    "cli.export",
    "cli.info",
    "cli.model",
    "cli.predict",
    "cli.pretrain",
    "cli.quickstart",
    "cli.recipe",
    "cli.teacher",
    "cli.train",
    "cli.main",
]

# The verbs stand side by side: they know what is in common and not each other. `main` gathers them.
SIDE_BY_SIDE = "cli"
GATHERER = "cli.main"

PUBLIC = [
    "DeiTConfig",
    "DeiTFeatureExtractor",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTForMaskedImageModeling",
    "DeiTImageProcessor",
    "DeiTModel",
    "Predictor",
    "Recipe",
    "Teacher",
    "ViTConfig",
    "ViTForImageClassification",
    "ViTModel",
    "evaluate",
    "export",
    "load_model",
    "pretrain",
    "train",
]


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}
MODULES = {name: path for name, path in FILES.items() if path.name != "__init__.py"}
PACKAGES = {name: path for name, path in FILES.items() if path.name == "__init__.py"}


def imports(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports, within functions too, by its name below ``deit``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("deit.") for alias in node.names if alias.name.split(".")[0] == "deit")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            if node.module is None or node.module.split(".")[0] != "deit":
                continue
            base = node.module.removeprefix("deit").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                yield inner if inner in FILES else base


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_those_before_it(name: str) -> None:
    parent = name.split(".")[0]
    place = next((entry for entry in (name, parent) if entry in ORDER), None)
    assert place is not None, f"add {name} to the order in {__file__}"
    for other in imports(MODULES[name]):
        if place == parent and other.split(".")[0] == parent:
            continue  # an entry such as `serving` stands for a whole package
        entry = other if other in ORDER else other.split(".")[0]
        assert entry in ORDER, f"{name} imports {other or 'deit'} itself: import the module that has what it needs"
        assert ORDER.index(entry) < ORDER.index(place), f"{name} imports {other}, which stands after it"
        if parent == SIDE_BY_SIDE and name != GATHERER:
            assert not other.startswith(f"{SIDE_BY_SIDE}.") or other == f"{SIDE_BY_SIDE}.common", f"{name} imports {other}"


def test_the_order_lists_no_module_twice_and_none_that_is_gone() -> None:
    assert len(set(ORDER)) == len(ORDER)
    assert [entry for entry in ORDER if entry not in FILES] == []


@pytest.mark.parametrize("name", [name for name in PACKAGES if name])
def test_a_package_imports_nothing_by_itself(name: str) -> None:
    tree = ast.parse(PACKAGES[name].read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_the_reader_of_imports_sees_every_form(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    lines = ["import torch, deit.errors", "from deit.data import order, no_module", "def f():", "    from deit import config"]
    path.write_text("\n".join([*lines, "    from deit.files import read_json"]))
    assert sorted(imports(path)) == ["config", "data", "data.order", "errors", "files"]


def test_the_public_names_are_these() -> None:
    assert sorted(deit.__all__) == PUBLIC == sorted(deit._HOMES)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(deit, name).__module__.startswith("deit.")
    assert getattr(deit, name) is getattr(importlib.import_module(deit._HOMES[name]), name)


def test_any_other_name_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match="module 'deit' has no attribute 'Trainer'"):
        _ = deit.Trainer


def loaded_after(code: str) -> set[str]:
    program = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {"torch", "torchvision", "timm", "PIL", "numpy", "pydantic", "sklearn", "matplotlib", "rich", "typer", "transformers"}


def test_the_package_alone_loads_nothing_heavy() -> None:
    assert loaded_after("import deit").isdisjoint(HEAVY)


def test_configurations_and_images_load_no_torch() -> None:
    assert "torch" not in loaded_after("from deit import DeiTConfig, DeiTImageProcessor; DeiTConfig(); DeiTImageProcessor()")


def test_the_optional_libraries_are_not_needed_for_the_core() -> None:
    core = [name for name in MODULES if not name.startswith(("cli", "report", "serving", "training.run"))]
    loaded = loaded_after("\n".join(f"import deit.{name}" for name in core))
    assert "torch" in loaded
    assert loaded.isdisjoint({"transformers", "matplotlib", "jinja2", "fastapi", "onnx", "openvino", "datasets"})
