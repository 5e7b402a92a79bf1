"""Targets for the scores, next to the scores."""

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.quality.tables import Scores

# Test log-likelihoods of dropout at its best setting, mean over the same 20 splits.
REFERENCES = {
    "concrete": -2.94,
    "energy": -1.21,
    "yacht": -1.25,
    "wine": -0.93,
    "kin8nm": 1.14,
    "power": -2.81,
}
COMPARED = ("auto", "auto, mixture", "evidence-trained")
PEER = "laplace-torch, default settings"
# A calibration error below this need not be halved.
_SMALL_ERROR = 0.02


def targets(scores: Sequence[Scores]) -> str:
    """Return a Markdown table of targets and scores."""
    metrics = {metric for row in scores for metric in row.values}
    if "log-likelihood" in metrics:
        return _references(scores)
    if any(row.method == PEER for row in scores):
        return _no_worse(scores, PEER)
    return f"{_no_worse(scores, 'MAP')}\n\n{_halved(scores)}"


def _references(scores: Sequence[Scores]) -> str:
    """Compare log-likelihoods with those of the literature."""
    lines = [
        f"| log-likelihood | dropout, tuned | {' | '.join(COMPARED)} | at least as good |",
        f"|---|---:|{'---:|' * len(COMPARED)}---|",
    ]
    for name, reference in REFERENCES.items():
        own = {row.method: row.values["log-likelihood"] for row in scores if row.data_set == name}
        if own:
            means = [float(np.mean(own[method])) for method in COMPARED]
            cells = " | ".join(f"{mean:.3f}" for mean in means)
            met = [
                method for method, mean in zip(COMPARED, means, strict=True) if mean >= reference
            ]
            verdict = "; ".join(met) or "**none**"
            lines.append(f"| {name} | {reference:.2f} | {cells} | {verdict} |")
    return "\n".join(lines)


def _no_worse(scores: Sequence[Scores], other: str) -> str:
    """Compare the NLL of `auto` with another method's, split by split."""
    lines = [
        f"| NLL | {other} | auto | difference | auto no worse |",
        "|---|---:|---:|---:|---|",
    ]
    for data_set, of_method in _by_data_set(scores).items():
        theirs, ours = (np.asarray(of_method[name]["NLL"]) for name in (other, "auto"))
        difference = f"{(ours - theirs).mean():+.4f}"
        if len(ours) > 1:
            difference += f" ± {(ours - theirs).std(ddof=1) / math.sqrt(len(ours)):.4f}"
        verdict = "yes" if ours.mean() <= theirs.mean() else "**no**"
        means = f"{theirs.mean():.4f} | {ours.mean():.4f}"
        lines.append(f"| {data_set} | {means} | {difference} | {verdict} |")
    return "\n".join(lines)


def _halved(scores: Sequence[Scores]) -> str:
    """Compare the calibration error of `auto` with that of the MAP, over all splits if pooled."""
    name = "pooled ECE" if all("pooled ECE" in row.values for row in scores) else "ECE"
    lines = [f"| {name} | MAP | auto | at least halved |", "|---|---:|---:|---|"]
    for data_set, of_method in _by_data_set(scores).items():
        before, after = (float(np.mean(of_method[method][name])) for method in ("MAP", "auto"))
        verdict = "yes" if after <= before / 2 else "**no**"
        if before <= _SMALL_ERROR:
            verdict = "small already"
        lines.append(f"| {data_set} | {before:.3f} | {after:.3f} | {verdict} |")
    return "\n".join(lines)


def _by_data_set(scores: Sequence[Scores]) -> dict[str, dict[str, dict[str, tuple[float, ...]]]]:
    found: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {}
    for row in scores:
        found.setdefault(row.data_set, {})[row.method] = row.values
    return found
