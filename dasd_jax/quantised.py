"""Arrays in int8 with scales: what decoding reads of them is half the bytes of bfloat16."""

import jax.numpy as jnp
from flax import struct

from dasd_jax.batch import Array

_LARGEST = 127  # symmetric: -128 is not used, and 0 stays 0


@struct.dataclass
class Quantised:
    """values · scale, in the place of an array in products and lookups.

    A scale is shared along the axis that a product sums over, so that the product of the values is multiplied by it.

    Attributes:
        values: int8[...].
        scale: f32, in the shape of `values` without that axis.
        dtype: of the products' arguments.
    """

    values: Array
    scale: Array
    dtype: jnp.dtype = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that it stands for."""
        return self.values.shape

    @property
    def unscaled(self) -> Array:
        """The values in `dtype`, which holds them exactly; the scale is left to the caller."""
        return self.values.astype(self.dtype)


def quantise(x: Array, axis: int) -> Quantised:
    """x in int8, with one scale for all numbers along `axis`: the largest of them becomes 127 or -127.

    Each number is off by at most half a scale, and by its rounding in float32. What is not finite makes its scale so.
    """
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=axis) / _LARGEST
    by = jnp.expand_dims(scale, axis)
    values = jnp.round(jnp.where(by > 0, wide / by, 0.0)).astype(jnp.int8)
    return Quantised(values, scale, x.dtype)


def quantise_like(x: Array, other: Array | Quantised) -> Array | Quantised:
    """x as it is written into `other`: quantised along its last axis where that is, and as it is where not."""
    return quantise(x, -1) if isinstance(other, Quantised) else x
