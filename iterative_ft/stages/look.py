"""The look at a run's model before any work: where its files are by now, and what the run will put to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.models import base
from iterative_ft.models.adapters import check_adapter, check_targets
from iterative_ft.models.look import Found, look, look_at_judge
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.model import base_of
from iterative_ft.stages.texts import known_texts, texts_of_judge
from iterative_ft.store import Event, Store

MODEL_WORK = ("model", "sample", "answer", "data", "train")  # kinds of stage that the model's facts decide about
SEEN: dict[str, Found | None] = {}  # of this process, by config: the cells of a sweep and the run itself ask again


def unseen_work(events: Sequence[Event]) -> bool:
    """Whether a plan holds work that a look should come before; a finished run is not looked at again."""
    return any(event.how == "pending" and event.stage.kind in MODEL_WORK for event in events)


def examine(config: Config, download: bool = True) -> Found | None:
    """Look at the model, the adapter to start from, the model that judges, and all texts that are known.

    Args:
        download: fetch the small files of a hub model that this machine lacks.
    Returns:
        None where there is nothing to look at yet: an embedded model is unpacked by a run's first stage.
    Raises:
        ConfigError: the run would go wrong.
    """
    if config.fake:
        return None
    key = config.model_dump_json()
    if SEEN.get(key) is None:
        bench = Bench(config, Store(Path(config.store), dry_run=True))
        examine_judge(bench, download)
        folder, weights = files_of(bench, download)
        SEEN[key] = None if folder is None else examine_in(bench, folder, weights)
    return SEEN[key]


def examine_judge(bench: Bench, download: bool) -> None:
    """Look at the model that judges, where it is another one."""
    judging = bench.judging
    if judging is not bench:
        folder, weights = files_of(judging, download)
        if folder is not None:
            look_at_judge(judging.config, folder, texts_of_judge(bench), weights)


def files_of(bench: Bench, download: bool) -> tuple[Path | None, bool]:
    """Where a bench's model lies, None for an embedded one that is not unpacked yet; and whether its weights lie there too."""
    model = bench.config.model
    if not bench.model.pending:
        return base_of(bench.config, bench.model, dry_run=not download).model, True
    if model.path.startswith("embedded:"):
        return None, False
    local = base.local_folder(model.path)
    if local is not None:
        return local, True
    code, here = model.trust_remote_code, not download
    return base.snapshot(model.path, model.revision, base.SMALL, code, local_only=here, setting=model.setting), False


def examine_in(bench: Bench, folder: Path, weights: bool = True) -> Found:
    """Look at the model in a folder."""
    config = bench.config
    found = look(config, folder, known_texts(bench), weights)
    check_targets(config.lora, folder, config.model.trust_remote_code)
    if config.start_adapter is not None:
        try:
            adapter = Path(config.start_adapter).expanduser()
            check_adapter(adapter, config.lora, f"in start_adapter={adapter}", folder, config.model.trust_remote_code)
        except RunError as error:
            raise ConfigError(str(error)) from error
        found.facts.append("the adapter in start_adapter fits")
    return found


class FirstLook:
    """The look that comes before a run's work: at once where the model is on this machine, else when it was unpacked."""

    def __init__(self, config: Config, planned: Sequence[Event]) -> None:
        due = not config.fake and unseen_work(planned)
        found = examine(config) if due else None
        say(found)
        self.is_due = due and found is None

    def once_stored(self, bench: Bench) -> None:
        """Look at the model that a stage of this run holds by now. It comes too late to be a mistake in the command alone."""
        if not self.is_due:
            return
        self.is_due = False
        try:
            say(examine_in(bench, bench.base.model))
        except ConfigError as error:
            raise RunError(str(error)) from error


def say(found: Found | None) -> None:
    """Print what is worth knowing at the start of a run."""
    for note in [] if found is None else found.notes:
        print(f"note: {note}")
