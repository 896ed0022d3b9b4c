"""How far one request has drifted, and since when that has consequences."""

from dataclasses import dataclass, field

from steering.spec import Watch
from steering.table import DetectorLines


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
    over: bool = False  # the request is gone

    @property
    def next(self) -> int:
        """The position of the first token without a score: one computed again, after preemption, has one."""
        return self.prompt_tokens + len(self.scores)

    def take(self, score: float) -> None:
        level = self.level + self.watch.smoothing * (score - self.level)
        self.follow(score, level, drifted=level > self.watch.threshold)

    def follow(self, score: float, level: float, *, drifted: bool) -> None:
        """What the next token's score did elsewhere: a device has its own drift."""
        self.scores.append(score)
        self.level = level
        if self.since is None and drifted:
            self.since = self.next
