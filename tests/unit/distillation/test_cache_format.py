"""The cache format: encoding, its error bound, and damaged or forged files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.data.sampler import BatchPlan
from deit.distillation.cache_format import (
    MISSING,
    CachedTargets,
    CacheManifest,
    check_views,
    decode_labels,
    decode_logits,
    encode,
    is_logit_cache,
    read_manifest,
    view_path,
)
from deit.errors import DeiTError, TeacherError
from deit.models.losses import hard_distillation, soft_distillation
from deit.system.files import sha256, write_json
from tests.helpers import noise

HALF = 2**-11  # rounding of half precision


def manifest(**fields: Any) -> CacheManifest:
    content: dict[str, Any] = {
        "teacher": {"name": "t", "location": "t", "sha256": "0" * 64},
        "data": {"fingerprint": "f", "split_seed": 0, "validation_fraction": 0.2, "images": 12},
        "pixel_settings": {"seed": 0},
        "software": {"Pillow": "13"},
        "pixel_probe": "",
        "classes": ("a", "b", "c", "d", "e"),
        "top_k": None,
        "views": 1,
        "batch_size": 4,
        "steps": 3,
    }
    return CacheManifest(**{**content, **fields})


def written(directory: Path, rows: np.ndarray, **fields: Any) -> CachedTargets:
    """A cache with one view."""
    view_path(directory, 0).write_bytes(rows.astype("<u2").tobytes())
    content = manifest(sha256=[sha256(view_path(directory, 0))], **fields)
    write_json(directory / "cache.json", content.model_dump(mode="json"))
    return CachedTargets(directory, content, soft=content.top_k is not None)


def plan(step: int, *positions: int) -> BatchPlan:
    return BatchPlan(0, step, np.asarray([[place, 0, place] for place in positions], np.int64))


def test_hard_label_is_the_argmax_in_two_bytes() -> None:
    logits = noise(50, 5)
    rows = encode(logits, None)
    assert rows.nbytes == 100
    assert torch.equal(decode_labels(rows), logits.argmax(dim=-1))


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_ties_are_resolved_like_argmax(top_k: int) -> None:
    logits = torch.zeros(3, 5).index_fill(1, torch.tensor([1, 3, 4]), 2.0)
    assert torch.equal(decode_labels(encode(logits, top_k)), logits.argmax(dim=-1))
    assert torch.equal(decode_labels(encode(logits, None)), logits.argmax(dim=-1))


def test_top_k_takes_four_bytes_per_class_and_averages_the_rest() -> None:
    logits = torch.tensor([[2.0, 9.0, 1.0, 7.0, 0.0]])
    rows = encode(logits, 2)
    assert rows.nbytes == 8
    found, true = decode_logits(rows, 5).softmax(dim=-1)[0], logits.softmax(dim=-1)[0]
    torch.testing.assert_close(found[[1, 3]], true[[1, 3]], rtol=2e-3, atol=0)
    assert found[0] == found[2] == found[4]
    torch.testing.assert_close(found[[0, 2, 4]].sum(), true[[0, 2, 4]].sum(), rtol=5e-3, atol=0)


@pytest.mark.parametrize("top_k", [4, 5])
def test_small_probabilities_of_a_confident_teacher_survive(top_k: int) -> None:
    logits = torch.tensor([[30.0, 0.0, -8.0, 2.0, -20.0]])  # the others together are below 1e-12
    found = decode_logits(encode(logits, top_k), 5)
    assert (found - found.max() - (logits - logits.max())).abs().max() <= HALF * 50


def _ranges(logits: torch.Tensor, top_k: int) -> tuple[float, float]:
    """The range of a sample's logits, and of those left out."""
    ordered = logits.sort(descending=True).values
    left = ordered[top_k:]
    return (ordered[0] - ordered[-1]).item(), (left[0] - left[-1]).item() if len(left) else 0.0


spread = st.floats(0.01, 20)


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 2**31), spread, spread, st.floats(0.5, 20))
@settings(max_examples=150)
def test_soft_distillation_from_top_k_is_within_the_stated_bound(
    classes: int, top_k: int, seed: int, scale: float, student_scale: float, temperature: float
) -> None:
    top_k = min(top_k, classes)
    teacher, student = noise(1, classes, seed=seed) * scale, noise(1, classes, seed=seed + 1) * student_scale
    decoded = decode_logits(encode(teacher, top_k), classes)
    off = soft_distillation(student.double(), decoded.double(), temperature)
    off = (off - soft_distillation(student.double(), teacher.double(), temperature)).abs()
    teacher_range, left_range = _ranges(teacher[0], top_k)
    student_range = (student.max() - student.min()).item()
    error = left_range + 2 * HALF * teacher_range
    rounding = 1e-4 * (1 + temperature**2)  # of float32, in which losses are computed
    assert off <= error * (teacher_range + error + student_range) / 2 + rounding


@given(st.integers(2, 40), st.integers(0, 2**31), spread)
@settings(max_examples=60)
def test_kept_logits_are_off_only_by_rounding(classes: int, seed: int, scale: float) -> None:
    logits = noise(1, classes, seed=seed) * scale
    found = decode_logits(encode(logits, classes - 1), classes)
    relative = logits - logits.max()
    assert (found - relative).abs().max() <= HALF * -relative.min() + 1e-5


def test_logits_beyond_half_precision_stay_finite() -> None:
    found = decode_logits(encode(torch.tensor([[0.0, -1e30, 3e38, -3e38]]), 3), 4)
    assert torch.isfinite(found).all()
    assert found.argmax() == 2


