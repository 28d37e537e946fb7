"""Without the package onnx, what needs it names the extra to install; see `slicemill.common.extras`."""

import sys

import pytest

from slicemill.common.errors import ModelError
from slicemill.infer.network.external_weights import EXTERNAL_DATA, read_weights_beside
from slicemill.infer.network.foreign import wrap_network
from slicemill.infer.tune import check_writable


@pytest.mark.parametrize(
    "use",
    [
        lambda path: read_weights_beside(EXTERNAL_DATA, path),
        lambda path: wrap_network(b"", path, path.with_suffix(".toml")),
        check_writable,
    ],
)
def test_the_message_names_the_extra(use, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModelError, match=r"needs the package onnx\. Run: pip install 'slicemill\[train\]'\."):
        use(tmp_path / "m.onnx")
