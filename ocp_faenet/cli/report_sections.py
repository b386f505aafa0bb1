"""The sections of the report: what each needs, makes, and says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ocp_faenet.cli import (
    report_curves,
    report_ewald,
    report_figures,
    report_frames,
    report_tables,
)
from ocp_faenet.cli.report_plan import (
    DEPTH,
    EWALD,
    FORCES,
    FRAMES,
    LABELS,
    TABLE1,
    TABLE2,
    Part,
    Setting,
)


@dataclass(frozen=True)
class Section:
    """One table or figure.

    Attributes:
        title: its heading.
        needs: folders of the data set.
        parts: studies whose runs it takes.
        make: runs, measures and draws; what comes back is the section in the report's JSON, its
            ``pictures`` a list of names in ``--out``.
        render: the Markdown of that, without heading and pictures.
    """

    title: str
    needs: tuple[str, ...]
    parts: tuple[Part, ...]
    make: Callable[[Setting], dict[str, Any]]
    render: Callable[[Mapping[str, Any]], str]


SECTIONS: Mapping[str, Section] = {
    "figure1": Section(
        "Figure 1: a system and its frames",
        ("is2re",),
        (),
        report_frames.make_figure1,
        report_frames.render_figure1,
    ),
    "table1": Section(
        "Table 1: throughput and errors",
        ("is2re",),
        (TABLE1,),
        report_tables.make_table1,
        report_tables.render_table1,
    ),
    "figure2": Section(
        "Figure 2: diversity of atoms by layer",
        ("is2re",),
        (DEPTH,),
        report_figures.make_figure2,
        report_figures.render_figure2,
    ),
    "figure3": Section(
        "Figure 3: short- and long-range parts",
        (),
        (),
        report_ewald.make_figure3,
        report_ewald.render_figure3,
    ),
    "learned_filters": Section(
        "Figure 3, continued: filters of trained Ewald messages",
        ("is2re",),
        (EWALD,),
        report_ewald.make_filters,
        report_ewald.render_filters,
    ),
    "table2": Section(
        "Table 2: OC20-Dense",
        ("is2re", "dense"),
        (TABLE2,),
        report_tables.make_table2,
        report_tables.render_table2,
    ),
    "figure5": Section(
        "Figure 5: energy by configuration",
        ("is2re", "dense"),
        (TABLE2,),
        report_figures.make_figure5,
        report_figures.render_figure5,
    ),
    **{
        name: Section(
            f"Training curves {without}",
            needs,
            (part,),
            partial(report_curves.make_curves, name),
            report_curves.render_curves,
        )
        for name, without, needs, part in (
            ("frame_curves", "with and without frames", ("is2re",), FRAMES),
            ("noisy_curves", "with and without Noisy Nodes", ("is2re",), DEPTH),
            ("pretraining_curves", "with and without denoising pre-training", ("is2re",), LABELS),
            ("ewald_curves", "with and without Ewald messages", ("is2re",), EWALD),
            ("force_curves", "with and without energy conservation", ("s2ef",), FORCES),
            ("finetuning_curves", "before and in fine-tuning", ("is2re", "dense"), TABLE2),
        )
    },
}
