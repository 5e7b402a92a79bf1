"""The section of a report about groups: the metric of each with its interval, in order."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from laplace_kit.eval.plots.style import series_style, tidy
from laplace_kit.eval.report import pictures
from laplace_kit.eval.report.group_measures import LEVEL, worst_group
from laplace_kit.eval.report.registry import METRICS
from laplace_kit.eval.report.section import Section
from laplace_kit.eval.report.table import display_name, number

_SHOWN = {"classification": ("nll", "overconfidence"), "regression": ("nll", "coverage_90")}
_MOST_DRAWN, _MOST_NAMED = 30, 5


def group_sections(metrics: Mapping[str, Any], overall: Mapping[str, Any]) -> tuple[Section, ...]:
    """Return the section of a report's metrics by group, if there are any."""
    if "groups" not in metrics:
        return ()
    return (group_section(metrics["groups"], metrics["task"], overall),)


def group_section(measured: Mapping[str, Any], task: str, overall: Mapping[str, Any]) -> Section:
    """Draw the metrics of the largest groups of each grouping, and name the worst group.

    Parameters
    ----------
    measured
        What `measure_groups` returns.
    task
        `"classification"` or `"regression"`.
    overall
        The metrics of all examples, by predictor.
    """
    drawn = []
    for grouping, groups in measured.items():
        for key in _SHOWN[task]:
            figure = _figure(groups, key, overall)
            label = METRICS[key].label
            differing = _significant(groups, key)
            caption = f"{label} by {grouping}, with {LEVEL:.0%} intervals; {differing}"
            file = pictures.file_name(f"groups_{len(drawn)}", key)
            drawn.append(pictures.picture(file, pictures.with_legend_key(caption, overall), figure))
    is_cut = any(len(of) > _MOST_DRAWN for of in measured.values())
    most = f"of the {_MOST_DRAWN} with most examples, " if is_cut else ""
    note = (
        f"The metrics of each group, {most}the largest number of examples first; dotted lines are "
        "those of all examples. A star marks groups that differ significantly from all examples, "
        "after allowing for the number of groups."
    )
    worst = tuple(group_sentences(measured, overall))
    return Section("Groups", note, tuple(drawn), key="groups", conclusions=worst)


def group_sentences(measured: Mapping[str, Any], predictors: Mapping[str, Any]) -> list[str]:
    """Return a sentence about the worst group for each predictor."""
    sentences = []
    for name in predictors:
        found = worst_group(measured, name)
        if found is None:
            continue
        grouping, group, is_worse = found
        each = measured[grouping][group]
        gap = each["gaps"][name]["nll"]
        size = f"{each['num_examples']} examples"
        if is_worse:
            sentences.append(
                f"{display_name(name)} is worst for {grouping} {group} ({size}): its NLL is "
                f"{number(gap[0])} above that of all (p of a group = {gap[3]:.2g})."
            )
        else:
            sentences.append(
                f"No group is significantly worse for {display_name(name)}; its largest NLL is "
                f"that of {grouping} {group} ({size})."
            )
    return sentences


def _figure(groups: Mapping[str, Any], key: str, overall: Mapping[str, Any]) -> Any:
    order = sorted(groups, key=lambda group: -groups[group]["num_examples"])[:_MOST_DRAWN]
    figure = pictures.new_figure(1.2 + 0.32 * len(order))
    ax = figure.subplots()
    labels = pictures.legend_names(overall)
    places = np.arange(len(order))[::-1]
    for series, name in enumerate(overall):
        color, _ = series_style(series)
        shift = 0.24 * (series - (len(overall) - 1) / 2) / max(len(overall) - 1, 1)
        for place, group in zip(places, order, strict=True):
            value = groups[group][name].get(key)
            if value is None:
                continue
            ends = groups[group]["intervals"][name].get(key, [value, value])
            ax.plot(ends, [place - shift] * 2, color=color, linewidth=1.4)
            marker = "*" if _is_significant(groups[group], name, key) else "o"
            size = 9 if marker == "*" else 5
            ax.plot(value, place - shift, marker, color=color, markersize=size)
        ax.plot([], [], "o-", color=color, label=labels[name])
        if overall[name].get(key) is not None:
            ax.axvline(overall[name][key], color=color, linestyle=":", linewidth=1)
    names = [pictures.legend_name(f"{group} ({groups[group]['num_examples']})") for group in order]
    ax.set_yticks(places, names)
    ax.set_xlabel(METRICS[key].label)
    tidy(ax, legend=True)
    return figure


def _is_significant(group: Mapping[str, Any], name: str, key: str) -> bool:
    gap = group["gaps"][name].get(key)
    return gap is not None and gap[3] <= 1 - LEVEL


def _significant(groups: Mapping[str, Any], key: str) -> str:
    """Return which groups differ, in words."""
    found = [
        group
        for group, of in groups.items()
        if any(_is_significant(of, name, key) for name in of["gaps"])
    ]
    if not found:
        return "no group differs significantly"
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return f"significantly different: {', '.join(found[:_MOST_NAMED])}{more}"
