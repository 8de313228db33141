"""The models in the training loops of transformers and Accelerate, and under FSDP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainingArguments

from deit.models.modeling import (
    Block,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    ViTForImageClassification,
    load_model,
)
from tests.helpers import backward, noise, tiny_deit, tiny_vit


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
    predicted = trainer.predict(data[:5]).predictions
    assert (predicted[0] if isinstance(predicted, tuple) else predicted).shape == (5, 5)

    trainer.save_model(str(tmp_path / "saved"))
    # Trainer saved no configuration.
    loaded = load_model(tmp_path / "saved", num_attention_heads=3, layer_norm_eps=1e-12)
    assert type(loaded) is type(model)
    assert torch.equal(loaded(noise(1, 3, 32, 32)).logits, model.eval()(noise(1, 3, 32, 32)).logits)


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
