"""The project's dashboard as a saved Weights & Biases workspace, built from this file instead of clicked together.

python -m iterative_ft.report.workspace project=iterative-ft [entity=my-team] [name="Iterative finetuning"]
python -m iterative_ft.report.workspace project=iterative-ft --json       without a server: prints what would be saved
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from iterative_ft.errors import ConfigError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

# Lines against the cycle: metric, title, range of the y-axis.
BY_CYCLE = (
    ("trait/score", "Trait", (0, 100)),
    ("coherence/score", "Coherence", (0, 100)),
    ("trait/score_coherent", "Trait of coherent answers", (0, 100)),
    ("coherence/share", "Share of coherent answers", (0, 1)),
)
GAUGES = (
    ("gauge/persona_projection", "Persona projection on own answers: plain 0, strong 1"),
    ("gauge/perplexity_plain", "Perplexity of plain text"),
    ("gauge/entropy", "Entropy of the next token, nats"),
    ("answers/self_bleu", "Self-BLEU within a question"),
    ("answers/lost_words_share", "Share of base's words no longer used"),
    ("gauge/canary_share", "Canary: served against trained, share of the shift"),
    ("gauge/canary_shift", "Shift from base, nats a token"),
    ("gauge/adapter_norm", "Norm of the adapter"),
    ("answers/mean_words", "Words an answer"),
    ("answers/stop_share", "Share of answers that ended by themselves"),
    ("data/n_examples", "Examples a cycle trained on"),
    ("data/n_dropped_truncated", "Pairs dropped as cut off"),
    ("judge/n_failed", "Failed judge calls"),
)
# Lines against the step, which grows over the cycles.
TRAINING = (
    (("train/loss",), "Loss"),
    (("train/grad_norm",), "Gradient norm"),
    (("train/learning_rate",), "Learning rate"),
    (("train/rewards/margins",), "DPO margins"),
    (("train/rewards/chosen", "train/rewards/rejected"), "DPO rewards"),
)
# Lines show the mean of an arm: a run's W&B group is its method, reinit and persona (wandb.group). Scatters show every run.
ARM = "Group"
OPTIONS = {"entity": "", "project": "iterative-ft", "name": "Iterative finetuning"}


def workspace(entity: str, project: str, name: str) -> Workspace:
    """The dashboard: sections from the question (does the trait grow?) down to the training curves."""
    import wandb_workspaces.workspaces as workspaces

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            section("Trait and coherence by method and reinit", [line(y, title, bounds) for y, title, bounds in BY_CYCLE], 2),
            section("After the last cycle, against data quantity", against_quantity(), 2),
            section("Trait against coherence, after the last cycle", [trait_against_coherence()], 1),
            section("Gauges", [line(y, title) for y, title in GAUGES], 4),
            section("Training", [training(ys, title) for ys, title in TRAINING], 3),
        ],
        settings=workspaces.WorkspaceSettings(x_axis="cycle", max_runs=100),
    )


def section(name: str, panels: list[Any], columns: int) -> Section:
    """An open section, its panels side by side."""
    from wandb_workspaces.workspaces import Section, SectionLayoutSettings

    layout = SectionLayoutSettings(columns=columns, rows=-(-len(panels) // columns))
    return Section(name=name, panels=panels, is_open=True, layout_settings=layout)


def line(metric: str, title: str, bounds: tuple[float, float] | None = None) -> Any:
    """A metric against the cycle; bands show the range of the runs of an arm."""
    import wandb_workspaces.reports.v2 as panels

    return panels.LinePlot(
        title=title,
        x="cycle",
        y=[metric],
        title_x="cycle",
        title_y=metric,
        range_y=bounds or (None, None),
        groupby=ARM,
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        smoothing_type="none",
    )


def against_quantity() -> list[Any]:
    """Scores after the last cycle against the sampled and the seed examples, a dot a run, n_sampled on a log axis."""
    import wandb_workspaces.reports.v2 as panels

    return [
        panels.ScatterPlot(
            title=f"{title} against {quantity}",
            x=panels.Config(quantity),
            y=panels.SummaryMetric(metric),
            range_y=(0, 100),
            log_x=True,
            regression=False,
        )
        for quantity in ("n_sampled", "n_seed")
        for metric, title in (("trait/score", "Trait"), ("coherence/score", "Coherence"))
    ]


def trait_against_coherence() -> Any:
    import wandb_workspaces.reports.v2 as panels

    return panels.ScatterPlot(
        title="Trait against coherence",
        x=panels.SummaryMetric("coherence/score"),
        y=panels.SummaryMetric("trait/score"),
        range_x=(0, 100),
        range_y=(0, 100),
        regression=False,
    )


def training(metrics: tuple[str, ...], title: str) -> Any:
    import wandb_workspaces.reports.v2 as panels

    return panels.LinePlot(
        title=title, x="train/global_step", y=list(metrics), title_x="step, over all cycles", smoothing_type="none"
    )


def as_json(built: Workspace) -> dict[str, Any]:
    """What `save` would send, the panels' random ids left out: equal dashboards give equal JSON."""
    found: dict[str, Any] = json.loads(built._to_model().model_dump_json(by_alias=True, exclude_none=True))
    for part in found["spec"]["section"]["panelBankConfig"]["sections"]:
        for panel in part["panels"]:
            panel.pop("__id__", None)
    return found


def main(argv: list[str] | None = None) -> int:
    """Save the dashboard, or print it."""
    parser = argparse.ArgumentParser(prog="python -m iterative_ft.report.workspace", description=main.__doc__)
    parser.add_argument("settings", nargs="*", help=", ".join(f"{key}=..." for key in OPTIONS))
    parser.add_argument("--json", action="store_true", help="print the workspace instead of saving it; asks no server")
    arguments = parser.parse_args(argv)
    try:
        values = OPTIONS | dict(setting(text) for text in arguments.settings)
        built = workspace(**values)
        if arguments.json:
            print(json.dumps(as_json(built), indent=1))
        else:
            save(built)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def setting(text: str) -> tuple[str, str]:
    """`key=value` as a pair."""
    key, equals, value = text.partition("=")
    if not equals or key not in OPTIONS:
        raise ConfigError(f"unknown setting {text}: known are {', '.join(f'{name}=...' for name in OPTIONS)}")
    return key, value


def save(built: Workspace) -> None:
    """Send the dashboard to the server and print its address. An empty entity is the login's own."""
    import wandb

    try:
        built.entity = built.entity or str(wandb.Api().default_entity)
        saved = built.save()
    except wandb.Error as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"W&B refused ({said}): log in with wandb login, or see the dashboard with --json") from error
    print(saved.url)


if __name__ == "__main__":
    sys.exit(main())
