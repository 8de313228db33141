"""The training step benchmark: all contenders do the same work, and times and FLOPs are right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks.train_contenders import IMPLEMENTATIONS, OURS, Job, PhaseTimer, jobs, maybe_compile
from benchmarks.train_step import best_of_each, forward_flops, measure_steps


@pytest.fixture
def job() -> Job:
    return replace(jobs("tiny", "fp32", 2, "cpu")[OURS], batch=2)


@pytest.mark.parametrize(("size", "macs"), [("tiny", 1.26e9), ("small", 4.61e9), ("base", 17.58e9)])
def test_flops_are_two_for_each_published_multiplication(job: Job, size: str, macs: float) -> None:
    assert forward_flops(replace(job, size=size).config) == pytest.approx(2 * macs, rel=0.01)


@pytest.mark.parametrize("implementation", [OURS, "timm", "transformers"])
def test_every_contender_trains_the_same_model_and_each_phase_is_timed(job: Job, implementation: str) -> None:
    torch.manual_seed(0)
    loop = IMPLEMENTATIONS[implementation](replace(job, implementation=implementation))
    timer = PhaseTimer(torch.device("cpu"))
    timer.attach(loop)
    parameters = list(loop.model.parameters())
    assert sum(parameter.numel() for parameter in parameters) == 5_717_416
    before = [parameter.detach().clone() for parameter in parameters]
    (seconds,) = measure_steps(loop.step, timer, 1)
    assert all(seconds[phase] > 0 for phase in ("forward", "backward", "optimizer", "cpu"))
    assert seconds["total"] == pytest.approx(sum(seconds[phase] for phase in ("data", "forward", "backward", "optimizer")))
    changed = [not torch.equal(old, parameter) for old, parameter in zip(before, parameters, strict=True)]
    assert sum(changed) > 0.8 * len(changed)  # stochastic depth may drop a branch of both images


def test_on_a_gpu_the_timer_synchronizes_and_steps_are_timed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    synchronizations: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: synchronizations.append(1))
    steps: list[int] = []
    (seconds,) = measure_steps(lambda: steps.append(len(synchronizations)), PhaseTimer(torch.device("cuda")), 4)
    assert steps == [1, 1, 1, 1, 3]  # none between the first four steps; then one step by phases
    assert seconds["total"] > 0


def test_contenders_are_compiled_as_their_names_say(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []

    def record_mode(model: torch.nn.Module, mode: str) -> torch.nn.Module:
        modes.append(mode)
        return model

    monkeypatch.setattr(torch, "compile", record_mode)
    model = torch.nn.Linear(1, 1)
    on_cpu, on_gpu = (jobs("tiny", "bf16", 2, device) for device in ("cpu", "cuda"))
    assert not any("CUDA graphs" in name for name in on_cpu)
    assert not any("memory kept" in name for name in on_gpu)
    for by_name in (on_cpu, on_gpu):
        for name, one_job in by_name.items():
            modes.clear()
            assert maybe_compile(one_job, model) is model
            mode = "reduce-overhead" if "CUDA graphs" in name else "default" if "compiled" in name else None
            assert modes == ([] if mode is None else [mode])


def test_the_fastest_of_each_implementation_are_compared() -> None:
    rates = {"ours": 30.0, "ours, compiled": 36.0, "timm": 20.0, "timm, compiled": 24.0, "transformers": 90.0}
    rows = [
        {
            "size": "tiny",
            "precision": precision,
            "contender": name,
            "implementation": name.split(",")[0],
            "images_per_second": {"median": rate},
        }
        for precision, names in (("bf16", list(rates)), ("fp32", ["ours"]))
        for name, rate in rates.items()
        if name in names
    ]
    assert best_of_each(rows) == ["tiny in bf16, our best (ours, compiled) / timm's best (timm, compiled): 1.50."]
