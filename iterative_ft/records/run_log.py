"""The record of a run, written as it happens: files in its folder first, then W&B from the same rows, and the screen."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iterative_ft.config.schema import Config
from iterative_ft.machine.device import resolve_device
from iterative_ft.machine.files import append_jsonl, clear_unfinished, write_json
from iterative_ft.machine.secrets import without_secrets
from iterative_ft.records.folder import ANSWERS, CODE, COMMAND, CONFIG, ENVIRONMENT, MANIFEST, METRICS, PICTURE, RESULT, Attempt
from iterative_ft.records.provenance import code_state, data_of, environment, kinds_of
from iterative_ft.records.rows import AnswerRow, MetricRow, StageRow, answer_rows, metric_row
from iterative_ft.records.terminal import Display, WorkLeft, ending, timed_tokens
from iterative_ft.records.wandb_log import WandbLog
from iterative_ft.stages.measure import Measured
from iterative_ft.stages.train import Trained, training_rows
from iterative_ft.store import Event

Draw = Callable[[Sequence[MetricRow], Path], None]
WORK = ("sample", "answer", "train", "judge", "probe", "replies")  # kinds of stage that a run is for


class Log:
    """Told what the loop does, as it does it. This one keeps nothing: a dry run's."""

    def begin(self, cycle: int) -> None:
        """What comes now belongs to `cycle`."""

    def trained(self, trained: Trained) -> None:
        """A policy was trained."""

    def measured(self, measured: Measured, trained: Trained | None) -> None:
        """A policy was measured; `trained` is None for base."""


