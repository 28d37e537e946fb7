"""Slices of a store as a dataset of torch, for training code of your own.

The command `slicemill train` does not use it: `slicemill.train.data.dataset` decodes whole batches with threads, into
memory that is allocated once. Here each slice is read by itself, in the workers of a `torch.utils.data.DataLoader`.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, TypedDict

import torch
from torch.utils.data import Dataset, Sampler

from slicemill.common.errors import StoreError, UsageError
from slicemill.common.files import Location
from slicemill.ct.crop import centered_corner
from slicemill.store.model_card import CONTEXTS, MAX_SIDE
from slicemill.store.reader import Store, open_store
from slicemill.train.config import Config
from slicemill.train.data.dataset import SliceRegion, draw_corner, read_region
from slicemill.train.data.sampling import Pool, SlicePosition, draw_epoch, make_pool

NOT_SCALED = (1.0, 1.0)
"""Stored pixel size / pixel size of the item: slices are not resampled."""


class SliceItem(TypedDict):
    """One slice with its neighbors; the channels come first, as in MONAI's dictionaries."""

    image: torch.Tensor
    """int16[c, y, x], HU; the labeled slice is in the middle; slices beyond the first and last repeat them."""
    label: torch.Tensor
    """uint8[1, y, x], label values as stored; 0 without labels."""
    case_id: str
    z: int
    """Index of the labeled slice, from inferior to superior."""
    spacing_mm: torch.Tensor
    """float64[3], voxel spacing along z, y, x, mm."""


class DrawnSlice(NamedTuple):
    """An index of a `SliceDataset` that `TrainingSampler` draws: a slice, and the seed of its crop."""

    position: SlicePosition
    seed: tuple[int, int, int]
    """Seed of the run, epoch, and number within the epoch."""


