"""A panel, a dashboard, and the expressions that panels are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

OURS = 'namespace=~"$namespace"'
ENGINE = 'namespace=~"$namespace",model_name=~"$model"'


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries` are legend → PromQL, or SQL for a table without legend."""

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    description: str = ""
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Rows of panels, under a heading each."""

    title: str
    rows: Mapping[str, Sequence[Panel]] = field(default_factory=dict)
    postgres: bool = False


def rate(metric: str, where: str, by: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{where}}}[$__rate_interval]))"


def share(metric: str, where: str, part: str, by: str = "") -> str:
    return f"{rate(metric, f'{where},{part}', by)} / {rate(metric, where, by)}"


def quantiles(metric: str, where: str, by: str = "") -> dict[str, str]:
    """The median and the slowest twentieth of a histogram."""
    grouped = ", ".join(filter(None, [by, "le"]))
    suffix = f" {{{{{by}}}}}" if by else ""
    return {
        f"p{int(q * 100)}{suffix}": f"histogram_quantile({q}, "
        f"sum by ({grouped}) (rate({metric}_bucket{{{where}}}[$__rate_interval])))"
        for q in (0.5, 0.95)
    }
