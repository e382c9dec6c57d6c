"""Make anew the offline judge that ships ready-made: `make ready-judge`, after a change of what is in its key.

It builds the judge of the default run from nothing, puts it and the base model's answers that it learnt from into
`iterative_ft/ready/`, and says how far the scores of the judge there before are from its own.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from iterative_ft.config.judges import ProbeConfig
from iterative_ft.config.messages import judged
from iterative_ft.config.schema import Config
from iterative_ft.data import files
from iterative_ft.errors import RunError
from iterative_ft.judges.probe import probe
from iterative_ft.launch.tasks import composed_values
from iterative_ft.machine.files import write_json
from iterative_ft.machine.libraries import prepare_libraries
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.judge import PROBE, probe_stage
from iterative_ft.store import Stage, Store, ready


def main() -> int:
    prepare_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        stages: list[Stage] = []
        store = Store(Path(scratch) / "store", on_event=lambda event: stages.append(event.stage))
        bench = Bench(judged(Config, composed_values(f"store={store.root}")), store)
        shipped, ready.READY = ready.READY, Path(scratch) / "none"  # or it would be found there
        settings = bench.config.judge
        assert isinstance(settings, ProbeConfig)
        made = probe_stage(bench, settings)
        print(f"made {made.kind}/{made.key} in {made.manifest['seconds']:.0f} s")
        for old in sorted((shipped / PROBE.name).glob("*")):
            try:
                print(f"before: {old.name}, {compared(old, made.path, settings.embedder, bench)}")
            except RunError as error:
                print(f"before: {old.name}, not compared: {error}")
        shutil.rmtree(shipped, ignore_errors=True)
        for stage in stages:
            if stage.kind != "model":
                shutil.copytree(stage.path, shipped / stage.kind / stage.key)
        write_json(shipped / ready.DIGESTS, {stage.key: stage.digest for stage in stages if stage.kind == "model"})
    return 0


def compared(one: Path, other: Path, embedder: str, bench: Bench) -> str:
    """How two judges' scores of all held-out texts differ, in points."""
    trait, coherence = [], []
    for name in files.shipped():
        rows = files.heldout(files.SHIPPED / name)
        texts = [(row["prompt"], row["answer"]) for row in rows]
        scores = [probe.score(folder, name, texts, [True] * len(texts), embedder, bench.reader) for folder in (one, other)]
        for a, b in zip(*scores, strict=True):
            if a["trait"] is not None and b["trait"] is not None:
                trait.append(abs(a["trait"] - b["trait"]))
            if a["coherence"] is not None and b["coherence"] is not None:
                coherence.append(abs(a["coherence"] - b["coherence"]))
    found = [
        f"{what} {np.mean(points):.3f} points in the mean, {np.max(points):.2f} at most"
        for what, points in (("trait", trait), ("coherence", coherence))
    ]
    return f"{len(trait)} held-out texts: " + ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
