"""Contenders of row ``whole`` of `bench infer`: runs from files to files, and the network alone; time and peak memory.

Peak memory is that of a process of its own for each contender, because memory that one of them needed stays with its
process:

    python -m slicemill.bench.stages.infer_whole "with post-processing" model.onnx scans/
"""

import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib

from slicemill.bench.harness.clock import WallAndCpu, Work
from slicemill.bench.schema.networks import CaseCost, CaseCosts, WholeStages
from slicemill.bench.stages.infer_session import EVERY_SLICE, network_alone, open_on_all_cores, segment_all
from slicemill.common.terminal import peak_mib, print_line
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import Job
from slicemill.infer.network.model import open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.runtime.capacity import count_lanes

SESSION, LANES = "bare session", "bare lanes"
WITH_RULES, WITHOUT_RULES = "with post-processing", "without post-processing"
OPTIONS = {WITHOUT_RULES: InferOptions(postprocess=False, z_range="all"), WITH_RULES: EVERY_SLICE}
WAYS = (SESSION, LANES, *OPTIONS)
"""Names of the contenders."""


@dataclass(frozen=True, kw_only=True)
class WholeWork:
    """The work of one round: a model file, and a folder of scans."""

    model: Path
    scans: Path

    @cached_property
    def jobs(self) -> list[Job]:
        """Return the scans."""
        return gather([self.scans])[0]

    @cached_property
    def slices(self) -> int:
        """Return the number of slices of all scans."""
        return sum(nib.load(job.path).shape[2] for job in self.jobs)

    def contender(self, name: str, stages: WholeStages) -> Work:
        """Return the contender of that name, one of WAYS; a run from files to files notes its `stages` under it."""
        if name == SESSION:
            return network_alone(open_on_all_cores(self.model), self.scans, self.slices)
        model, options = open_model(self.model, "cpu"), OPTIONS.get(name)
        if options is None:
            return network_alone(model, self.scans, self.slices, lanes=count_lanes("cpu"))
        return lambda: stages.update({name: segment_all(model, self.jobs, self.model.parent, options)})

    def case_costs(self, times: WallAndCpu) -> CaseCosts:
        """Return what a case costs each contender: time from the measured rounds, and peak memory, measured here."""
        cases = len(self.jobs)
        costs = {
            name: CaseCost(
                seconds=round(times.wall[name].median / cases, 3),
                cpu_seconds=round(times.cpu[name].median / cases, 3),
                peak_mib=self.measure_peak_mib(name),
            )
            for name in times.wall
        }
        return CaseCosts(cases=cases, slices=self.slices, contenders=costs)

    def measure_peak_mib(self, name: str) -> int:
        """Run a contender once in a process of its own, and return the peak memory of that process, MiB.

        Raises
        ------
        RuntimeError
            The process failed.
        """
        words = [sys.executable, "-m", "slicemill.bench.stages.infer_whole", name, str(self.model), str(self.scans)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 (this interpreter)
        if done.returncode:
            raise RuntimeError(f"{name}: ended with {done.returncode}: {done.stderr[-500:]}")
        return int(done.stdout.splitlines()[-1])


def main() -> None:
    """Run one contender, and print the peak memory of this process, MiB."""
    name, model, scans = sys.argv[1:]
    WholeWork(model=Path(model), scans=Path(scans)).contender(name, {})()
    print_line(str(round(peak_mib())))


if __name__ == "__main__":
    main()
