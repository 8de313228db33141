"""Our models in other people's training loops, as they are."""

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


def rows(**more: Any) -> list[dict[str, Any]]:
    return [{"pixel_values": noise(3, 32, 32, seed=n), "labels": n % 5, **more} for n in range(8)]


def arguments(directory: Path, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(directory),
        max_steps=2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=3,
        report_to=[],
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        learning_rate=1e-3,
        **more,
    )


def changed(before: dict[str, torch.Tensor], model: torch.nn.Module) -> list[str]:
    return [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: ViTForImageClassification(tiny_vit()), rows()),
        (lambda: DeiTForImageClassification(tiny_deit()), rows()),
        (lambda: DeiTForImageClassificationWithTeacher(tiny_deit()), rows()),
        (lambda: DeiTForImageClassificationWithTeacher(tiny_deit()), rows(teacher_logits=noise(5))),
    ],
    ids=["plain", "one head", "two heads", "two heads and a teacher"],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_transformers_trainer_trains_two_steps(tmp_path: Path, make: Any, data: Any, recompute: bool) -> None:
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = arguments(
        tmp_path,
        activation_checkpointing=recompute,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
    )
    trainer = Trainer(model=model, args=settings, train_dataset=data, eval_dataset=data[:5])
    assert trainer.train().global_step == 2
    assert changed(before, model) == list(before)
    predicted = trainer.predict(data[:5]).predictions
    assert (predicted[0] if isinstance(predicted, tuple) else predicted).shape == (5, 5)

    trainer.save_model(str(tmp_path / "saved"))
    again = load_model(tmp_path / "saved", num_attention_heads=3, layer_norm_eps=1e-12)  # no configuration was saved
    assert type(again) is type(model)
    assert torch.equal(again(noise(1, 3, 32, 32)).logits, model.eval()(noise(1, 3, 32, 32)).logits)


def test_accelerate_trains_two_steps() -> None:
    AcceleratorState._reset_state(True)  # transformers' trainer leaves its own behind
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = DeiTForImageClassificationWithTeacher(tiny_deit())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    for _ in range(2):
        output = prepared(noise(4, 3, 32, 32), labels=torch.arange(4), teacher_logits=noise(4, 5))
        assert output.logits.dtype == torch.float32  # Accelerate makes the output again, in float32
        accelerator.backward(output.loss)
        optimizer.step()
        optimizer.zero_grad()
    assert changed(before, accelerator.unwrap_model(prepared)) == list(before)


@pytest.fixture
def one_process() -> Iterator[None]:
    os.environ.setdefault("MASTER_ADDR", "localhost")
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_fsdp_wraps_it_block_by_block() -> None:
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


def test_the_names_of_the_wrapped_modules_are_there() -> None:
    model = DeiTForMaskedImageModeling(tiny_deit(encoder_stride=8))
    kinds = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= kinds
