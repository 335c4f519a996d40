"""feddlp from Python: run a configuration, look at a run, predict with a client's model, take it away.

run = feddlp.run(feddlp.load_config(None, ["training.rounds=2"]))
run.rounds[-1]["test"]["pooled"]                    # accuracy in %
run.client(3).predict(["photo.jpg"])
run.export(3, "clients/3")
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from feddlp import experiment, trained
from feddlp.config import Config, load_config
from feddlp.errors import UserError
from feddlp.experiment import Reporter
from feddlp.export import Exported, export
from feddlp.inference import Predictor, load_base, load_predictor, of_client
from feddlp.materials import pick_device, who_joins_late
from feddlp.model.backbone import Backbone
from feddlp.progress import Console, make_reporter
from feddlp.records import RunFolder
from feddlp.trained import ClientModel, Which

__all__ = ["Config", "Predictor", "Run", "UserError", "load_config", "load_predictor", "load_run", "run"]


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not."""

    folder: RunFolder

    @property
    def path(self) -> Path:
        return self.folder.path

    @cached_property
    def config(self) -> Config:
        """Everything that decided the run."""
        return load_config(self.folder.config)

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """One dictionary a method and round, as in rounds.jsonl; accuracies in %."""
        return self.folder.read_rounds()

    @property
    def clients(self) -> list[int]:
        """The clients whose models are kept."""
        return who_joins_late(self.config)[0]

    def client(self, client: int | str, method: str | None = None, adapter: Which = "local") -> Predictor:
        """A client's model after the last round; all clients share one backbone.

        Args:
            client: its number or, where the data name the clients, its name.
            method: where the run has several; feddlp if it is left out.
            adapter: "local", what the client predicts with; "global", the shared adapter alone.

        Raises:
            UserError: no such client, method or shared adapter, or a damaged checkpoint.
        """
        model = self._model(client, method, adapter)
        return of_client(model, self._backbone, *trained.classes_of(self.folder))

    def export(
        self,
        client: int | str,
        to: str | Path,
        method: str | None = None,
        adapter: Which = "local",
        merge: bool = False,
    ) -> Exported:
        """Write a client's model to a new folder: a PEFT adapter, or with `merge` a whole checkpoint.

        Raises:
            UserError: as `client`; and a model without such a form, or a folder that is taken.
        """
        return export(self.folder, self._model(client, method, adapter), Path(to).expanduser(), merge)

    def _model(self, client: int | str, method: str | None, adapter: Which) -> ClientModel:
        number, name = trained.number_of(self.folder, client), trained.choose_method(self.config, method)
        return trained.read_client(self.folder, name, number, adapter)

    @cached_property
    def _backbone(self) -> Backbone:
        model, fingerprint = self.config.model, self.folder.read_environment().get("backbone", "")
        device, resizing = pick_device("auto"), self.config.data.resize
        return load_base(model.checkpoint, model.adapt, model.dtype, fingerprint, device, resizing)


def run(config: Config | None = None, reporter: Reporter | None = None) -> Run:
    """Play a configuration to its end in a new run folder.

    Args:
        config: from `load_config`; the demo where it is left out.
        reporter: who is told how it goes on; lines or a bar on stderr where it is left out.
    """
    config = config or load_config(None)
    if reporter is not None:
        return Run(experiment.run(config, reporter))
    with make_reporter(Console(stderr=True)) as shown:
        return Run(experiment.run(config, shown))


def load_run(path: str | Path, method: str | None = None, seed: int | None = None) -> Run:
    """A run folder, finished or not; of a sweep's folder, the one run with this method and seed.

    Raises:
        UserError: there is none, or several fit.
    """
    return Run(trained.find_run(Path(path), method, seed))
