"""Models that are divided among processes: the results of copies in each, whole checkpoints, and stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.kills import make_images, make_teachers, setups
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from deit.checkpoints.run_log import read_log
from deit.data.loader import Batch
from deit.errors import InterruptedWorkError, PeerError, RecipeError, UserError
from deit.recipes.presets import get_recipe
from deit.recipes.schema import Recipe
from deit.training.loop import Trainer
from deit.training.run import pretrain, train
from tests.ranks import run_ranks

RECIPES = {setup.name: setup.recipe for setup in setups()}
LABELS, DISTILLED = RECIPES["the same, two workers"], RECIPES["live teacher, feature maps, Muon"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("divided")
    make_images(folder / "images")
    make_teachers(folder)
    return folder


def options(folder: Path, recipe: Recipe) -> dict[str, Any]:
    teacher = folder / "teacher" if recipe.distillation.mode != "none" else None
    return {"recipe": recipe, "teacher": teacher, "workers": 0, "device": "cpu"}


def train_and_measure(folder: Path, recipe: Recipe, out: Path, shard: bool) -> tuple[dict[str, Any], float]:
    """Trains, and returns the evaluation and the share of the parameters and moments that this process held."""
    shares: list[float] = []
    advance = Trainer.advance

    def measured(trainer: Trainer, epoch: int, step: int, batches: Sequence[Batch]) -> tuple[float, int]:
        result = advance(trainer, epoch, step, batches)
        assert trainer.ema is not None
        moments = [value for state in trainer.optimizer.state.values() for value in state.values() if value.ndim]
        tensors = [*trainer.model.parameters(), *trainer.ema.model.parameters(), *moments]
        local = sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel() for tensor in tensors)
        shares.append(local / sum(tensor.numel() for tensor in tensors))
        return result

    Trainer.advance = measured  # type: ignore[assignment, method-assign]
    result = train(folder / "images", out=out, shard=shard, **options(folder, recipe))
    return result.evaluation.to_dict()["heads"], max(shares)


def tensors(run: Path, name: str = "optimizer") -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").iterdir())[-1] / f"{name}.safetensors")


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Returns the norm of the difference, relative to that of the first."""
    assert {name: tensor.shape for name, tensor in first.items()} == {name: tensor.shape for name, tensor in second.items()}
    one, other = (torch.cat([group[name].double().flatten() for name in sorted(first)]) for group in (first, second))
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize(
    "recipe",
    [
        DISTILLED,
        LABELS,
        LABELS.replace(optimizer={"name": "lamb", "clip_norm": 1.0}),
    ],
    ids=["muon", "adamw", "lamb"],
)
def test_results_are_those_of_copies(folder: Path, tmp_path: Path, recipe: Recipe) -> None:
    for shard in (False, True):
        results = run_ranks(train_and_measure, 2, folder, recipe, tmp_path / f"{shard}", shard)
        assert not [result for result in results if isinstance(result, BaseException)], results
        assert results[0][0] == results[1][0]
        for _, share in results:
            assert (share < 0.6) == shard
    for row, reference in zip(read_log(tmp_path / "True"), read_log(tmp_path / "False"), strict=True):
        assert row["loss"] == pytest.approx(reference["loss"], rel=1e-3)
        assert row["validation"] == pytest.approx(reference["validation"], rel=1e-2)
    for name in ("model", "optimizer"):
        assert difference(tensors(tmp_path / "False", name), tensors(tmp_path / "True", name)) < 0.01


def train_until_stopped(folder: Path, out: Path, number: int) -> None:
    """Sends a signal to the second process in its second step."""
    advance = Trainer.advance

    def interrupted(trainer: Trainer, epoch: int, step: int, batches: Sequence[Batch]) -> tuple[float, int]:
        if trainer.state.steps_taken == 1 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), number)
        return advance(trainer, epoch, step, batches)

    Trainer.advance = interrupted  # type: ignore[assignment, method-assign]
    train(folder / "images", out=out, shard=True, checkpoint_minutes=1e-6, **options(folder, LABELS))


