"""Largest difference of our logits from those of the library that saved a checkpoint, for every format that can be read.

    python -m benchmarks.compatibility [--sizes tiny base] [--write]

For each published shape (tiny and base, plain and distilled, 224 and 384 pixels), the installed transformers and timm create a
model with random weights and save it in each format. This package loads it, and both models run on the same two images of noise
in float32. A figure is the largest absolute difference of a logit.

``--write`` writes the table to ``docs/compatibility.md``. The last line printed is the result as JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor

from deit.config import variant_config
from deit.models.modeling import load_model, new_classifier
from deit.recipes.schema import Ema
from deit.system.devices import describe
from deit.system.progress import print_status
from deit.training.optimization import ModelEma
from deit.training.state import TrainState, take_snapshot, write_checkpoint

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
SIZES = ("tiny", "base")
PIXELS = (224, 384)
BATCH = 2
START, END = "<!-- table -->", "<!-- end of table -->"

# Format -> function that saves a network in it and returns the path to load.
Writers = dict[str, Callable[[Any, Path], Path]]


def images(pixels: int) -> Tensor:
    """Returns images of noise, the same for every model."""
    return torch.randn(BATCH, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def randomized(network: Any) -> Any:
    """Draws all weights at random, so that none keeps a default that would hide a failure to load it."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.03
        norm = "norm" in name and name.endswith("weight")
        parameter.copy_(noise + 1 if norm else noise)
    return network.eval()


def _transformers_4(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder)
    return folder


def _transformers_5(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder, save_original_format=False)
    return folder


def _sharded(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder, max_shard_size="10MB")
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


def _binary(network: Any, folder: Path) -> Path:
    from safetensors.torch import load_file

    network.save_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def _timm_hub(network: Any, folder: Path) -> Path:
    save_for_hf(network, str(folder))
    return folder


