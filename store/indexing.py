"""Numpy indexing of an array of which only whole slices can be read: which slices to read, and what to take of them."""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Selection:
    """The slices to read for an index, and the index of the result in them."""

    slices: Sequence[int]
    """Indices of the slices to read, z; each once."""
    inner: tuple[Any, ...]
    """Numpy index into those slices, any[n, y, x]."""


def select(key: Any, count: int) -> Selection:
    """Return which slices an index needs, for an array any[z, y, x] of `count` slices.

    The result is that of numpy for every index that numpy accepts. Slices are chosen by the first axis if its index is
    an integer, a slice or a list; for any other index all slices are read.

    Raises
    ------
    IndexError
        A slice does not exist, or there are more indices than axes.

    >>> select((-1, 10), 40)
    Selection(slices=[39], inner=(0, 10))
    >>> select((..., 10, 10), 40)
    Selection(slices=range(0, 40), inner=(slice(None, None, None), 10, 10))
    """
    parts = key if isinstance(key, tuple) else (key,)
    if any(part is None or np.ndim(part) > 1 or isinstance(part, bool | np.bool_) for part in parts):
        return Selection(range(count), parts)
    if sum(not isinstance(part, EllipsisType) for part in parts) > 3:
        raise IndexError(f"too many indices: the array has 3 axes z, y, x, and {len(parts)} were indexed")
    first, *rest = parts or (slice(None),)
    if isinstance(first, EllipsisType):
        first = slice(None)
        if len(rest) == 3:  # the ellipsis stands for no axis
            first, *rest = rest
        else:
            rest = [slice(None)] * (2 - len(rest)) + rest
    return _select_first(first, tuple(rest), count)


def _select_first(first: Any, rest: tuple[Any, ...], count: int) -> Selection:
    if isinstance(first, slice):
        return Selection(range(count)[first], (slice(None), *rest))
    if np.ndim(first) == 0:
        return Selection([_check(operator.index(first), count)], (0, *rest))
    chosen = np.asarray(first)
    if chosen.dtype == bool:
        if len(chosen) != count:
            raise IndexError(f"a boolean index of {len(chosen)} values for {count} slices")
        chosen = np.flatnonzero(chosen)
    if not len(chosen):
        return Selection([], (np.empty(0, dtype=np.intp), *rest))
    if chosen.dtype.kind not in "iu":
        raise IndexError(f"slices are chosen by integers or booleans, not by {chosen.dtype}")
    slices, inverse = np.unique([_check(int(z), count) for z in chosen], return_inverse=True)
    return Selection(slices.tolist(), (inverse.ravel(), *rest))


def _check(z: int, count: int) -> int:
    if not -count <= z < count:
        raise IndexError(f"slice {z} of {count}")
    return z % count


class NumpyIndexing(ABC):
    """Numpy's protocols for an array any[z, y, x] of which whole slices can be read."""

    ndim = 3
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    @abstractmethod
    def read_many(self, indices: Sequence[int], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return several slices as any[n, y, x]."""

    def __getitem__(self, key: Any) -> Any:
        selection = select(key, self.shape[0])
        return self.read_many(selection.slices)[selection.inner]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:  # noqa: FBT001 (numpy's protocol)
        if copy is False:
            raise ValueError(f"{self!r} must be read from the store; use copy=None or copy=True")
        return self.read_many(range(self.shape[0])).astype(self.dtype if dtype is None else dtype, copy=False)

    @property
    def size(self) -> int:
        """Return the number of voxels."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the size of the voxels in memory, bytes."""
        return self.size * int(self.dtype.itemsize)