def resume(run: Path, shard: bool) -> int:
    train(resume=run, workers=0, device="cpu", shard=shard)
    return len(read_log(run))


def train_until_stopped_in_evaluation(folder: Path, out: Path) -> None:
    """Sends a signal to the first process in the evaluation after the first epoch."""
    validate = Trainer._validate

    def interrupted(trainer: Trainer, *arguments: Any) -> dict[str, float]:
        if os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(trainer, *arguments)

    Trainer._validate = interrupted  # type: ignore[assignment, method-assign]
    train(folder / "images", out=out, shard=True, **options(folder, LABELS))


def test_run_stopped_in_an_evaluation_resumes(folder: Path, tmp_path: Path) -> None:
    first, second = run_ranks(train_until_stopped_in_evaluation, 2, folder, tmp_path / "run")
    assert isinstance(first, InterruptedWorkError) and isinstance(second, PeerError), (first, second)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["epoch-000000-step-00000003"]
    assert run_ranks(resume, 2, tmp_path / "run", True) == [LABELS.epochs] * 2


@pytest.mark.parametrize("shard", [False, True])
def test_stopped_run_resumes_with_and_without(folder: Path, tmp_path: Path, shard: bool) -> None:
    run_ranks(train_and_measure, 2, folder, LABELS, tmp_path / "whole", True)
    first, second = run_ranks(train_until_stopped, 2, folder, tmp_path / "run", signal.SIGTERM)
    assert isinstance(first, InterruptedWorkError) and isinstance(second, PeerError), (first, second)
    assert (first.exit_code, second.exit_code) == (128 + signal.SIGTERM,) * 2
    assert (tmp_path / "run" / "checkpoints" / "epoch-000000-step-00000002").is_dir()
    size = 2 if shard else 1
    assert run_ranks(resume, size, tmp_path / "run", shard) == [LABELS.epochs] * size
    limit = 0.0 if shard else 0.01
    for name in ("model", "optimizer"):
        assert difference(tensors(tmp_path / "whole", name), tensors(tmp_path / "run", name)) <= limit


def test_killed_process_leaves_the_checkpoint_before(folder: Path, tmp_path: Path) -> None:
    first, second = run_ranks(train_until_stopped, 2, folder, tmp_path / "run", signal.SIGKILL)
    assert isinstance(first, PeerError) and second is None
    assert "resume with" in first.remedy
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert run_ranks(resume, 2, tmp_path / "run", True) == [LABELS.epochs] * 2


def pretrain_divided(folder: Path, out: Path, shard: bool) -> float:
    recipe = get_recipe("pretrain-mim").tiny().replace(batch_size=16)
    return pretrain(folder / "images", recipe, out=out, workers=0, device="cpu", shard=shard).loss


def test_pretraining(folder: Path, tmp_path: Path) -> None:
    copies, divided = (run_ranks(pretrain_divided, 2, folder, tmp_path / f"{shard}", shard) for shard in (False, True))
    assert divided[0] == divided[1] == pytest.approx(copies[0], rel=1e-3)


def train_wrongly(folder: Path, out: Path, recipe: Recipe, settings: dict[str, str]) -> None:
    train(folder / "images", out=out, shard=True, settings=settings, **options(folder, recipe))


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        (get_recipe("convnet").tiny(), {}, "is for transformers"),
        (LABELS, {"minutes": "1"}, "is not measured"),
        (LABELS.replace(model={"sizes": "data"}), {}, "is not measured"),
    ],
)
def test_recipes_that_cannot_be_divided(
    folder: Path, tmp_path: Path, recipe: Recipe, settings: dict[str, str], message: str
) -> None:
    first, _ = run_ranks(train_wrongly, 2, folder, tmp_path / "run", recipe, settings)
    assert isinstance(first, RecipeError) and message in str(first)


def test_one_process_has_nothing_to_divide(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="start it with torchrun"):
        train_wrongly(folder, tmp_path / "run", LABELS, {})
