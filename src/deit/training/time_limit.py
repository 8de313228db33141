"""Keeps a run within the time that it is given: plans its number of steps, and corrects it while the run trains."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from deit.recipes.schedule import affordable_steps
from deit.training.first_phase import mean_cost

MARGIN = 0.02  # share of the time that is not planned for
REPORT_SECONDS = 3.0  # report, model cards and the end of the program
MIN_STEPS = 10  # of a run, however short its time
CHECKS = (0.05, 0.15, 0.35, 0.6, 0.8, 0.9, 0.96)  # shares of the steps, or of their time, after which the plan is checked
TOLERANCE = 0.02  # smallest correction, as a share of the steps
WARMUP_STEPS = 2  # not measured: worker processes start, and memory is allocated


@dataclass(frozen=True)
class TimeLimit:
    """The time of a command, from its start to its end.

    Attributes:
        seconds: how long the command may take.
        started: when it started, by ``time.monotonic()``.
    """

    seconds: float
    started: float

    def remaining(self) -> float:
        """Returns the seconds that are left, without the margin; negative if the time is over."""
        return (1 - MARGIN) * self.seconds - (time.monotonic() - self.started)


@dataclass
class StepBudget:
    """How many steps of a run fit into its time, by measured durations.

    Attributes:
        limit: the time of the command.
        steps_per_epoch: optimizer steps from one evaluation to the next.
        step_seconds: duration of a step of the last phase, including the wait for its samples.
        epoch_seconds: duration of the evaluation after an epoch.
        final_evaluations: work of the final evaluation, of model and teacher, in evaluations after an epoch.
        first_pass: steps of the first pass over the images, where a cache of decoded images is filled; 0 without one.
        first_pass_seconds: duration of such a step; they are not taken for the pace of later ones.
        first_evaluation_seconds: how much longer the first evaluation takes, where it fills a cache.
        first_phase: fraction of training that the first phase takes (:mod:`deit.training.first_phase`).
        first_phase_cost: duration of its steps, relative to those of the last phase.
    """

    limit: TimeLimit
    steps_per_epoch: int
    step_seconds: float
    epoch_seconds: float
    final_evaluations: float
    first_pass: int = 0
    first_pass_seconds: float = 0.0
    first_evaluation_seconds: float = 0.0
    first_phase: float = 0.0
    first_phase_cost: float = 1.0
    _checks: int = 0
    _unmeasured: int = WARMUP_STEPS
    _steps: int = 0
    _cost: float = 0.0  # of these steps, in steps of the last phase
    _seconds: float = 0.0
    _has_evaluated: bool = False
    _evaluations: list[float] = field(default_factory=list)
    _training: float | None = None  # seconds that were left for training at the first step
    _before: int = 0  # steps that were taken before it: of the run that is extended

    @property
    def finishing_seconds(self) -> float:
        """Duration of what follows the last evaluation."""
        return self.final_evaluations * self.epoch_seconds + REPORT_SECONDS

    def total_steps(self, finished: int = 0, progress: float = 0.0) -> int:
        """Returns the number of steps, including the finished ones, that end the run in time.

        Args:
            finished: steps that are taken.
            progress: fraction of the schedule that they cover.
        """
        seconds = self.limit.remaining() - self.finishing_seconds
        if not self._has_evaluated:
            seconds -= self.first_evaluation_seconds
        step_seconds = self.mean_step_seconds(progress)
        slower = max(self.first_pass - finished, 0)
        extra = slower * (self.first_pass_seconds - step_seconds)
        more = affordable_steps(seconds - extra, step_seconds, self.epoch_seconds, self.steps_per_epoch, finished)
        if more < slower:  # the run ends within the first pass
            more = min(int(max(seconds - self.epoch_seconds, 0) / self.first_pass_seconds), slower)
        return max(finished + more, MIN_STEPS)

    def mean_step_seconds(self, progress: float = 0.0) -> float:
        """Returns the mean duration of the steps after a fraction of the schedule."""
        return self.step_seconds * mean_cost(self.first_phase, self.first_phase_cost, progress)

    def add_step(self, seconds: float, progress: float = 1.0) -> None:
        """Records the duration of a step, which a fraction of the schedule precedes."""
        if self._unmeasured:
            self._unmeasured -= 1
        else:
            self._steps, self._seconds = self._steps + 1, self._seconds + seconds
            self._cost += self.first_phase_cost if progress < self.first_phase else 1.0

    def add_evaluation(self, seconds: float) -> None:
        """Records the duration of the evaluation after an epoch; not of the first pass over the images, which is longer."""
        is_first, self._has_evaluated = not self._has_evaluated, True
        if self.first_pass and is_first:
            return
        self._evaluations.append(seconds)
        self.epoch_seconds = sum(self._evaluations) / len(self._evaluations)

    def correction(self, finished: int, total: int, progress: float = 1.0) -> int | None:
        """Returns a new total number of steps if a check is due and the plan is off; else None.

        The pace is that of the steps since the check before, so that it follows a machine whose speed changes.

        Args:
            finished: steps that are taken.
            total: steps that are planned, more than ``finished``.
            progress: fraction of the schedule that the finished steps cover.
        """
        left = self.limit.remaining() - self.finishing_seconds
        if self._training is None:
            self._training, self._before = left, finished - 1
        share = (finished - self._before) / (total - self._before)
        spent = max(share, 1 - left / self._training if self._training > 0 else 1.0)
        passed = sum(spent >= check for check in CHECKS)
        if finished == self.first_pass:
            self._forget_steps()
        if passed <= self._checks or not self._steps:
            return None
        self._checks = passed
        if finished < self.first_pass:
            self.first_pass_seconds = self._seconds / self._steps
        else:
            self.step_seconds = self._seconds / self._cost
        self._forget_steps()
        corrected = max(self.total_steps(finished, progress), finished + 1)
        return corrected if abs(corrected - total) > TOLERANCE * total else None

    def _forget_steps(self) -> None:
        self._steps, self._cost, self._seconds = 0, 0.0, 0.0
