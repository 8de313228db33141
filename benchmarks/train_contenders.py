"""Who takes part in ``train_step.py``: models in training, ours and others', and a stopwatch for their steps."""

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
OURS, FED = "ours", "ours, from JPEG files"


@dataclass(frozen=True)
class Job:
    """What a process measures.

    Attributes:
        compiled: mode of ``torch.compile``; None runs the model as it is.
        keeps_memory: has our allocator setting.
        photos: folder of JPEG files, for the contender that reads them.
    """

    contender: str
    kind: str
    size: str
    precision: Precision
    batch: int
    device: str
    compiled: str | None = None
    keeps_memory: bool = False
    photos: str = ""

    @property
    def config(self) -> ViTConfig:
        return variant_config(f"deit-{self.size}-patch16-224", id2label={n: str(n) for n in range(CLASSES)})


@dataclass(frozen=True)
class Trainee:
    """A model in training.

    Attributes:
        step: one whole step; what it answers is of no interest.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[], object]


@dataclass
class Stopwatch:
    """Seconds by part of a step, kept by hooks. The loss belongs to the backward pass."""

    device: torch.device
    running: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    last: float = 0.0

    def attach(self, trainee: Trainee) -> None:
        trainee.model.register_forward_pre_hook(lambda *_: self.lap("data"))
        trainee.model.register_forward_hook(lambda *_: self.lap("forward"))
        trainee.optimizer.register_step_pre_hook(lambda *_: self.lap("backward"))
        trainee.optimizer.register_step_post_hook(lambda *_: self.lap("optimizer"))

    def start(self) -> None:
        self.running, self.seconds, self.last = True, {}, self.now()

    def stop(self) -> dict[str, float]:
        self.lap("optimizer")
        self.running = False
        return self.seconds

    def lap(self, part: str) -> None:
        if self.running:
            now = self.now()
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
            self.last = now

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def random_batch(job: Job) -> Batch:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(job.batch, 3, 224, 224, generator=draw)
    targets = torch.randn(job.batch, CLASSES, generator=draw).softmax(-1)
    samples = torch.stack([torch.arange(job.batch)] * 3, dim=1)
    return Batch(pixels, targets.argmax(-1), targets, samples).to(torch.device(job.device))


def compiled(job: Job, model: nn.Module) -> nn.Module:
    return model if job.compiled is None else torch.compile(model, mode=job.compiled)  # type: ignore[return-value]


def ours(job: Job, batches: Iterator[Batch] | None = None, config: ViTConfig | None = None) -> Trainee:
    """Our step on one batch again and again, or on those of a loader."""
    device = torch.device(job.device)
    recipe = get_recipe("deit").replace(batch_size=job.batch, micro_batch_size=job.batch)
    config = config or job.config
    model = new_classifier(config, torch.Generator().manual_seed(0)).to(device).train()
    optimizer = make_optimizer(model, recipe.optimizer)
    context = StepContext(recipe, job.precision)
    running, batch = compiled(job, model), random_batch(job)

    def step() -> object:
        return train_step(running, optimizer, [batch if batches is None else next(batches)], context, 0, 0, 1e-4)

    return Trainee(running, optimizer, step)


def fed(job: Job) -> Trainee:
    """Our step, fed by our loader."""
    recipe = get_recipe("deit").replace(batch_size=job.batch, micro_batch_size=job.batch)
    source = folder_source(Path(job.photos))
    transform = TrainTransform(recipe.augmentation, 224, 224, *recipe.processor().rgb_statistics)
    loader = Loader(TrainSamples(source, transform, recipe.mixing, 0, recipe.smoothing), pin=job.device == "cuda")
    images, repeats = len(source.labels), recipe.augmentation.repeats
    plans = [plan for epoch in range(1000) for plan in epoch_steps(images, job.batch, 0, epoch, repeats)]
    return ours(job, loader.run(plans), job.config.with_classes(source.classes))


def of_timm(job: Job) -> Trainee:
    """timm's model in the loop of its training script."""
    model = timm.create_model(f"deit_{job.size}_patch16_224", drop_path_rate=0.1).to(job.device).train()
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05)  # type: ignore[attr-defined]
    return looped(job, compiled(job, model), optimizer, lambda logits: logits)


def of_transformers(job: Job) -> Trainee:
    """The model of transformers with the optimizer of its trainer."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps")
    shape = {name: getattr(job.config, name) for name in names}
    config = transformers.ViTConfig(**shape, id2label={n: str(n) for n in range(CLASSES)})
    model: nn.Module = transformers.ViTForImageClassification(config)
    model = model.to(job.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    return looped(job, compiled(job, model), optimizer, lambda answer: answer.logits)


def looped(job: Job, model: nn.Module, optimizer: torch.optim.Optimizer, logits: Callable[[Any], Tensor]) -> Trainee:
    batch, device = random_batch(job), torch.device(job.device)
    loss_of = timm.loss.SoftTargetCrossEntropy()  # type: ignore[attr-defined, no-untyped-call]

    def step() -> None:
        with autocast(device, job.precision):
            loss = loss_of(logits(model(batch.pixel_values)), batch.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Trainee(model, optimizer, step)


KINDS: dict[str, Callable[[Job], Trainee]] = {OURS: ours, FED: fed, "timm": of_timm, "transformers": of_transformers}


def jobs(size: str, precision: Precision, batch: int, device: str) -> dict[str, Job]:
    """All contenders of one table, by name."""
    rows: dict[str, tuple[str, str | None, bool]] = {OURS: (OURS, None, True), f"{OURS}, compiled": (OURS, "default", True)}
    for other in ("timm", "transformers"):
        rows |= {other: (other, None, False), f"{other}, compiled": (other, "default", False)}
    if device == "cpu":
        rows["timm, memory kept"] = ("timm", None, True)
        rows["timm, memory kept, compiled"] = ("timm", "default", True)
    else:
        rows |= {f"{kind}, CUDA graphs": (kind, "reduce-overhead", False) for kind in (OURS, "timm")}
    return {name: Job(name, kind, size, precision, batch, device, mode, keeps) for name, (kind, mode, keeps) in rows.items()}
