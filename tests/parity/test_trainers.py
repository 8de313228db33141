"""The models in the training loops of transformers and Accelerate, and under FSDP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from deit import DeiTImageProcessor, Predictor
from deit.models.modeling import (
    Block,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    ViTForImageClassification,
    load_model,
)
from tests.helpers import TINY, backward, noise, randomized, tiny_deit, tiny_vit


def examples(**columns: Any) -> list[dict[str, Any]]:
    return [{"pixel_values": noise(3, 32, 32, seed=index), "labels": index % 5, **columns} for index in range(8)]


def training_arguments(directory: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(directory),
        max_steps=2,
        per_device_eval_batch_size=3,
        report_to=[],
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        learning_rate=1e-3,
        **{"per_device_train_batch_size": 4, **options},
    )


def changed_tensors(before: dict[str, torch.Tensor], model: torch.nn.Module) -> list[str]:
    return [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: ViTForImageClassification(tiny_vit()), examples()),
        (lambda: DeiTForImageClassification(tiny_deit()), examples()),
        (lambda: DeiTForImageClassificationWithTeacher(tiny_deit()), examples()),
        (lambda: DeiTForImageClassificationWithTeacher(tiny_deit()), examples(teacher_logits=noise(5))),
    ],
    ids=["ViT", "one head", "two heads", "two heads and a teacher"],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_of_transformers_trains_two_steps(tmp_path: Path, make: Any, data: Any, checkpointing: bool) -> None:
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = training_arguments(
        tmp_path,
        activation_checkpointing=checkpointing,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
    )
    trainer = Trainer(model=model, args=settings, train_dataset=data, eval_dataset=data[:5])
    assert trainer.train().global_step == 2
    assert changed_tensors(before, model) == list(before)
    assert np.asarray(trainer.predict(data[:5]).predictions).shape == (5, 5)  # of the two-head class, too


CLASSES = {"id2label": {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "eel"}}
IMAGES = noise(1, 3, 32, 32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ViTForImageClassification(tiny_vit(**CLASSES)),
        lambda: DeiTForImageClassificationWithTeacher(tiny_deit(layer_norm_eps=1e-6, **CLASSES)),
        lambda: DeiTForImageClassification(tiny_deit(num_attention_heads=2, **CLASSES)),
        lambda: ViTForImageClassification(tiny_vit(layer_scale=0.1, **CLASSES)),
    ],
    ids=["ViT", "two heads", "one head", "layer scale"],
)
def test_what_trainer_saves_is_a_model_everywhere(tmp_path: Path, make: Any) -> None:
    model = make()
    settings = training_arguments(tmp_path, save_steps=1, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True)
    trainer = Trainer(model=model, args=settings, train_dataset=examples(), eval_dataset=examples()[:3])
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    expected = model.eval()(IMAGES).logits
    for directory in (tmp_path / "saved", tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"):
        ours = load_model(directory)
        theirs = getattr(transformers, type(model).__name__).from_pretrained(directory)
        assert type(ours) is type(model)
        assert ours.config.classes == ("ant", "bee", "cat", "dog", "eel")
        assert theirs.config.id2label == CLASSES["id2label"]
        torch.testing.assert_close(theirs.eval()(IMAGES).logits, ours(IMAGES).logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(load_model(tmp_path / "saved")(IMAGES).logits, expected, rtol=1e-4, atol=1e-5)

    resumed = make()
    trainer = Trainer(model=resumed, args=settings, train_dataset=examples(), eval_dataset=examples()[:3])
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(
        resumed.eval()(IMAGES).logits, load_model(tmp_path / "checkpoint-2")(IMAGES).logits, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "model_class", [ViTForImageClassification, DeiTForImageClassification, DeiTForImageClassificationWithTeacher]
)
def test_calls_of_the_image_classification_example_of_transformers(
    tmp_path: Path, photo_folder: Path, model_class: Any
) -> None:
    """The calls of ``run_image_classification.py``, old and new, on a folder of images."""
    names = sorted(folder.name for folder in photo_folder.iterdir())
    files = [(file, names.index(file.relative_to(photo_folder).parts[0])) for file in sorted(photo_folder.rglob("*.jp*g"))]
    pretrained, output = tmp_path / "pretrained", tmp_path / "output"
    randomized(model_class(model_class.config_class(**TINY, num_labels=4))).save_pretrained(pretrained)
    DeiTImageProcessor.for_size(32, 32).save_pretrained(pretrained)

    hub = {"cache_dir": None, "revision": "main", "token": None, "trust_remote_code": False}
    label2id = {name: str(index) for index, name in enumerate(names)}
    id2label = {str(index): name for index, name in enumerate(names)}
    classes = {"num_labels": len(names), "label2id": label2id, "id2label": id2label}
    config = model_class.config_class.from_pretrained(pretrained, **classes, finetuning_task="image-classification", **hub)
    model = model_class.from_pretrained(pretrained, from_tf=False, config=config, ignore_mismatched_sizes=True, **hub)
    processor = DeiTImageProcessor.from_pretrained(pretrained, use_fast=True, **hub)
    height = processor.size["shortest_edge"] if "shortest_edge" in processor.size else processor.size["height"]
    normalize = Normalize(processor.image_mean, processor.image_std)
    transform = Compose([Resize(height), CenterCrop(32), ToTensor(), normalize])
    data = [{"pixel_values": transform(Image.open(file).convert("RGB")), "labels": label} for file, label in files]

    def accuracy(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}

    trainer = Trainer(
        model=model,
        args=training_arguments(output, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True),
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=accuracy,
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    trainer.create_model_card(finetuned_from=str(pretrained), tasks="image-classification", tags=["vision"])
    assert 0 <= metrics["eval_accuracy"] <= 1
    classify = transformers.pipeline("image-classification", model=str(output), device="cpu")
    assert {prediction["label"] for prediction in classify(str(files[0][0]), top_k=5)} == set(names)
    assert Predictor.from_pretrained(output)(files[0][0]).labels[0] in names
    resumed = get_last_checkpoint(str(output))  # type: ignore[no-untyped-call]
    assert trainer.train(resume_from_checkpoint=resumed).global_step == 2


def test_trainer_saves_a_compiled_model_and_the_state_dict_that_it_gathered(tmp_path: Path) -> None:
    model = ViTForImageClassification(tiny_vit(**CLASSES))
    compiled: Any = torch.compile(model, backend="eager")
    trainer = Trainer(model=compiled, args=training_arguments(tmp_path), train_dataset=examples())
    trainer.save_model(str(tmp_path / "compiled"))
    gathered = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    trainer._save(str(tmp_path / "gathered"), state_dict=gathered)
    for name in ("compiled", "gathered"):
        assert torch.equal(load_model(tmp_path / name)(IMAGES).logits, model.eval()(IMAGES).logits)


def test_trainer_saves_models_of_transformers_as_before(tmp_path: Path) -> None:
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**TINY))
    for model, files in ((theirs, {"config.json", "model.safetensors"}), (torch.nn.Linear(2, 2), {"model.safetensors"})):
        trainer = Trainer(model=ViTForImageClassification(tiny_vit()), args=training_arguments(tmp_path))
        trainer.model = model
        trainer.save_model(str(tmp_path / type(model).__name__))
        assert {path.name for path in (tmp_path / type(model).__name__).iterdir()} == {*files, "training_args.bin"}


def test_trainer_of_transformers_averages_the_loss_over_accumulated_batches(tmp_path: Path) -> None:
    """Keyword arguments of ``forward`` must not make Trainer expect a loss that is divided by ``num_items_in_batch``."""
    losses = []
    for batch_size, steps in ((4, 1), (2, 2)):
        torch.manual_seed(0)
        model = ViTForImageClassification(tiny_vit())
        options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps}
        settings = training_arguments(tmp_path / str(steps), logging_steps=1, **options)
        trainer = Trainer(model=model, args=settings, train_dataset=examples())
        assert not trainer.model_accepts_loss_kwargs
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_accelerate_trains_two_steps() -> None:
    AcceleratorState._reset_state(True)  # Trainer leaves its own state behind
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = DeiTForImageClassificationWithTeacher(tiny_deit())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    for _ in range(2):
        output = prepared(noise(4, 3, 32, 32), labels=torch.arange(4), teacher_logits=noise(4, 5))
        assert output.logits.dtype == torch.float32  # Accelerate converts outputs to float32
        accelerator.backward(output.loss)
        optimizer.step()
        optimizer.zero_grad()
    assert changed_tensors(before, accelerator.unwrap_model(prepared)) == list(before)


@pytest.fixture
def one_process() -> Iterator[None]:
    os.environ.setdefault("MASTER_ADDR", "localhost")
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_fsdp_shards_every_block() -> None:
    model = DeiTForImageClassificationWithTeacher(tiny_deit())
    images, labels = noise(2, 3, 32, 32), torch.tensor([0, 1])
    expected = model(images, labels=labels).loss
    mesh = init_device_mesh("cpu", (1,))
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loss = model(images, labels=labels).loss
    assert torch.allclose(loss, expected)
    backward(loss)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_modules_that_are_not_split_exist() -> None:
    model = DeiTForMaskedImageModeling(tiny_deit(encoder_stride=8))
    class_names = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= class_names