class RunLog(Log):
    """Writes metrics.jsonl, answers.jsonl, manifest.json, curves.png, result.json and W&B, and says what happens."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        command: str,
        left: WorkLeft,
        draw: Draw,
        calibration: dict[str, Any] | None = None,
        made: dict[str, Any] | None = None,
    ) -> None:
        """Begin the record.

        Args:
            made: what the policies were made with (stats/replicates.py), where an earlier run made them.
        """
        self.config, self.folder, self.draw, self.calibration = config, folder, draw, calibration
        self.display = Display(config, left)
        self.started = time.monotonic()
        self.cycle = -1
        self.global_step = 0
        self.rows: list[MetricRow] = []
        self.answers: list[AnswerRow] = []
        self.stages: list[StageRow] = []
        self.roles: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.waited_s = 0.0
        self.speed = {"sampling": [0, 0.0], "training": [0, 0.0]}  # tokens, seconds
        self.wandb = WandbLog(config, folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(config.model_dump()))
        clear_unfinished(folder)
        self.attempt = Attempt(folder, settings)
        self.made: dict[str, Any] = made or {
            "model": None,
            "judges": [],
            "kinds": kinds_of(config),
            "device": resolve_device(config.device),
            "data": data_of(config),
        }
        write_json(self.out / CONFIG, settings)
        write_json(self.out / ENVIRONMENT, environment())
        (self.out / COMMAND).write_text(without_secrets(command) + "\n", encoding="utf-8", errors="backslashreplace")
        write_json(self.out / CODE, code_state(self.out))
        self.write_manifest()

    @property
    def out(self) -> Path:
        """Where the records are written: the run's folder, or beside an earlier attempt's."""
        return self.attempt.out

    def __enter__(self) -> RunLog:
        if self.attempt.aside and self.attempt.until is None:
            print(f"{self.folder} holds records already: the new ones take their place when this run has finished")
        self.wandb.begin()
        self.display.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.display.stop()
        self.wandb.finish(failed=kind is not None)

    # -- what the store and the trainer tell --------------------------------------------------------------------------

    def stage_started(self, label: str) -> None:
        self.display.doing(label, self.cycle)

    def training_step(self, step: int, n_steps: int, loss: float) -> None:
        self.display.step(step, n_steps, loss)

    def stage(self, event: Event) -> None:
        """Count a stage and say how it was had."""
        stage, info = event.stage, event.stage.info
        if (event.purpose.get("policy"), event.purpose.get("role")) == ("base", "checkpoint"):
            self.made["model"] = stage.digest
        self.stages.append(
            {
                "cycle": self.cycle,
                "kind": stage.kind,
                "key": stage.key,
                "label": event.label,
                "how": event.how,
                "policy": event.purpose.get("policy", ""),
                "role": event.purpose.get("role", ""),
            }
        )
        self.waited_s += event.waited_s
        if event.how == "built":
            self.seconds[stage.kind] += event.seconds
            for name, key in (("sampling", "sample_seconds"), ("training", "loop_seconds")):
                if key in info:
                    self.speed[name][0] += timed_tokens(info)
                    self.speed[name][1] += info[key]
        self.display.done(event, self.cycle)

    # -- what the loop tells ------------------------------------------------------------------------------------------

    def begin(self, cycle: int) -> None:
        self.cycle = cycle

    def trained(self, trained: Trained) -> None:
        """Training rows of the cycle; their step grows over the cycles."""
        self.roles.append(trained.roles)
        self.write_manifest()
        if trained.stage is None:
            return
        for row in training_rows(trained.stage):
            values = {f"train/{name}": number for name, number in row.items() if name != "step"}
            self.row({"train/global_step": self.global_step + int(row["step"]), "train/cycle": self.cycle, **values})
        self.global_step += trained.stage.info["n_steps"]

    def measured(self, measured: Measured, trained: Trained | None) -> None:
        """The row of a measured policy, every answer with its scores, and the picture so far."""
        answers = answer_rows(self.cycle, measured)
        row = metric_row(self.config, answers, measured, trained)
        self.made["judges"] = sorted({*self.made["judges"], row["judge/version"]})
        self.row(row)
        append_jsonl(self.out / ANSWERS, answers)
        self.write_manifest()
        self.rows.append(row)
        self.answers += answers
        self.display.measured(row)
        self.draw(self.rows, self.out / PICTURE)

    def finish(self, verdict: dict[str, Any], engine_start_s: float) -> None:
        """Timings and table; result.json last."""
        times = self.times(engine_start_s)
        self.row(dict(times))
        self.write_manifest()
        self.wandb.image("curves", self.out / PICTURE)
        result = {"verdict": verdict, "rows": self.rows, "time": times, "stages": self.stages, "made": self.made}
        write_json(self.out / RESULT, result)
        self.attempt.take_over()
        self.display.stop()
        n_built = sum(stage["how"] == "built" for stage in self.stages)
        print(ending(self.rows, verdict, times, n_built, len(self.stages) - n_built))
        print(f"picture {self.folder / PICTURE}\nrows    {self.folder / METRICS}\nanswers {self.folder / ANSWERS}")
        print(f"W&B     {self.wandb.where()}")

    def times(self, engine_start_s: float) -> dict[str, float]:
        """Seconds by kind of stage, and speeds."""
        total = time.monotonic() - self.started
        times = {"time/total_s": total, "time/engine_start_s": engine_start_s, "time/waiting_s": self.waited_s}
        times |= {f"time/{kind}_s": seconds for kind, seconds in sorted(self.seconds.items())}
        work = sum(self.seconds[kind] for kind in WORK) - engine_start_s
        times["time/work_share"] = work / total if total > 0 else 0.0
        for name, (tokens, seconds) in self.speed.items():
            if seconds > 0:
                times[f"time/{name}_tokens_per_s"] = tokens / seconds
        return {name: round(value, 3) for name, value in times.items()}

    def row(self, row: Mapping[str, Any]) -> None:
        """Append one JSON object to metrics.jsonl, on disk before W&B hears of it."""
        append_jsonl(self.out / METRICS, [row])
        self.wandb.row(row)
        self.attempt.told()

    def write_manifest(self) -> None:
        manifest: dict[str, Any] = {"roles": self.roles, "stages": self.stages, "store": self.config.store, "made": self.made}
        if self.calibration is not None:
            manifest["calibration"] = self.calibration
        write_json(self.out / MANIFEST, manifest)
