"""The stages of the way from scans to masks: what the benchmark of each measures, what should bound it, and how much it does."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Slices of the scan, and interleaved rounds."""

    slices: int
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A benchmark."""

    what: str
    bound: str
    full: Scale
    quick: Scale
    """A look, where a figure to keep wants the full one."""
    takes_data: bool = True
    """Whether it runs on a scan of the user's."""
    command: tuple[str, ...] = ()
    """Words after `slicemill bench`, where the stage's own name will not do."""
    takes_environments: bool = False
    """Whether it runs tools of others, each in an environment of its own."""
    takes_cold: bool = False
    """Whether it can be measured with a cold page cache."""

    def scale(self, slices: int, rounds: int, *, quick: bool) -> Scale:
        """Return the scale, with what the user says in place of ours.

        >>> STAGES["store"].scale(0, 9, quick=True)
        Scale(slices=64, rounds=9)
        """
        ours = self.quick if quick else self.full
        return Scale(slices or ours.slices, rounds or ours.rounds)


STAGES = {
    "ingest": Stage(
        what="one case, NIfTI with its mask -> store: CPU time beside what people do today",
        bound="gzip decoding and compression",
        full=Scale(160, 5),
        quick=Scale(32, 3),
    ),
    "store": Stage(
        what="random slices with their labels out of a store, beside other readers of the same bytes",
        bound="decompression",
        full=Scale(160, 7),
        quick=Scale(64, 3),
        takes_cold=True,
    ),
    "loader": Stage(
        what="training pairs in batches, beside DataLoader workers",
        bound="decompression",
        full=Scale(160, 5),
        quick=Scale(64, 3),
    ),
    "train": Stage(
        what="whole training steps from the store, beside the bare network",
        bound="convolutions",
        full=Scale(64, 7),
        quick=Scale(32, 3),
    ),
    "export": Stage(
        what="a network -> a proved model file, beside torch's exporter alone",
        bound="torch's exporter",
        full=Scale(8, 5),
        quick=Scale(8, 3),
    ),
    "infer": Stage(
        what="scans -> masks and reports, beside the bare session, scripts and torch",
        bound="convolutions",
        full=Scale(256, 5),
        quick=Scale(32, 3),
        takes_data=False,
    ),
    "measure": Stage(
        what="all surface distances of a liver with twenty lesions, beside distance transforms",
        bound="nearest neighbors of surface points",
        full=Scale(600, 3),
        quick=Scale(96, 3),
        takes_data=False,
    ),
    "peers-loading": Stage(
        what="training slices on one core, beside MONAI, TorchIO, HDF5 and nnU-Net",
        bound="decompression",
        full=Scale(64, 5),
        quick=Scale(64, 3),
        command=("peers", "--kind", "loading"),
        takes_environments=True,
        takes_data=False,
    ),
    "peers-inference": Stage(
        what="scans -> masks with one network, beside MONAI, TorchIO, nnU-Net and the usual script",
        bound="convolutions",
        full=Scale(16, 5),
        quick=Scale(4, 3),
        command=("peers", "--kind", "inference"),
        takes_environments=True,
        takes_data=False,
    ),
}
