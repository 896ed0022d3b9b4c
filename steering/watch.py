"""From the scores of a text's tokens to its drift, and how far one request has drifted."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from steering.spec import Watch
from steering.table import DetectorLines

SMOOTHING: Final = 1 / 16  # of drift: what one token's score weighs


def drift(
    scores: NDArray[np.floating], smoothing: float = SMOOTHING, before: float = 0.0
) -> NDArray[np.float64]:
    """`[tokens]`, the exponential moving average of `scores` `[tokens]`, from `before` on.

    Scores are 0 on average where a behaviour is not, so a text begins at 0: no single token makes it drift.
    """
    found = np.empty(len(scores), np.float64)
    for index, score in enumerate(scores):
        before += smoothing * (float(score) - before)
        found[index] = before
    return found


@dataclass(slots=True, eq=False)
class Watching:
    """One watch of one engine request: a score for each generated token that was computed so far.

    `since` is the position from which the watch's terms act: that after the token which drifted.
    """

    watch: Watch
    detector: DetectorLines
    prompt_tokens: int
    scores: list[float] = field(default_factory=list)
    level: float = 0.0
    since: int | None = None

    @property
    def next(self) -> int:
        """The position of the first token without a score: one computed again, after preemption, has one."""
        return self.prompt_tokens + len(self.scores)

    def take(self, score: float) -> None:
        self.scores.append(score)
        self.level += self.watch.smoothing * (score - self.level)
        if self.since is None and self.level > self.watch.threshold:
            self.since = self.next