def test_hard_distillation_takes_labels_or_logits() -> None:
    student, teacher = noise(6, 5), noise(6, 5, seed=1)
    assert torch.equal(hard_distillation(student, teacher), hard_distillation(student, teacher.argmax(dim=-1)))


def test_targets_are_read_by_step_and_position(tmp_path: Path) -> None:
    targets = written(tmp_path, np.arange(12).reshape(12, 1) % 5)
    assert targets.read(plan(0, 0, 1), np.arange(2)).tolist() == [0, 1]
    assert targets.read(plan(2, 3, 1), np.arange(2)).tolist() == [11 % 5, 9 % 5]
    assert is_logit_cache(tmp_path)
    assert not is_logit_cache(tmp_path / "view-000000.bin")


def test_top_k_cache_returns_labels_too(tmp_path: Path) -> None:
    logits = noise(12, 5)
    soft = written(tmp_path, encode(logits, 3), top_k=3)
    hard = CachedTargets(tmp_path, soft.manifest, soft=False)
    assert torch.equal(hard.read(plan(1, 0, 1, 2, 3), np.arange(4)), logits[4:8].argmax(dim=-1))
    assert soft.read(plan(1, 0, 1), np.arange(2)).shape == (2, 5)


def test_change_of_readability_is_rejected(tmp_path: Path) -> None:
    rows = np.zeros((12, 1), np.int64)
    rows[5] = MISSING
    targets = written(tmp_path, rows)
    assert targets.read(plan(1, 0, 1, 2), np.asarray([0, 2])).tolist() == [0, 0]
    with pytest.raises(TeacherError, match="image 1 is readable, and was not when"):
        targets.read(plan(1, 0, 1, 2), np.arange(3))
    with pytest.raises(TeacherError, match="image 2 is not readable, and was when"):
        targets.read(plan(1, 0, 1, 2), np.asarray([0]))


@pytest.mark.parametrize("top_k", [None, 2])
def test_targets_for_measuring_are_valid_for_any_images(tmp_path: Path, top_k: int | None) -> None:
    rows = np.zeros((12, 1 if top_k is None else 2 * top_k), np.int64)
    rows[5] = MISSING
    targets = written(tmp_path, rows, top_k=top_k).for_measuring()
    for kept in ([0, 1, 2], [0]):
        found = targets.read(plan(1, 0, 1, 2), np.asarray(kept))
        assert len(found) == len(kept)
        assert not found.any()


@pytest.mark.parametrize("missing", [True, False])
def test_file_that_vanishes_or_shrinks_after_the_check_is_rejected(tmp_path: Path, missing: bool) -> None:
    targets = written(tmp_path, np.zeros((12, 1)))
    if missing:
        view_path(tmp_path, 0).unlink()
    else:
        view_path(tmp_path, 0).write_bytes(b"\0" * 23)
    with pytest.raises(TeacherError, match="missing or damaged"):
        targets.read(plan(2, 3), np.arange(1))


@pytest.mark.parametrize(
    ("top_k", "row"),
    [
        (None, [5]),  # there are five classes
        (1, [5, 0]),
        (2, [0, 7, 0, 0]),
        (2, [0, 1, 0, 0x3C00]),  # a logarithm above 0
        (2, [0, 1, 0, 0x7E00]),  # not a number
        (2, [0, 1, 0xFC00, 0]),  # minus infinity
    ],
)
def test_impossible_rows_are_rejected(tmp_path: Path, top_k: int | None, row: list[int]) -> None:
    targets = written(tmp_path, np.asarray([row] * 12), top_k=top_k)
    check_views(tmp_path, targets.manifest)  # the hashes are right
    with pytest.raises(TeacherError, match="invalid targets"):
        targets.read(plan(0, 0), np.arange(1))


def test_damage_is_detected_by_size_and_hash(tmp_path: Path) -> None:
    targets = written(tmp_path, np.zeros((12, 1)))
    path = view_path(tmp_path, 0)
    check_views(tmp_path, read_manifest(tmp_path))
    for content in (path.read_bytes()[:-1], b"\1" + path.read_bytes()[1:], None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(TeacherError, match=r"view-000000\.bin is missing or damaged"):
            check_views(tmp_path, targets.manifest)


def test_other_format_version_is_reported(tmp_path: Path) -> None:
    content = manifest().model_dump(mode="json")
    write_json(tmp_path / "cache.json", {**content, "format": 2})
    with pytest.raises(TeacherError, match="cache format 2: this version reads 1"):
        read_manifest(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(CacheManifest.model_fields)), json_values, st.booleans())
@settings(max_examples=150)
def test_corrupt_manifest_raises_or_is_valid(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: Any, dropped: bool
) -> None:
    directory = tmp_path_factory.mktemp("cache")
    content = manifest().model_dump(mode="json")
    if dropped:
        del content[name]
    else:
        content[name] = value
    (directory / "cache.json").write_text(json.dumps(content))
    try:
        found = read_manifest(directory)
    except DeiTError as error:
        assert "cache.json" in str(error) or "format" in str(error)
        return
    assert 0 < found.samples_per_view < 2**80
    assert math.isfinite(found.seconds)
    assert len(found.sha256) <= found.views


@pytest.mark.parametrize("changes", [{"sha256": ["0" * 64] * 2}, {"top_k": 6}, {"sha256": ["../../x"]}, {"classes": []}])
def test_inconsistent_manifest_is_rejected(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_json(tmp_path / "cache.json", {**manifest().model_dump(mode="json"), **changes})
    with pytest.raises(TeacherError, match="corrupt"):
        read_manifest(tmp_path)
