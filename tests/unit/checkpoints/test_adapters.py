"""LoRA adapters of PEFT are merged exactly, and renamed between the models of transformers and ours."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deit.checkpoints.adapters import largest_change, largest_difference, open_adapter, rename_adapter
from deit.checkpoints.reading import open_checkpoint
from deit.errors import CheckpointError, DeiTError
from deit.models.auto import load_classifier
from deit.models.modeling import DeiTForImageClassificationWithTeacher, ViTForImageClassification, load_model
from tests.helpers import TINY, noise, randomized, tiny_deit, tiny_vit

WIDTH, MLP, RANK = TINY["hidden_size"], TINY["intermediate_size"], 2
NAMES = {  # layout -> name of the projections of the first layer
    "transformers-4": "vit.encoder.layer.0.attention.attention.{}",
    "transformers-5": "vit.layers.0.attention.{}_proj",
    "without prefix": "layers.0.attention.{}_proj",
}
WORDS = {"transformers-4": ("query", "key", "value"), "transformers-5": "qkv", "without prefix": "qkv"}
SETTINGS: dict[str, Any] = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["x"], "bias": "none"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a base")
    randomized(ViTForImageClassification(tiny_vit(num_labels=5)), std=0.2).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "image_mean": [0.1] * 3})
    )
    return path


def write(path: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file({f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({**SETTINGS, **settings}))
    return path


def factors(module: str, outputs: int = WIDTH, rank: int = RANK, seed: int = 0, inputs: int = WIDTH) -> dict[str, Tensor]:
    down, up = noise(rank, inputs, seed=seed), noise(outputs, rank, seed=seed + 1)
    return {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}


def projections(layout: str, used: str = "qv", rank: int = RANK) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for seed, (letter, word) in enumerate(zip("qkv", WORDS[layout], strict=True)):
        if letter in used:
            tensors |= factors(NAMES[layout].format(word), rank=rank, seed=10 * seed)
    return tensors


def product(tensors: dict[str, Tensor], module: str) -> Tensor:
    return tensors[f"{module}.lora_B.weight"].double() @ tensors[f"{module}.lora_A.weight"].double()


def qkv_change(base: Path, adapter: Path) -> Tensor:
    """Returns by how much an adapter changes the first layer's queries, keys and values (3, D, D)."""
    name = "layers.0.attention.qkv.weight"
    with_adapter = open_checkpoint(adapter, base=base).read([name])[name].double()
    return (with_adapter - open_checkpoint(base).read([name])[name].double()).view(3, WIDTH, WIDTH)


@pytest.mark.parametrize("layout", NAMES)
@pytest.mark.parametrize("used", ["qv", "k", "qkv"])
@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 4.0),
        ({"use_rslora": True}, 8 / math.sqrt(2)),
        ({"alpha_pattern": {"attention": 1, "v_proj": 1, "value": 1, "q_proj": 1, "query": 1, "k_proj": 1, "key": 1}}, 0.5),
    ],
)
def test_products_are_added_to_their_rows(
    tmp_path: Path, base: Path, layout: str, used: str, settings: dict[str, Any], scale: float
) -> None:
    tensors = projections(layout, used)
    change = qkv_change(base, write(tmp_path, tensors, **settings))
    for index, (letter, word) in enumerate(zip("qkv", WORDS[layout], strict=True)):
        expected = (
            scale * product(tensors, NAMES[layout].format(word)) if letter in used else torch.zeros(WIDTH, WIDTH).double()
        )
        torch.testing.assert_close(change[index], expected, rtol=1e-5, atol=1e-5)


def test_our_own_adapters_and_other_layers_are_merged(tmp_path: Path, base: Path) -> None:
    tensors = factors("vit.layers.1.attention.qkv", 3 * WIDTH) | factors("vit.layers.1.mlp.fc2", inputs=MLP)
    projection = {
        "vit.embeddings.patch_embeddings.projection.lora_A.weight": noise(RANK, 3, 8, 8),
        "vit.embeddings.patch_embeddings.projection.lora_B.weight": noise(WIDTH, RANK, 1, 1),
    }
    checkpoint, before = open_checkpoint(write(tmp_path, tensors | projection), base=base), open_checkpoint(base).read()
    after = checkpoint.read()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    patches = "embeddings.patch_embeddings.projection.weight"
    assert changed == {"layers.1.attention.qkv.weight", "layers.1.mlp.fc2.weight", patches}
    expected = before[patches] + 4 * (noise(WIDTH, RANK) @ noise(RANK, 3, 8, 8).flatten(1)).view(WIDTH, 3, 8, 8)
    torch.testing.assert_close(after[patches], expected)