class SliceDataset(Dataset[SliceItem]):
    """The slices of a store, each with its neighbors and labels, padded or cropped to one size.

    Slices are not resampled, windowed or augmented. All have one size, so that the default collation of a DataLoader
    makes batches of them: ``image`` int16[b, c, y, x], HU, and ``label`` uint8[b, 1, y, x]. Items are dictionaries with
    channels first, which MONAI's dictionary transforms take as they are.

    Parameters
    ----------
    store
        An open store, or its path or URL.
    cases
        Ids of the cases to use; by default all. The items are in their order, and within a case by z.
    context
        Slices in ``image``: 1, 3, 5 or 7; the middle one is labeled.
    context_spacing_mm
        Distance between these slices, mm; None uses adjacent slices.
    size
        Height and width, or one side, in pixels; by default those of the largest slices. Larger slices are cropped
        around their middle (around a drawn target with `sampler`), smaller ones are padded with air and background.
    labels
        Whether every case must have a mask. Without masks, ``label`` is 0 everywhere.

    Raises
    ------
    StoreError
        There is no such store or case, a case has no mask, or the cases have different labels.
    UsageError
        `context` or `size` is not possible.

    >>> dataset = slicemill.SliceDataset("lits-store", context=3, size=512)             # doctest: +SKIP
    >>> len(dataset), dataset[0]["image"].shape                                        # doctest: +SKIP
    (58638, torch.Size([3, 512, 512]))
    >>> loader = torch.utils.data.DataLoader(dataset, batch_size=16, num_workers=4,     # doctest: +SKIP
    ...     sampler=dataset.sampler(Config(tumor_share=0.5)))
    """

    def __init__(
        self,
        store: Store | str | Location,
        *,
        cases: Sequence[str] | None = None,
        context: int = 1,
        context_spacing_mm: float | None = None,
        size: int | tuple[int, int] | None = None,
        labels: bool = True,
    ) -> None:
        self.store = store if isinstance(store, Store) else open_store(store)
        self.case_ids = tuple(self.store.case_ids if cases is None else cases)
        self.store.check_known(self.case_ids)
        if not self.case_ids:
            raise StoreError("has no cases to read slices from.", where=self.store.root)
        if context not in CONTEXTS:
            raise UsageError(f"context = {context}: must be one of {', '.join(map(str, CONTEXTS))}.")
        opened = [self.store[case_id] for case_id in self.case_ids]
        if labels and (unmasked := [case.case_id for case in opened if case.label is None]):
            raise StoreError(
                f"{len(unmasked)} of the cases have no mask ({', '.join(unmasked[:3])}); pass cases= without them, or "
                "labels=False.",
                where=self.store.root,
            )
        named = [case for case in opened if case.info.labels is not None]
        for case in named:
            if case.info.labels != named[0].info.labels:
                raise StoreError(
                    f"{named[0].case_id} and {case.case_id} have different labels; pass cases= of one kind.",
                    where=self.store.root,
                )
        self.labels = named[0].info.labels if named else None
        """Names of the label values, organ and tumor; None if no case has a mask."""
        if size is None:
            size = max(case.image.shape[1] for case in opened), max(case.image.shape[2] for case in opened)
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        """Height and width of every item, pixels."""
        if not all(1 <= side <= MAX_SIDE for side in self.size):
            raise UsageError(f"size = {self.size}: must be 1 to {MAX_SIDE} pixels.")
        self._region = SliceRegion(size=self.size, context=context, context_spacing_mm=context_spacing_mm)
        self._ends = list(accumulate(len(case.image) for case in opened))

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        height, width = self.size
        return f"<{len(self)} slices {height}x{width} of {len(self.case_ids)} cases, context {self._region.context}>"

    def position(self, index: int) -> tuple[str, int]:
        """Return case id and z of the item at an index."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        index %= len(self)
        number = bisect_right(self._ends, index)
        return self.case_ids[number], index - (self._ends[number - 1] if number else 0)

    def __getitem__(self, index: int | DrawnSlice) -> SliceItem:
        """Return a slice by its index, or one that `sampler` drew."""
        if isinstance(index, DrawnSlice):
            case_id, z, _ = index.position
            case = self.store[case_id]
            corner = draw_corner(case, index.position, index.seed, self._region, NOT_SCALED)
        else:
            case_id, z = self.position(index)
            case = self.store[case_id]
            corner = centered_corner(case.image.shape[1:], self.size)
        image = torch.empty((self._region.context, *self.size), dtype=torch.int16)
        label = torch.empty((1, *self.size), dtype=torch.uint8)
        read_region(case, z, corner, self._region, image.numpy(), label.numpy())
        return SliceItem(
            image=image,
            label=label,
            case_id=case_id,
            z=z,
            spacing_mm=torch.tensor(case.spacing_mm, dtype=torch.float64),
        )

    def sampler(self, config: Config | None = None, *, first_epoch: int = 0) -> "TrainingSampler":
        """Return a sampler that draws the slices of each epoch as `slicemill train` does.

        Parameters
        ----------
        config
            Its `tumor_share`, `organ_share`, `lesion_balance`, `seed`, `batch` and `steps` are used: an epoch has
            `steps` times `batch` slices, or about as many as the dataset.
        first_epoch
            Number of the epoch that the first iteration draws; the next iteration draws the next one.

        Raises
        ------
        StoreError
            No case has a mask.
        UsageError
            The settings draw hard slices, of which the sampler does not know the losses, or choose the batch by memory.
        """
        return TrainingSampler(self, config or Config(), first_epoch=first_epoch)


class TrainingSampler(Sampler[DrawnSlice]):
    """Draws the slices of an epoch as `slicemill train` does; every iteration is the next epoch.

    It draws in the process of the DataLoader, so its workers may persist between epochs. The same seed and epoch give
    the same slices and crops.
    """

    def __init__(self, dataset: SliceDataset, config: Config, *, first_epoch: int = 0) -> None:
        if config.hard_share or not config.batch:
            raise UsageError(
                f"hard_share = {config.hard_share}, batch = {config.batch}: the sampler needs hard_share = 0, because "
                "it does not know the losses, and a batch of at least 1."
            )
        if dataset.labels is None:
            raise StoreError("no case has a mask to sample by.", where=dataset.store.root)
        self.epoch = first_epoch
        """Number of the epoch that the next iteration draws."""
        self._config = config
        labels = dataset.labels.without(config.ignore) if config.ignore else dataset.labels
        self._pool: Pool = make_pool(dataset.store, dataset.case_ids, labels, config)

    def __len__(self) -> int:
        return (self._config.steps or max(1, len(self._pool.slices) // self._config.batch)) * self._config.batch

    def __iter__(self) -> Iterator[DrawnSlice]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for number, position in enumerate(draw_epoch(self._pool, self._config, epoch)):
            yield DrawnSlice(position, (self._config.seed, epoch, number))
