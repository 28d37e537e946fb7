"""The benchmarks of the stages from scans to masks: what each measures, its bound and its size (`stages.toml`)."""

from dataclasses import dataclass
from pathlib import Path

from slicemill.common.documents import from_toml

FILE = Path(__file__).with_name("stages.toml")


@dataclass(frozen=True, slots=True)
class Scale:
    """Slices of the scan, and rounds."""

    slices: int
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A benchmark."""

    what: str
    bound: str
    full: Scale
    quick: Scale
    takes_data: bool = True
    """Whether it accepts a user's scan."""
    command: tuple[str, ...] = ()
    """Words after `slicemill bench`, if they are not the name of the stage."""
    takes_environments: bool = False
    """Whether it runs other tools, each in its own environment."""
    takes_cold: bool = False
    """Whether it can be measured with a cold page cache."""

    def scale(self, slices: int, rounds: int, *, quick: bool) -> Scale:
        """Return the size; values above 0 that the user requested replace the defaults.

        >>> STAGES["store"].scale(0, 9, quick=True)
        Scale(slices=64, rounds=9)
        """
        defaults = self.quick if quick else self.full
        return Scale(slices or defaults.slices, rounds or defaults.rounds)


STAGES = from_toml(dict[str, Stage], FILE.read_text(encoding="utf-8"), FILE.name)