def test_magnitudes_of_dora(tmp_path: Path, base: Path) -> None:
    name = NAMES["transformers-5"].format("v")
    tensors, magnitude = factors(name), noise(WIDTH).abs() + 0.5
    path = write(tmp_path, {**tensors, f"{name}.lora_magnitude_vector": magnitude}, use_dora=True)
    weight = open_checkpoint(base).read()["layers.0.attention.qkv.weight"].chunk(3)[2]
    changed = weight + 4 * product(tensors, name).float()
    expected = changed / changed.norm(dim=1, keepdim=True) * magnitude[:, None]
    torch.testing.assert_close(open_checkpoint(path, base=base).read()["layers.0.attention.qkv.weight"].chunk(3)[2], expected)
    with pytest.raises(CheckpointError, match="A DoRA adapter is not renamed: merge it"):
        rename_adapter(open_adapter(path), tmp_path / "renamed", "deit")


def test_trained_head_and_biases_replace_those_of_the_base(tmp_path: Path, base: Path) -> None:
    head = {"classifier.weight": noise(3, WIDTH), "classifier.bias": noise(3)}
    value_bias = {f"{NAMES['transformers-5'].format('v')}.base_layer.bias": noise(WIDTH)}
    other = {"classifier.original_module.bias": noise(5), "vit.layers.0.mlp.fc1.bias": noise(MLP)}
    path = write(tmp_path, projections("transformers-5") | head | value_bias | other, base_model_name_or_path=str(base))
    model = load_model(path)  # the base is the one that it names
    assert model.config.classes == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert torch.equal(model.canonical_state()["classifier.weight"], head["classifier.weight"])
    state, before = open_checkpoint(path).read(), open_checkpoint(base).read()
    assert torch.equal(state["layers.0.attention.qkv.bias"].chunk(3)[2], noise(WIDTH))
    assert torch.equal(state["layers.0.attention.qkv.bias"].chunk(3)[0], before["layers.0.attention.qkv.bias"].chunk(3)[0])
    assert torch.equal(state["layers.0.mlp.fc1.bias"], noise(MLP))
    assert model.load_report.notes == (f"The adapter is merged into {base}",)
    loaded = load_classifier(path)
    assert loaded.processor.image_mean == (0.1, 0.1, 0.1)  # of the base
    (tmp_path / "config.json").write_text(json.dumps(tiny_vit(num_labels=3).with_classes(["a", "b", "c"]).to_dict()))
    assert load_classifier(path).classes == ("a", "b", "c")


def test_one_head_on_a_distilled_model(tmp_path: Path) -> None:
    randomized(DeiTForImageClassificationWithTeacher(tiny_deit())).save_pretrained(tmp_path / "base")
    head = {"classifier.weight": noise(2, WIDTH), "classifier.bias": noise(2)}
    tensors = factors("deit.layers.0.attention.q_proj") | head
    checkpoint = open_checkpoint(write(tmp_path / "a", tensors), base=tmp_path / "base")
    assert checkpoint.architecture == "DeiTForImageClassification"


