"""Made-up results of runs, and an experiment whose trainings are not run."""

from slicemill.bench.studies.design import ExperimentDesign
from slicemill.bench.studies.results import QUALITY_RUN, RegionVolumes, RunResult, ScoredCase, TrainingSummary

DESIGN = ExperimentDesign(
    variants={"default": {}, "one-slice": {"context": 1}}, settings={"width": 4}, folds=2, epochs=2, steps=3
)


def scored_case(patient, dice, part="test", volumes=(2.0, 2.0, 1.0), regions=("tumor",)):
    reference, predicted, overlap = volumes
    row = RegionVolumes(dice=dice, reference_ml=reference, predicted_ml=predicted, overlap_ml=overlap)
    return ScoredCase(case_id=f"{patient}-ct", patient_id=patient, part=part, regions=dict.fromkeys(regions, row))


def run_result(variant, cases, fold=0, seed=0, **inputs):
    return RunResult(
        benchmark=QUALITY_RUN,
        date="2026-11-28T20:00:00+00:00",
        variant=variant,
        fold=fold,
        seed=seed,
        **{"collection": "made-up", "settings": {"epochs": 2, "steps": 3}, **inputs},
        training=TrainingSummary(epochs=2, best_epoch=1, minutes=2.0, slices_per_second=20.0),
        minutes=3.0,
        cases=tuple(cases),
        machine={"commit": "abc"},
    )


def range_record(engines=None, not_run=None):
    """A record of `bench infer --range`; `engines` are the ratios over all slices by name."""

    def ratios(cpu):
        return {"wall": 9.0, "cpu": cpu}

    trunk = {
        "slices": 1000,
        "labeled": 310,
        "liver_share": 0.27,
        "equal": True,
        "results": {},
        "over all slices": ratios(3.0),
        "of the bare network on the slices labeled": ratios(0.96),
        "engines": {
            name: {"over all slices by onnxruntime": ratios(cpu), "labels_differing": 0.0}
            for name, cpu in (engines or {}).items()
        },
    }
    return {
        "benchmark": "infer-range",
        "date": "2026-11-28T20:00:00+00:00",
        "machine": {"cpu": "AMD EPYC", "cores": 2},
        "unit": "slices of 256x256",
        "rounds": 3,
        "load": 0.1,
        "rows": {"trunk": trunk},
        "not_run": not_run or {},
    }
