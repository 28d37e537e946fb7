"""The pack of onnxruntime-gpu for a GPU machine without a network."""

import importlib.util
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu" / "pack.py"
MACHINE_CODE, PTX = 2, 1
NEEDS = pytest.mark.skipif(not all(map(shutil.which, ("readelf", "strip", "xz"))), reason="needs readelf, strip and xz")


@pytest.fixture(scope="module")
def pack():
    spec = importlib.util.spec_from_file_location("pack", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(kind, arch, code):
    """Return one architecture's code with its header of 64 bytes."""
    header = struct.pack("<HHIQ", kind, 0x101, 64, len(code)) + bytes(12) + struct.pack("<I", arch)
    return header.ljust(64, b"\0") + code


def container(*entries):
    body = b"".join(entries)
    whole = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body
    return whole.ljust((len(whole) + 7) // 8 * 8, b"\0")


def section():
    """Return device code as nvcc lays it out: for several architectures, and for sm_90 alone."""
    several = container(
        entry(MACHINE_CODE, 80, b"eighty--"), entry(MACHINE_CODE, 90, b"ninety--"), entry(PTX, 90, b"ptx-----")
    )
    alone = container(entry(MACHINE_CODE, 90, b"sole----"))
    return several + bytes(16) + alone


@pytest.mark.parametrize(("keep_sole", "kept"), [(False, 8), (True, 16)])
def test_only_the_code_of_one_architecture_is_kept(keep_sole, kept, pack):
    library = b"before--" + section() + b"after---"
    pruned, count = pack.prune_device_code(library, 8, len(library) - 16, 90, keep_sole=keep_sole)
    assert (len(pruned), count) == (len(library), kept)
    assert (pruned[:8], pruned[-8:]) == (b"before--", b"after---")
    assert b"ninety--" in pruned
    assert (b"sole----" in pruned) == keep_sole
    assert b"eighty--" not in pruned
    assert b"ptx-----" not in pruned


@pytest.fixture
def wheels(tmp_path):
    """A wheel with a small library that has device code, and one with a library and tests."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    source, built = tmp_path / "a.s", tmp_path / "a.so"
    numbers = ",".join(str(byte) for byte in section())
    source.write_text(f'.section .nv_fatbin,"a",@progbits\n.align 8\n.byte {numbers}\n')
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", built, source], check=True)
    with zipfile.ZipFile(folder / "onnxruntime_gpu-1-cp312-cp312-manylinux_2_28_x86_64.whl", "w") as wheel:
        wheel.write(built, "onnxruntime/capi/libonnxruntime_providers_cuda.so")
        wheel.writestr("onnxruntime/__init__.py", "x = 1\n")
        wheel.writestr("onnxruntime/quantization/big.py", "x = 1\n")
        wheel.writestr("onnxruntime_gpu-1.dist-info/METADATA", "Name: onnxruntime-gpu\nVersion: 1\n")
    with zipfile.ZipFile(folder / "zarr-3-py3-none-any.whl", "w") as wheel:
        wheel.write(built, "zarr/lib.cpython-312.so")
        wheel.writestr("zarr/tests/test_a.py", "x = 1\n")
        wheel.writestr("zarr/testing.py", "x = 1\n")
    return folder


def run(*words):
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, check=False)


@NEEDS
@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
class TestScript:
    def test_two_archives_hold_what_a_run_loads(self, wheels, tmp_path):
        done = run(wheels, tmp_path / "out", "--arch", 90)
        assert done.returncode == 0, done.stderr
        names = {}
        for name in ("ort", "site"):
            with tarfile.open(tmp_path / "out" / f"{name}.tar.xz") as archive:
                names[name] = set(archive.getnames())
                archive.extractall(tmp_path / name, filter="data")
        assert names["ort"] == {
            "onnxruntime/capi/libonnxruntime_providers_cuda.so",
            "onnxruntime/__init__.py",
            "onnxruntime_gpu-1.dist-info/METADATA",
        }
        assert names["site"] == {"zarr/lib.cpython-312.so", "zarr/testing.py"}
        library = (tmp_path / "ort" / "onnxruntime/capi/libonnxruntime_providers_cuda.so").read_bytes()
        assert b"ninety--" in library
        assert b"eighty--" not in library
        assert (tmp_path / "site" / "zarr/testing.py").read_text() == "x = 1\n"

    def test_an_architecture_that_is_not_there_is_refused(self, wheels, tmp_path):
        done = run(wheels, tmp_path / "out", "--arch", 75)
        assert done.returncode == 1
        assert "has no machine code for sm_75" in done.stderr

    def test_a_folder_without_onnxruntime_gpu_is_refused(self, tmp_path):
        done = run(tmp_path, tmp_path / "out", "--arch", 90)
        assert done.returncode == 1
        assert "has 0 wheels of onnxruntime-gpu" in done.stderr