@pytest.mark.parametrize("layout", ["transformers-4", "transformers-5"])
@pytest.mark.parametrize("used", ["qv", "k", "qkv"])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"value": 2, "v_proj": 2}}])
def test_adapters_are_renamed_in_both_directions(
    tmp_path: Path, base: Path, layout: str, used: str, settings: dict[str, Any]
) -> None:
    path = write(tmp_path / "a", projections(layout, used) | {"classifier.bias": noise(5)}, **settings)
    adapter = open_adapter(path)
    rename_adapter(adapter, tmp_path / "ours", "deit")
    ours = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    module = "base_model.model.vit.layers.0.attention.qkv"
    assert set(ours) == {f"{module}.lora_A.weight", f"{module}.lora_B.weight", "base_model.model.classifier.bias"}
    assert ours[f"{module}.lora_A.weight"].shape == (RANK * len(used), WIDTH)
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["target_modules"] == [
        "vit.layers.0.attention.qkv"
    ]
    assert largest_difference(adapter, open_adapter(tmp_path / "ours")) <= 1e-6 * largest_change(adapter)
    torch.testing.assert_close(qkv_change(base, tmp_path / "ours"), qkv_change(base, path), rtol=1e-5, atol=1e-5)
    rename_adapter(open_adapter(tmp_path / "ours"), tmp_path / "back", layout)
    back = load_file(tmp_path / "back" / "adapter_model.safetensors")
    assert {name: tensor.shape for name, tensor in back.items()} == {
        name: tensor.shape for name, tensor in load_file(path / "adapter_model.safetensors").items()
    }
    assert largest_difference(adapter, open_adapter(tmp_path / "back")) <= 1e-6 * largest_change(adapter)


