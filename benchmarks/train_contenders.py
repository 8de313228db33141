"""The contenders of ``train_step.py``, training loops of this package, timm and transformers, and a timer of their steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import timm.loss
import timm.optim
import torch
import transformers
from torch import Tensor, nn

from deit.config import ViTConfig, variant_config
from deit.data.datasets.folders import folder_source
from deit.data.loader import Batch, Loader, TrainSamples
from deit.data.sampler import epoch_steps
from deit.data.transforms.augment import TrainTransform
from deit.models.modeling import new_classifier
from deit.recipes.presets import get_recipe
from deit.system.devices import Precision, autocast
from deit.training.optimization import make_optimizer
from deit.training.step import StepContext, train_step

CLASSES = 1000
OURS, OURS_FROM_FILES = "ours", "ours, from JPEG files"
TIMM, TRANSFORMERS = "timm", "transformers"


@dataclass(frozen=True)
class Job:
    """What a process measures.

    Attributes:
        contender: name of the contender.
        implementation: key of ``IMPLEMENTATIONS``.
        size: "tiny", "small" or "base".
        precision: precision of the matrix products.
        batch: images per step.
        device: "cpu" or "cuda".
        compile_mode: mode of ``torch.compile``; None does not compile the model.
        retain_memory: use the allocator settings of this package.
        photos: folder of JPEG files, for the contender that reads them.
    """

    contender: str
    implementation: str
    size: str
    precision: Precision
    batch: int
    device: str
    compile_mode: str | None = None
    retain_memory: bool = False
    photos: str = ""

    @property
    def config(self) -> ViTConfig:
        return variant_config(f"deit-{self.size}-patch16-224", id2label={n: str(n) for n in range(CLASSES)})


@dataclass(frozen=True)
class TrainingLoop:
    """A model in training.

    Attributes:
        model: the model, in training mode.
        optimizer: its optimizer.
        step: runs one training step; its return value is not used.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[], object]


@dataclass
class PhaseTimer:
    """Measures the phases of a step through hooks. Computing the loss counts as part of the backward pass."""

    device: torch.device
    running: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    last: float = 0.0

    def attach(self, loop: TrainingLoop) -> None:
        loop.model.register_forward_pre_hook(lambda *_: self.end_phase("data"))
        loop.model.register_forward_hook(lambda *_: self.end_phase("forward"))
        loop.optimizer.register_step_pre_hook(lambda *_: self.end_phase("backward"))
        loop.optimizer.register_step_post_hook(lambda *_: self.end_phase("optimizer"))

    def start(self) -> None:
        self.running, self.seconds, self.last = True, {}, self.now()

    def stop(self) -> dict[str, float]:
        """Returns seconds by phase."""
        self.end_phase("optimizer")
        self.running = False
        return self.seconds

    def end_phase(self, phase: str) -> None:
        if self.running:
            now = self.now()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.last
            self.last = now

    def now(self) -> float:
        """Returns the time in seconds, after waiting for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def random_batch(job: Job) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(job.batch, 3, 224, 224, generator=generator)
    targets = torch.randn(job.batch, CLASSES, generator=generator).softmax(-1)
    samples = torch.stack([torch.arange(job.batch)] * 3, dim=1)
    return Batch(pixels, targets.argmax(-1), targets, samples).to(torch.device(job.device))


def maybe_compile(job: Job, model: nn.Module) -> nn.Module:
    return model if job.compile_mode is None else torch.compile(model, mode=job.compile_mode)  # type: ignore[return-value]


def our_loop(job: Job, batches: Iterator[Batch] | None = None, config: ViTConfig | None = None) -> TrainingLoop:
    """Returns our training step, on the batches of a loader, or on the same random batch each time."""
    device = torch.device(job.device)
    recipe = get_recipe("deit").replace(batch_size=job.batch, micro_batch_size=job.batch)
    config = config or job.config
    model = new_classifier(config, torch.Generator().manual_seed(0)).to(device).train()
    optimizer = make_optimizer(model, recipe.optimizer)
    context = StepContext(recipe, job.precision)
    trained, batch = maybe_compile(job, model), random_batch(job)

    def step() -> object:
        return train_step(trained, optimizer, [batch if batches is None else next(batches)], context, 0, 0, 1e-4)

    return TrainingLoop(trained, optimizer, step)


def our_loop_from_files(job: Job) -> TrainingLoop:
    """Returns our training step, fed by our data loader."""
    recipe = get_recipe("deit").replace(batch_size=job.batch, micro_batch_size=job.batch)
    source = folder_source(Path(job.photos))
    transform = TrainTransform(recipe.augmentation, 224, 224, *recipe.processor().rgb_statistics)
    loader = Loader(TrainSamples(source, transform, recipe.mixing, 0, recipe.smoothing), pin=job.device == "cuda")
    images, repeats = len(source.labels), recipe.augmentation.repeats
    plans = [plan for epoch in range(1000) for plan in epoch_steps(images, job.batch, 0, epoch, repeats)]
    return our_loop(job, loader.run(plans), job.config.with_classes(source.classes))


def timm_loop(job: Job) -> TrainingLoop:
    """Returns timm's model in the loop of its training script."""
    model = timm.create_model(f"deit_{job.size}_patch16_224", drop_path_rate=0.1).to(job.device).train()
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05)  # type: ignore[attr-defined]
    return plain_loop(job, maybe_compile(job, model), optimizer, lambda logits: logits)


def transformers_loop(job: Job) -> TrainingLoop:
    """Returns the model of transformers with the optimizer of its trainer."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps")
    shape = {name: getattr(job.config, name) for name in names}
    config = transformers.ViTConfig(**shape, id2label={n: str(n) for n in range(CLASSES)})
    model: nn.Module = transformers.ViTForImageClassification(config)
    model = model.to(job.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    return plain_loop(job, maybe_compile(job, model), optimizer, lambda output: output.logits)


def plain_loop(
    job: Job, model: nn.Module, optimizer: torch.optim.Optimizer, get_logits: Callable[[Any], Tensor]
) -> TrainingLoop:
    """Returns a plain loop of forward, loss, backward and optimizer step under autocast."""
    batch, device = random_batch(job), torch.device(job.device)
    loss_function = timm.loss.SoftTargetCrossEntropy()  # type: ignore[attr-defined, no-untyped-call]

    def step() -> None:
        with autocast(device, job.precision):
            loss = loss_function(get_logits(model(batch.pixel_values)), batch.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return TrainingLoop(model, optimizer, step)


IMPLEMENTATIONS: dict[str, Callable[[Job], TrainingLoop]] = {
    OURS: our_loop,
    OURS_FROM_FILES: our_loop_from_files,
    TIMM: timm_loop,
    TRANSFORMERS: transformers_loop,
}


def jobs(size: str, precision: Precision, batch: int, device: str) -> dict[str, Job]:
    """Returns the jobs of one size and precision by the name of the contender."""
    variants: list[tuple[str, str, str | None, bool]] = []  # contender, implementation, compile mode, retain memory
    for implementation in (OURS, TIMM, TRANSFORMERS):
        retain = implementation == OURS
        variants.append((implementation, implementation, None, retain))
        variants.append((f"{implementation}, compiled", implementation, "default", retain))
    if device == "cpu":
        variants.append(("timm, freed memory kept", TIMM, None, True))
        variants.append(("timm, freed memory kept, compiled", TIMM, "default", True))
    else:
        variants += [(f"{name}, CUDA graphs", name, "reduce-overhead", False) for name in (OURS, TIMM)]
    return {
        name: Job(name, implementation, size, precision, batch, device, mode, retain)
        for name, implementation, mode, retain in variants
    }
