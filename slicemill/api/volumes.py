"""Cases of a store as dictionaries of volumes, in the form that MONAI's transforms take. MONAI is not imported."""

from collections.abc import Sequence
from typing import Any, TypedDict, overload

import numpy as np
import numpy.typing as npt

from slicemill.common.files import Location
from slicemill.ct.geometry import RAS_TO_LPS
from slicemill.store.reader import Store, open_store


class Meta(TypedDict):
    """Where a volume lies."""

    affine: npt.NDArray[np.float64]
    """float64[4, 4], voxel (x, y, z, 1) to RAS mm."""
    spatial_shape: tuple[int, int, int]
    """x, y, z."""
    original_channel_dim: int
    """The channel comes first: 0."""
    filename_or_obj: str
    """Id of the case."""


class VolumeItem(TypedDict, total=False):
    """A case; ``label`` and its meta are absent without a mask."""

    image: npt.NDArray[np.int16]
    """int16[1, x, y, z], HU."""
    label: npt.NDArray[np.uint8]
    """uint8[1, x, y, z], label values."""
    image_meta_dict: Meta
    label_meta_dict: Meta
    case_id: str


class VolumeItems(Sequence[VolumeItem]):
    """The cases of a store as a sequence of dictionaries, each read when it is taken.

    They have the keys, the axes [channel, x, y, z] and the affine to RAS mm of MONAI's `LoadImaged` followed by
    `EnsureChannelFirstd`. Pass the sequence as the data of `monai.data.Dataset`, and begin the transforms with
    `ToMetaTensord`, which takes the affine from ``image_meta_dict``. x runs to the patient's left and y to posterior,
    as stored; `Orientationd` reorders them. If your network takes slices, use `slicemill.SliceDataset` instead.

    Parameters
    ----------
    store
        An open store, or its path or URL.
    cases
        Ids of the cases to use; by default all.

    Raises
    ------
    StoreError
        There is no such store or case.

    >>> items = slicemill.VolumeItems("lits-store")                                       # doctest: +SKIP
    >>> items[0]["image"].shape                                                           # doctest: +SKIP
    (1, 512, 512, 75)
    >>> monai.data.Dataset(items, Compose([ToMetaTensord(["image", "label"]), ...]))      # doctest: +SKIP
    """

    def __init__(self, store: Store | str | Location, *, cases: Sequence[str] | None = None) -> None:
        self.store = store if isinstance(store, Store) else open_store(store)
        self.case_ids = tuple(self.store.case_ids if cases is None else cases)
        self.store.check_known(self.case_ids)

    def __len__(self) -> int:
        return len(self.case_ids)

    @overload
    def __getitem__(self, index: int) -> VolumeItem: ...
    @overload
    def __getitem__(self, index: slice) -> "VolumeItems": ...
    def __getitem__(self, index: int | slice) -> "VolumeItem | VolumeItems":
        """Read the case at an index; a slice gives the sequence of these cases, and reads nothing."""
        if isinstance(index, slice):
            return VolumeItems(self.store, cases=self.case_ids[index])
        case = self.store[self.case_ids[index]]
        nz, ny, nx = case.image.shape
        meta = Meta(
            affine=RAS_TO_LPS @ case.affine,
            spatial_shape=(nx, ny, nz),
            original_channel_dim=0,
            filename_or_obj=case.case_id,
        )
        item = VolumeItem(image=_channel_first(case.image), image_meta_dict=meta, case_id=case.case_id)
        if case.label is not None:
            item["label"] = _channel_first(case.label)
            item["label_meta_dict"] = Meta(**meta)
        return item


def _channel_first(array: Any) -> npt.NDArray[Any]:
    """Return any[z, y, x] as any[1, x, y, z]."""
    return np.asarray(array).T[None]
