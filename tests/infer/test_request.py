"""Options of the command `infer`."""

from dataclasses import fields
from typing import get_args

import pytest
import typer

from slicemill.common.errors import UsageError
from slicemill.infer import request
from slicemill.infer.request import InferRequest, parse_devices
from slicemill.infer.runtime import providers
from tests.infer.commands import app


def test_the_command_has_every_field_as_a_parameter_and_every_rare_option_a_panel():
    command = typer.main.get_command(app()).commands["infer"]
    parameters = {one.name: one for one in command.params}
    assert list(parameters) == [*(one.name for one in fields(InferRequest)), "quiet", "verbose", "log_file"]
    options = [one for one in command.params if one.param_type_name == "option"]
    assert {one.rich_help_panel for one in options} == {
        None, "Input", "Output", "Network", "Machine", "Running again", "Messages",
    }  # fmt: skip
    assert {one.name for one in options if one.rich_help_panel is None} == {"out", "provider", "dry_run"}


def test_the_choices_of_provider_are_those_of_the_runtime():
    assert get_args(request.Provider) == get_args(providers.Provider)


@pytest.mark.parametrize("text", ["", "first", "0,,1", "-1", "0;1"])
def test_devices_are_numbers(text):
    with pytest.raises(UsageError, match="expected numbers of GPUs"):
        parse_devices(text)


def test_options_that_contradict_each_other_are_refused(tmp_path):
    for values, message in (
        ({}, "pass scans, folders, patterns or stores"),
        ({"inputs": ["a"], "watch": tmp_path}, "pass scans, folders, patterns or stores"),
        ({"watch": tmp_path, "shard": "0/2"}, "--watch cannot be combined with --scheduler, --shard"),
        ({"inputs": ["a"], "provider": "cpu", "devices": "0,1"}, "--device 0,1: cpu runs on one device"),
        ({"inputs": ["a"], "shard": "2/2"}, "--shard 2/2: expected I/N"),
    ):
        with pytest.raises(UsageError, match=message):
            InferRequest(model=tmp_path / "m.onnx", **values).check()
