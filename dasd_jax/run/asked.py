"""What --checkpoint names, and what belongs to it: its run, its tokenizer, the name of its results, its weights."""

import dataclasses
import os
from pathlib import Path

from jax.sharding import Mesh

from dasd_jax import hosts, recorded
from dasd_jax.batch import Params
from dasd_jax.config import Config, ModelGroup
from dasd_jax.errors import UserError
from dasd_jax.learner import checkpoint, kept
from dasd_jax.model import weights
from dasd_jax.model.config import ModelConfig
from dasd_jax.run import models
from dasd_jax.text.tokenizer import Tokenizer
from dasd_jax.text.tokenizer_files import load_tokenizer

_START = "start"


@dataclasses.dataclass(frozen=True)
class Asked:
    """A valid checkpoint, or the model that a run begins with.

    Attributes:
        run: the folder of the run that it belongs to, if it belongs to one.
        folder: its own; None: of the model that a run begins with.
    """

    run: Path
    folder: Path | None

    @classmethod
    def of(cls, workdir: Path, which: str) -> "Asked":
        """That which a flag names, equal in all processes.

        Args:
            workdir: of the run.
            which: as for `kept.find`, or start.

        Raises:
            UserError: as `kept.find`.
        """
        run = recorded.run_of(workdir, which)
        if which == _START:
            return cls(run, None)
        return cls(run, Path(hosts.from_main(lambda: str(kept.find(workdir, which)))))

    @property
    def name(self) -> str:
        """What files of results are called: the step, the name of a folder that is no step, or start."""
        return kept.name_of(self.folder) if self.folder else _START

    def tokenizer(self, group: ModelGroup) -> Tokenizer:
        """The tokenizer of the run: its copy in the checkpoint, or in the newest one of the run that `start` means.

        What lies behind the config's path may have been replaced since the run began. Where there is no copy it is read
        all the same, and where no run is that says which tokenizer belongs to the checkpoint, if the config names one.

        Raises:
            UserError: as `models.open_tokenizer`.
        """
        of_a_run = os.path.exists(self.run / recorded.NAME)
        folder = self.folder or (of_a_run and hosts.from_main(lambda: str(kept.newest(self.run) or "")))
        if not folder or not models.has_tokenizer(Path(folder)) or (group.tokenizer and not of_a_run):
            return models.open_tokenizer(group)
        return load_tokenizer(str(folder))

    def open(self, config: Config, mesh: Mesh) -> tuple[str, ModelConfig, Params]:
        """Reads the weights.

        Returns:
            (sha256 of the checkpoint's manifest, or the fingerprint of the start; architecture; float32 parameters).

        Raises:
            UserError: as `models.open_model`, or the start has other weights than the run began with.
        """
        if not self.folder:
            config = models.pinned(config, self.run)
            model, params = models.open_model(config, mesh)
            before = models.begun(self.run).get("fingerprint")
            if before and before != (now := models.noted(params)):
                raise UserError(
                    f"--checkpoint: start: {config.model.weights} holds other weights than when the run in {self.run} "
                    f"began, of fingerprint {now} and not {before}: expected the files as they were, or another "
                    "--workdir; the answers of the run's own start are in heldout/"
                )
            return models.fingerprint(config), model, params
        manifest = weights.file_sha256(self.folder / "manifest.json")
        model, params = checkpoint.restore_params(self.folder, mesh)
        return manifest, models.configured(config, model), params


def check_filed(workdir: Path, which: str) -> None:
    """Refuses a path as --checkpoint whose results would stand in `workdir` for those of a step, or the start, of it.

    Raises:
        UserError: it lies in another run, whose folder is where they belong, or elsewhere under such a name.
    """
    if not recorded.is_path(which):
        return
    folder = Path(which).expanduser().absolute()
    run, number = folder.parent.parent, folder.name.isdecimal()
    if folder.parent.resolve() == (workdir / "checkpoints").resolve() and folder.name != _START:
        return
    if folder.parent.name == "checkpoints" and os.path.exists(run / recorded.NAME):
        typed = f"--workdir={run} --checkpoint={kept.name_of(folder) if number else which}"
        raise UserError(
            f"--checkpoint: {which} belongs to the run in {run}, whose results do not belong into {workdir}: "
            f"expected {typed}"
        )
    if number or folder.name == _START:
        raise UserError(
            f"--checkpoint: {which}: its results would be called as those of {kept.name_of(folder)} of the run in "
            f"{workdir}: expected a folder whose name is neither a number nor {_START}"
        )
