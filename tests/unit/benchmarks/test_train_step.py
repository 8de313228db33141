"""The benchmark of the training step: that all do the same work, and that its clock and its counts are right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks.train_contenders import KINDS, OURS, Job, Stopwatch, compiled, jobs
from benchmarks.train_step import best_to_best, measured, operations


@pytest.fixture
def job() -> Job:
    return replace(jobs("tiny", "fp32", 2, "cpu")[OURS], batch=2)


@pytest.mark.parametrize(("size", "macs"), [("tiny", 1.26e9), ("small", 4.61e9), ("base", 17.58e9)])
def test_operations_are_two_for_each_published_multiplication(job: Job, size: str, macs: float) -> None:
    assert operations(replace(job, size=size).config) == pytest.approx(2 * macs, rel=0.01)


@pytest.mark.parametrize("kind", [OURS, "timm", "transformers"])
def test_every_contender_trains_the_same_model_and_is_timed_in_parts(job: Job, kind: str) -> None:
    torch.manual_seed(0)
    trainee, watch = KINDS[kind](replace(job, kind=kind)), Stopwatch(torch.device("cpu"))
    watch.attach(trainee)
    parameters = list(trainee.model.parameters())
    assert sum(parameter.numel() for parameter in parameters) == 5_717_416
    before = [parameter.detach().clone() for parameter in parameters]
    (seconds,) = measured(trainee.step, watch, 1)
    assert all(seconds[part] > 0 for part in ("forward", "backward", "optimizer", "processor"))
    assert seconds["total"] == pytest.approx(sum(seconds[part] for part in ("data", "forward", "backward", "optimizer")))
    moved = [not torch.equal(old, parameter) for old, parameter in zip(before, parameters, strict=True)]
    assert sum(moved) > 0.8 * len(moved)  # stochastic depth may drop a branch of both images


def test_on_a_gpu_the_clock_waits_for_it_and_steps_are_timed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: waits.append(1))
    steps: list[int] = []
    (seconds,) = measured(lambda: steps.append(len(waits)), Stopwatch(torch.device("cuda")), 4)
    assert steps == [1, 1, 1, 1, 3]  # no wait between the four; then one step in parts
    assert seconds["total"] > 0


def test_contenders_are_compiled_as_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noted(model: torch.nn.Module, mode: str) -> torch.nn.Module:
        asked.append(mode)
        return model

    monkeypatch.setattr(torch, "compile", noted)
    model = torch.nn.Linear(1, 1)
    on_cpu, on_gpu = (jobs("tiny", "bf16", 2, device) for device in ("cpu", "cuda"))
    assert not any("CUDA graphs" in name for name in on_cpu)
    assert not any("memory kept" in name for name in on_gpu)
    for entrants in (on_cpu, on_gpu):
        for name, entrant in entrants.items():
            asked.clear()
            assert compiled(entrant, model) is model
            mode = "reduce-overhead" if "CUDA graphs" in name else "default" if "compiled" in name else None
            assert asked == ([] if mode is None else [mode])


def test_the_best_of_each_is_compared() -> None:
    rates = {"ours": 30.0, "ours, compiled": 36.0, "timm": 20.0, "timm, compiled": 24.0, "transformers": 90.0}
    rows = [
        {
            "size": "tiny",
            "precision": precision,
            "contender": name,
            "kind": name.split(",")[0],
            "images_per_second": {"median": rate},
        }
        for precision, names in (("bf16", list(rates)), ("fp32", ["ours"]))
        for name, rate in rates.items()
        if name in names
    ]
    assert best_to_best(rows) == ["tiny in bf16, our best (ours, compiled) to timm's best (timm, compiled): 1.50."]
