"""`--provider auto` takes OpenVINO only where it computes in bfloat16 and labels as float32; else it says why not.

The processor and OpenVINO are stand-ins: a session of onnxruntime that names a number format and may change labels.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from slicemill import doctor
from slicemill.common import machine
from slicemill.common.errors import ProviderError
from slicemill.infer.network import bfloat16
from slicemill.infer.network import model as models
from slicemill.infer.network.bfloat16 import choose_bfloat16, draw_slices
from slicemill.infer.network.model import open_model
from tests.infer.networks import SIDE, write_model

RESULTS = Path(__file__).parents[2] / "bench" / "results"


class StandIn:
    """A session as OpenVINO's: it names its number format, and the labels of `differing` pixels a slice are wrong."""

    def __init__(self, session, precision="bf16", differing=0):
        self.session, self.precision, self.differing = session, precision, differing

    def run(self, names, feed):
        (label,) = self.session.run(names, feed)
        label = label.copy()
        label.reshape(len(label), -1)[:, : self.differing] ^= 1
        return [label]

    def __getattr__(self, name):
        return getattr(self.session, name)


@pytest.fixture
def path(tmp_path):
    return write_model(tmp_path / "m.onnx", {"liver": 1})


@pytest.fixture
def installed(monkeypatch):
    """A processor with bfloat16, and OpenVINO."""
    monkeypatch.setattr(bfloat16, "processor_flags", lambda: frozenset({"avx2", "amx_bf16"}))
    monkeypatch.setattr(bfloat16, "find_spec", lambda _: object())


def opener(path, **stand_in):
    def open_openvino():
        model = open_model(path, "cpu")
        model.session = StandIn(model.session, **stand_in)
        return model

    return open_openvino


def refuse():
    raise ProviderError("--provider openvino: no luck.")


@pytest.mark.parametrize(
    ("line", "expected"),
    [("flags\t\t: fpu avx2 amx_bf16", True), ("flags\t\t: fpu avx512_bf16", True), ("flags\t\t: fpu avx2", False)],
)
def test_the_processor_is_asked_by_its_flags(line, expected, monkeypatch):
    monkeypatch.setattr(machine, "_lines", lambda _: ["processor\t: 0", line])
    monkeypatch.setattr(bfloat16, "processor_flags", machine.processor_flags)
    assert bfloat16.has_bfloat16() is expected


def test_a_processor_without_bfloat16_changes_nothing(path):
    model = open_model(path, "cpu")
    assert choose_bfloat16(model, refuse) is model
    assert model.reason == "requested"


def test_the_missing_package_is_named(path, installed, monkeypatch):
    monkeypatch.setattr(bfloat16, "find_spec", lambda _: None)
    model = choose_bfloat16(open_model(path, "cpu"), refuse)
    assert "bfloat16 needs OpenVINO, which is not installed (pip install 'slicemill[openvino]')" in model.reason


def test_equal_labels_earn_it(path, installed):
    model = choose_bfloat16(open_model(path, "cpu"), opener(path))
    assert isinstance(model.session, StandIn)
    assert model.reason == ("bfloat16 by OpenVINO: 0.000% of the labels of two synthetic slices differ from float32")


def test_labels_that_differ_keep_float32_and_say_so(path, installed):
    model = choose_bfloat16(open_model(path, "cpu"), opener(path, differing=3))
    assert not isinstance(model.session, StandIn)
    assert f"in bfloat16 {3 / SIDE**2:.2%} of the labels of two synthetic slices differ (limit 0.05%)" in model.reason


def test_openvino_in_float32_is_no_gain(path, installed):
    model = choose_bfloat16(open_model(path, "cpu"), opener(path, precision="f32"))
    assert not isinstance(model.session, StandIn)
    assert "OpenVINO would compute in f32, not in bfloat16" in model.reason


def test_openvino_that_does_not_run_keeps_the_cpu(path, installed):
    model = choose_bfloat16(open_model(path, "cpu"), refuse)
    assert not isinstance(model.session, StandIn)
    assert "OpenVINO does not run it: --provider openvino: no luck" in model.reason


def test_auto_takes_it_and_a_requested_cpu_does_not(path, installed, monkeypatch):
    make_session = models.make_session

    def with_stand_in(content, path, provider, *more):
        if provider == "openvino":
            return StandIn(make_session(content, path, "cpu")[0]), provider, "requested"
        return make_session(content, path, provider, *more)

    monkeypatch.setattr(models, "make_session", with_stand_in)
    monkeypatch.setattr("slicemill.infer.runtime.providers.has_nvidia_driver", lambda: False)
    assert open_model(path, "auto").provider == "openvino"
    assert open_model(path, "cpu").provider == "cpu"
    assert open_model(path, "auto").lanes == open_model(path, "openvino").lanes


def test_the_slices_show_a_liver():
    image = draw_slices(4, (64, 48))
    assert (image.shape, image.dtype) == ((4, 64, 48), np.int16)
    assert all(np.mean((one > 60) & (one < 160)) > 0.1 for one in image)


class TestDoctor:
    def test_it_says_what_bfloat16_would_gain_and_what_is_missing(self, installed, monkeypatch):
        monkeypatch.setattr(doctor, "find_spec", lambda _: None)
        shown = doctor.describe_bfloat16()
        assert "OpenVINO is missing: pip install 'slicemill[openvino]'" in shown
        assert doctor.BFLOAT16_GAIN in shown

    def test_it_says_that_auto_takes_it(self, installed, monkeypatch):
        monkeypatch.setattr(doctor, "find_spec", lambda _: object())
        assert doctor.describe_bfloat16().startswith("--provider auto takes OpenVINO if")

    def test_it_promises_nothing_to_other_processors(self):
        assert doctor.describe_bfloat16() == "this processor has none"

    def test_its_figures_are_those_of_the_records(self):
        gains = [
            json.loads((RESULTS / f"{name}.json").read_text())["over onnxruntime fp32"]
            for name in ("openvino-avx512", "openvino")
        ]
        assert all(f"{gain:.1f} times" in doctor.BFLOAT16_GAIN for gain in gains)