def _timm_file(network: Any, folder: Path) -> Path:
    folder.mkdir()
    save_file(network.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def _timm_pickle(network: Any, folder: Path) -> Path:
    folder.mkdir()
    torch.save(network.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def _authors(network: Any, folder: Path) -> Path:
    folder.mkdir()
    options = argparse.Namespace(model="deit", lr=5e-4, output_dir="")
    torch.save({"model": network.state_dict(), "epoch": 299, "args": options}, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def _run_weights(network: Any, folder: Path) -> Path:
    return _run_checkpoint(network, _different(network), folder)


def _run_ema(network: Any, folder: Path) -> Path:
    return _run_checkpoint(_different(network), network, folder)


def _different(network: Any) -> Any:
    """Returns a copy with a changed weight, so that loading the wrong one of two sets of weights shows in the logits."""
    changed = copy.deepcopy(network)
    torch.nn.init.normal_(changed.get_parameter(f"{network.base_model_prefix}.layernorm.weight"))
    return changed


def _run_checkpoint(model: Any, averaged: Any, folder: Path) -> Path:
    optimizer = torch.optim.SGD(model.parameters())
    return write_checkpoint(folder, take_snapshot(TrainState(), model, ModelEma(averaged, Ema(decay=0.5)), optimizer))


TRANSFORMERS: Writers = {
    "transformers 4 names": _transformers_4,
    "transformers 5 names": _transformers_5,
    "shards with an index": _sharded,
    "pytorch_model.bin": _binary,
}
TIMM: Writers = {
    "timm's directory for the hub": _timm_hub,
    "timm state dict, safetensors": _timm_file,
    "timm state dict, torch.save": _timm_pickle,
    "the authors' .pth": _authors,
}


def cases(size: str, pixels: int, distilled: bool) -> Iterator[tuple[Any, Writers]]:
    """Yields the models of each library in one published shape, and the formats that each is saved in."""
    name = f"deit-{size}-{'distilled-' if distilled else ''}patch16-224"
    shape = variant_config(name, image_size=pixels)
    fields: dict[str, Any] = {key: getattr(shape, key) for key in ("hidden_size", "num_attention_heads", "intermediate_size")}
    fields |= {"image_size": pixels, "num_labels": 1000}
    if distilled:
        config = transformers.DeiTConfig(**fields)
        yield transformers.DeiTForImageClassification(config), {"transformers 4 names": _transformers_4}
        yield transformers.DeiTForImageClassificationWithTeacher(config), TRANSFORMERS
    else:
        plain = transformers.ViTConfig(**fields)
        yield transformers.ViTForImageClassification(plain), TRANSFORMERS
    yield timm.create_model(name.replace("-", "_"), img_size=pixels), TIMM
    yield new_classifier(shape), {"a run's checkpoint": _run_weights, "a run's checkpoint, EMA": _run_ema}


@torch.inference_mode()
def difference(network: Any, write: Callable[[Any, Path], Path], pixels: int, ema: bool) -> tuple[str, float]:
    """Returns the name of our class, and the largest difference of its logits from the network's own."""
    batch = images(pixels)
    output = network(batch)
    expected = output if isinstance(output, Tensor) else output.logits
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(write(network, Path(folder) / "saved"), ema=ema)
    logits = model(batch).logits
    assert logits.std() > 0.01
    return type(model).__name__, (logits - expected).abs().max().item()


@torch.inference_mode()
def layer_differences(size: str, distilled: bool) -> dict[str, float]:
    """Returns the largest differences of hidden states and attentions in any layer from transformers' eager attention."""
    networks = [network for network, _ in cases(size, 224, distilled) if isinstance(network, transformers.PreTrainedModel)]
    network: Any = networks[-1]
    randomized(network).set_attn_implementation("eager")
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(_transformers_4(network, Path(folder) / "saved"))
    flags = {"output_attentions": True, "output_hidden_states": True}
    ours, theirs = model(images(224), **flags), network(images(224), **flags)
    return {
        name: max((mine - other).abs().max().item() for mine, other in zip(ours[name], theirs[name], strict=True))
        for name in ("hidden_states", "attentions")
    }


def measure(sizes: tuple[str, ...]) -> dict[str, Any]:
    """Returns all differences of the logits, by format, class and shape, and those of the layers."""
    logits: dict[str, dict[str, dict[str, float]]] = {}
    for size in sizes:
        for pixels in PIXELS:
            for distilled in (False, True):
                for network, writers in cases(size, pixels, distilled):
                    randomized(network)
                    for name, write in writers.items():
                        model_class, largest = difference(network, write, pixels, ema=name.endswith("EMA"))
                        logits.setdefault(name, {}).setdefault(model_class, {})[f"{size} {pixels}"] = largest
                        print_status(f"{size} {pixels}: {name} -> {model_class}: {largest:.1e}")
    layers = {
        f"{size}{' distilled' if distilled else ''}": layer_differences(size, distilled)
        for size in sizes
        for distilled in (False, True)
    }
    return {
        "date": date.today().isoformat(),
        "hardware": describe(torch.device("cpu")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "timm": timm.__version__,
        "logits": logits,
        "layers": layers,
    }


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    shapes = sorted({shape for classes in result["logits"].values() for row in classes.values() for shape in row}, key=_order)
    lines = [
        f"{result['date']}, {result['hardware']}, torch {result['torch']}, transformers {result['transformers']}, "
        f"timm {result['timm']}; float32, two images of noise, random weights.",
        "",
        f"| source | our class | {' | '.join(shapes)} |",
        f"|---|---|{'---|' * len(shapes)}",
    ]
    for name, classes in result["logits"].items():
        for model_class, row in classes.items():
            cells = [_format(row[shape]) if shape in row else "" for shape in shapes]
            lines.append(f"| {name} | `{model_class}` | {' | '.join(cells)} |")
    lines += ["", "| at 224, every layer, explicit attention | hidden states | attentions |", "|---|---|---|"]
    for name, row in result["layers"].items():
        lines.append(f"| {name} | {_format(row['hidden_states'])} | {_format(row['attentions'])} |")
    return "\n".join(lines)


def _order(shape: str) -> tuple[int, str]:
    return SIZES.index(shape.split()[0]), shape


def _format(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--write", action="store_true", help="write the table to docs/compatibility.md")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    result = measure(tuple(options.sizes))
    text = table(result)
    print(text)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        block = f"{START}\n{text}\n{END}"
        PAGE.write_text(re.sub(f"{START}.*{END}", lambda _: block, page, flags=re.DOTALL), encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
