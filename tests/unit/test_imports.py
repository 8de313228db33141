"""Import structure: packages import in one direction, the public API, and what ``import deit`` loads."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import deit

SOURCE = Path(deit.__file__).parent

# Packages and top-level modules of deit, from the bottom up. Each may import only the ones before it.
ORDER = [
    "errors",
    "rng",
    "system",
    "page",
    "variants",
    "hub",
    "images",
    "data",
    "config",
    "checkpoints",
    "models",
    "inference",
    "evaluation",
    "recipes",
    "distillation",
    "training",
    "export",
    "serving",
    "cli",
    "__main__",
]

PUBLIC = [
    "DeiTConfig",
    "DeiTFeatureExtractor",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTForMaskedImageModeling",
    "DeiTImageProcessor",
    "DeiTImageProcessorFast",
    "DeiTModel",
    "DeiTPreTrainedModel",
    "Predictor",
    "Recipe",
    "Teacher",
    "ViTConfig",
    "ViTFeatureExtractor",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
    "ViTImageProcessor",
    "ViTImageProcessorFast",
    "ViTModel",
    "ViTPreTrainedModel",
    "evaluate",
    "explain",
    "export_model",
    "export_web",
    "load_model",
    "pretrain",
    "replay",
    "train",
    "tune",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
MODULES = {name: path for name, path in FILES.items() if path.name != "__init__.py"}
PACKAGES = {name: path for name, path in FILES.items() if path.name == "__init__.py"}


def imports(path: Path) -> Iterator[str]:
    """Yields each module of deit that a file imports, also within functions, by its name below ``deit``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("deit.") for alias in node.names if alias.name.split(".")[0] == "deit")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            if node.module is None or node.module.split(".")[0] != "deit":
                continue
            base = node.module.removeprefix("deit").removeprefix(".")
            for alias in node.names:
                submodule = f"{base}.{alias.name}".removeprefix(".")
                yield submodule if submodule in FILES else base


def package_of(name: str) -> str:
    """Returns the package of a module, such as ``models`` for ``models.modeling``; a top-level module is its own package."""
    return name.split(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_earlier_packages(name: str) -> None:
    package = package_of(name)
    assert package in ORDER, f"add {package} to ORDER in {__file__}"
    for imported in imports(MODULES[name]):
        assert package_of(imported) in ORDER, f"{name} imports {imported or 'deit'}: import the module that defines the name"
        assert ORDER.index(package_of(imported)) <= ORDER.index(package), f"{name} imports {imported} from a later package"


def test_order_lists_every_package_once() -> None:
    assert sorted(ORDER) == sorted({package_of(name) for name in FILES if name})


def test_modules_import_each_other_without_a_cycle() -> None:
    graph = {name: {imported for imported in imports(path) if imported in MODULES} for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_commands_import_only_shared_modules_from_cli() -> None:
    shared = {"cli.common", "cli.options", "cli.output"}
    for name, path in MODULES.items():
        if package_of(name) == "cli" and name != "cli.main":
            assert {imported for imported in imports(path) if package_of(imported) == "cli"} <= shared, name


@pytest.mark.parametrize("name", [name for name in PACKAGES if name])
def test_package_init_imports_nothing(name: str) -> None:
    tree = ast.parse(PACKAGES[name].read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_imports_finds_every_form(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    lines = ["import torch, deit.errors", "from deit.data import sampler, no_module", "def f():", "    from deit import config"]
    path.write_text("\n".join([*lines, "    from deit.system.files import read_json"]))
    assert sorted(imports(path)) == ["config", "data", "data.sampler", "errors", "system.files"]


def test_public_api() -> None:
    assert sorted(deit.__all__) == PUBLIC == sorted(deit._MODULES)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_importable(name: str) -> None:
    assert getattr(deit, name).__module__.startswith("deit.")
    assert getattr(deit, name) is getattr(importlib.import_module(deit._MODULES[name]), name)


def test_no_public_name_is_shadowed_by_a_package() -> None:
    """Importing a package binds its name in ``deit``, so that a function of that name would vanish."""
    assert set(PUBLIC).isdisjoint(ORDER)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'deit' has no attribute 'Trainer'"):
        _ = deit.Trainer


def loaded_after(code: str) -> set[str]:
    """Returns the top-level modules that a new interpreter has loaded after running ``code``."""
    program = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {"torch", "torchvision", "timm", "PIL", "numpy", "pydantic", "sklearn", "matplotlib", "rich", "typer", "transformers"}


def test_import_deit_loads_nothing_heavy() -> None:
    assert loaded_after("import deit").isdisjoint(HEAVY)


def test_configuration_and_image_processor_do_not_load_torch() -> None:
    assert "torch" not in loaded_after("from deit import DeiTConfig, DeiTImageProcessor; DeiTConfig(); DeiTImageProcessor()")


def test_core_loads_no_optional_library() -> None:
    optional = ("cli", "training", "export", "serving")
    core = [name for name in MODULES if package_of(name) not in optional and name != "evaluation.report"]
    loaded = loaded_after("\n".join(f"import deit.{name}" for name in core))
    assert "torch" in loaded
    assert loaded.isdisjoint({"transformers", "matplotlib", "jinja2", "fastapi", "onnx", "openvino", "datasets"})
