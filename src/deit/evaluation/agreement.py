"""Where the class head, the distillation head and the teacher agree, and who is right where they do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deit.evaluation.metrics import Evaluation

HEAD_VOTERS = {"class": "class head", "distillation": "distillation head"}
TEACHER = "teacher"


@dataclass(frozen=True)
class Agreement:
    """The images on which the same voters agree.

    Attributes:
        name: such as ``all agree`` or ``teacher differs``.
        rows: (n,), rows of the evaluation.
        accuracy: share of these images that each voter classifies correctly, in 0..1; NaN without images.
    """

    name: str
    rows: np.ndarray
    accuracy: dict[str, float]


def voter_predictions(evaluation: Evaluation, teacher: Evaluation | None = None) -> dict[str, np.ndarray]:
    """Returns the predictions (n,) of each head of a distilled model and of its teacher; fewer than two say nothing.

    Args:
        evaluation: of the model.
        teacher: of the teacher; left out unless it is of the same images.
    """
    heads = evaluation.head_predictions
    voters = {name: heads[head] for head, name in HEAD_VOTERS.items() if head in heads}
    if teacher is not None and np.array_equal(teacher.indices, evaluation.indices):
        voters[TEACHER] = teacher.predictions
    return voters


def agreements(evaluation: Evaluation, teacher: Evaluation | None = None) -> list[Agreement]:
    """Divides the images by who agrees with whom. Empty for a model with one head and no teacher.

    Args:
        evaluation: of the model.
        teacher: of the teacher on the same images; None without one.
    """
    voters = voter_predictions(evaluation, teacher)
    if len(voters) < 2:
        return []
    votes = np.stack(list(voters.values()))  # (voters, n)
    equal = (votes[:, None] == votes[None]).sum(axis=1)  # (voters, n), how many have the same prediction, with oneself
    everyone = len(voters)
    groups = {"all agree": (equal == everyone).all(axis=0)}
    if everyone > 2:
        groups |= {f"{name} differs": (equal[row] == 1) & (equal.max(axis=0) > 1) for row, name in enumerate(voters)}
    groups["all differ" if everyone > 2 else "they differ"] = (equal == 1).all(axis=0)
    return [
        Agreement(
            name,
            np.flatnonzero(members),
            {
                voter: float((predictions == evaluation.labels)[members].mean()) if members.any() else float("nan")
                for voter, predictions in voters.items()
            },
        )
        for name, members in groups.items()
    ]
