"""What the steps of learning are compiled for."""

import dataclasses
from typing import Any

from dasd_jax.model.config import ModelConfig
from dasd_jax.objective.contract import Method, Shape, View
from dasd_jax.objective.correction import Correction
from dasd_jax.objective.surrogate import ClipRange


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What the steps are compiled for; hashable, a static argument."""

    model: ModelConfig
    method: Method
    hp: Any  # an object of method.fields
    shape: Shape
    clip: ClipRange
    temperature: float
    microbatches: int  # parts of a minibatch
    token_chunk: int  # tokens a device whose logits exist at one time
    row_shards: int  # devices that share the rows, for the size of a chunk
    correction: Correction = Correction()
    width_tile: int = 128  # tokens; shorter widths than R are multiples of it, by default a TPU's lanes

    def widths(self, longest: int) -> tuple[int, ...]:
        """The widths that responses of up to `longest` tokens are computed at, ascending.

        Quarters in whole tiles, since each of them is one more compilation of the model; where a quarter is less than
        a tile there is too little to save, and the whole width is the only one.
        """
        if longest < 4 * self.width_tile:
            return (longest,)
        quarter = -(-longest // (4 * self.width_tile)) * self.width_tile
        return (*range(quarter, longest, quarter), longest)

    @property
    def parts(self) -> int:
        """Parts that a rollout batch is cut into."""
        return self.shape.minibatches * self.microbatches

    def splits(self, problems: int) -> int:
        """The groups that each problem's rollouts are split into, so that every part has equally many on every device.

        1 where the parts have whole problems for every device.

        Raises:
            ValueError: not even single rollouts come out even; `run.setup.check_rows` refuses such a config.
        """
        for splits in range(1, self.shape.rollouts + 1):
            if self.shape.rollouts % splits == 0 and problems * splits % (self.parts * self.row_shards) == 0:
                return splits
        raise ValueError(f"{problems} × {self.shape.rollouts} rollouts, {self.parts} parts, {self.row_shards} devices")

    def chunk(self, rows: int) -> int:
        """Response positions at a time for which `token_chunk` tokens a device hold logits."""
        return max(1, self.token_chunk * self.row_shards // rows)

    @property
    def views(self) -> dict[str, View]:
        """The method's teachers."""
        return dict(self.method.views(self.hp))

    @property
    def scored(self) -> tuple[str, ...]:
        """The teachers whose statistics the method reads."""
        return self.method.scored(self.hp)