def test_biases_are_cut_and_combined(tmp_path: Path) -> None:
    biases = {f"{NAMES['transformers-5'].format(word)}.bias": noise(WIDTH, seed=index) for index, word in enumerate("qkv")}
    adapter = open_adapter(write(tmp_path / "a", projections("transformers-5", "k") | biases))
    rename_adapter(adapter, tmp_path / "b", "deit")
    ours = load_file(tmp_path / "b" / "adapter_model.safetensors")[
        "base_model.model.vit.layers.0.attention.qkv.base_layer.bias"
    ]
    assert torch.equal(ours, torch.cat([noise(WIDTH, seed=index) for index in range(3)]))
    rename_adapter(open_adapter(tmp_path / "b"), tmp_path / "c", "transformers-4")
    assert largest_difference(adapter, open_adapter(tmp_path / "c")) == 0
    biases.popitem()
    incomplete = open_adapter(write(tmp_path / "a", projections("transformers-5", "k") | biases))
    with pytest.raises(
        CheckpointError, match=r"only some of the biases that make up layers\.0\.attention\.qkv\.bias: merge it"
    ):
        rename_adapter(incomplete, tmp_path / "d", "deit")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"peft_type": "IA3"}, "is of type IA3: only LoRA"),
        ({"init_lora_weights": "pissa"}, "initialized with pissa, which changes the base model"),
        ({"lora_bias": True}, "has the setting lora_bias"),
        ({"fan_in_fan_out": True}, "has the setting fan_in_fan_out"),
        ({"something_new": 1}, "has the setting something_new"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "alpha_pattern of the adapter .* regular expression"),
        ({"lora_alpha": "8"}, "lora_alpha of the adapter"),
        ({"lora_alpha": float("inf")}, "lora_alpha of the adapter"),
        ({"use_dora": True}, "is incomplete for vit"),
    ],
)
def test_unsupported_settings_are_refused(tmp_path: Path, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        open_adapter(write(tmp_path, projections("transformers-5"), **settings))


V = NAMES["transformers-5"].format("v")


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({f"{V}.lora_A.weight": noise(RANK, WIDTH)}, "is incomplete for vit"),
        ({**factors(V), f"{V}.lora_B.weight": noise(WIDTH, RANK + 1)}, "The shapes of vit.* differ"),
        (factors("vit.layers.0.other"), "unknown tensor"),
        (factors("vit.layers.7.mlp.fc1", MLP), r"does not fit layers\.7\.mlp\.fc1\.weight of the base model"),
        (factors(V, outputs=8), "does not fit layers"),
        (factors(V, inputs=8), "does not fit layers"),
        ({"classifier.weight": noise(5, WIDTH)}, "changes no layer"),
        (factors(V) | {"vit.layernorm.bias": noise(3)}, r"does not fit layernorm\.bias"),
        (factors(V) | {"classifier.weight": noise(3, 8)}, r"classifier\.\w+ in .* has shape"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, base: Path, tensors: dict[str, Tensor], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        open_checkpoint(write(tmp_path, tensors), base=base)


def test_base_model_must_be_known(tmp_path: Path, base: Path) -> None:
    path = write(tmp_path / "a", projections("transformers-5"))
    with pytest.raises(CheckpointError, match=r"does not name the model that it was trained on: .*--base MODEL"):
        open_checkpoint(path)
    for base_name, problem in ((path, "is an adapter, too"), ("not/there", "not in the cache"), (tmp_path / "x", "not exist")):
        with pytest.raises(CheckpointError, match=problem):
            open_checkpoint(path, base=base_name)
    with pytest.raises(CheckpointError, match="only an adapter has a base model"):
        open_checkpoint(base, base=base)
    with pytest.raises(CheckpointError, match="no moving average"):
        open_checkpoint(path, base=base, ema=True)


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (["qkv"], {}),
        ("all-linear", {"modules_to_save": ["classifier"]}),
        (["qkv", "fc1"], {"use_dora": True}),
        (["qkv"], {"use_rslora": True, "bias": "all"}),
    ],
)
def test_adapters_that_peft_trains_on_our_models(tmp_path: Path, base: Path, targets: Any, options: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(load_model(base), peft.LoraConfig(r=RANK, lora_alpha=8, target_modules=targets, **options))
    images = noise(2, 3, 32, 32)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)
    for _ in range(3):
        model(pixel_values=images, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        expected = model.eval()(pixel_values=images).logits
        reloaded = peft.PeftModel.from_pretrained(load_model(base), tmp_path / "a").eval()
        torch.testing.assert_close(reloaded(pixel_values=images).logits, expected)
        checkpoint = open_checkpoint(tmp_path / "a", base=base)
        merged = ViTForImageClassification.from_checkpoint(checkpoint, {})
        torch.testing.assert_close(merged(images).logits, expected, rtol=1e-4, atol=1e-5)
        merged = reloaded.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        torch.testing.assert_close(load_model(tmp_path / "merged")(images).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT reads it
@pytest.mark.parametrize("used", [["q_proj", "v_proj"], ["k_proj", "o_proj"], ["q_proj", "k_proj", "v_proj", "fc1"]])
def test_adapters_of_peft_work_on_transformers_models_and_ours(tmp_path: Path, base: Path, used: list[str]) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    images = noise(2, 3, 32, 32)
    config = peft.LoraConfig(r=RANK, lora_alpha=8, target_modules=used, modules_to_save=["classifier"])
    theirs = peft.get_peft_model(transformers.ViTForImageClassification.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) / 5
    theirs.save_pretrained(tmp_path / "theirs")
    rename_adapter(open_adapter(tmp_path / "theirs"), tmp_path / "ours", "deit")
    rename_adapter(open_adapter(tmp_path / "ours"), tmp_path / "back", "transformers-5")
    with torch.no_grad():
        expected = theirs.eval()(pixel_values=images).logits
        merged = load_model(tmp_path / "theirs")  # its base_model_name_or_path is the base
        torch.testing.assert_close(merged(images).logits, expected, rtol=1e-4, atol=1e-5)
        ours = peft.PeftModel.from_pretrained(load_model(base), tmp_path / "ours").eval()
        torch.testing.assert_close(ours(pixel_values=images).logits, expected, rtol=1e-4, atol=1e-5)
        model = transformers.ViTForImageClassification.from_pretrained(base)
        back = peft.PeftModel.from_pretrained(model, tmp_path / "back").eval()
        torch.testing.assert_close(back(pixel_values=images).logits, expected, rtol=1e-4, atol=1e-5)


def test_damaged_adapters_are_user_errors(tmp_path: Path, base: Path) -> None:
    path = write(tmp_path, projections("transformers-5"))
    weights, settings = (path / "adapter_model.safetensors").read_bytes(), (path / "adapter_config.json").read_bytes()
    for content in (b"", weights[:100], settings):
        (path / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(DeiTError, match=r"adapter_model\.safetensors"):
            open_checkpoint(path, base=base)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(DeiTError, match=r"adapter_model\.bin"):
        open_checkpoint(path, base=base)
    (path / "adapter_config.json").write_bytes(settings[:20])
    with pytest.raises(DeiTError, match=r"adapter_config\.json"):
        open_checkpoint(path, base=base)
