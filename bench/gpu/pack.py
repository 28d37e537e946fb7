"""Pack wheels for a GPU machine without a network: ORT.tar.xz (onnxruntime-gpu) and SITE.tar.xz (all other packages).

For measurements only, never for shipping. A wheel of onnxruntime-gpu has 244 MiB, most of it device code for many GPU
architectures. The pack keeps the device code of one, and leaves out what the Python module does not load: the C
library, TensorRT's provider, and the tools for quantization and transformers. Other packages lose tests and debug
symbols.

    python3 bench/gpu/pack.py WHEELS OUT --arch 90          # 90: H100, H200; needs readelf, strip and xz
"""

import argparse
import io
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

FATBIN_MAGIC = 0xBA55ED50
"""First word of a container of device code in the section ``.nv_fatbin``."""
CONTAINER_HEADER, ENTRY_HEADER = struct.Struct("<IHHQ"), struct.Struct("<HHIQ")
"""Magic, version, bytes of the header, bytes of the entries; kind, version, bytes of the header, bytes of the code."""
ARCH_OFFSET = 28
"""Bytes from the start of an entry to its architecture, a 32-bit number such as 90."""
MACHINE_CODE = 2
"""Kind of an entry that holds machine code; 1 is PTX."""
CUDA_PROVIDER = "libonnxruntime_providers_cuda.so"
NOT_LOADED = re.compile(
    r"onnxruntime/(transformers|quantization|tools|backend|datasets)/"
    r"|libonnxruntime\.so|providers_tensorrt|ThirdParty|Privacy"
)
"""Files of onnxruntime-gpu that the Python module does not load."""
NOT_NEEDED = re.compile(r"(^|/)(tests?|benchmarks)/|\.pyi$|\.(c|h|pyx|pxd)$|\.data/scripts/")
"""Files of other packages that a run does not need."""


def main() -> None:
    """Pack a folder of wheels and print the sizes."""
    parser = argparse.ArgumentParser(description="Pack wheels for a GPU machine without a network.")
    parser.add_argument("wheels", type=Path, help="Folder of wheels.")
    parser.add_argument("out", type=Path, help="Folder for ort.tar.xz and site.tar.xz.")
    parser.add_argument("--arch", type=int, required=True, help="Architecture to keep, for example 90 for sm_90.")
    parser.add_argument(
        "--keep-sole",
        action="store_true",
        help="Also keep containers whose code is for this architecture alone: CUTLASS kernels of language models. "
        "Try this if a run reports 'no kernel image'.",
    )
    options = parser.parse_args()
    wheels = sorted(options.wheels.glob("*.whl"))
    runtimes = [wheel for wheel in wheels if wheel.name.startswith("onnxruntime_gpu-")]
    if len(runtimes) != 1:
        raise SystemExit(f"{options.wheels}: has {len(runtimes)} wheels of onnxruntime-gpu; one is needed.")
    options.out.mkdir(parents=True, exist_ok=True)
    runtime = prune_runtime(read_wheels(runtimes, NOT_LOADED), options.arch, keep_sole=options.keep_sole)
    write_tar(options.out / "ort.tar.xz", runtime)
    others = read_wheels([wheel for wheel in wheels if wheel not in runtimes], NOT_NEEDED)
    write_tar(options.out / "site.tar.xz", strip_libraries(others))


def read_wheels(wheels: Iterable[Path], left_out: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files of wheels."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                if not member.is_dir() and not left_out.search(member.filename):
                    yield member.filename, archive.read(member)


def prune_runtime(files: Iterable[tuple[str, bytes]], arch: int, *, keep_sole: bool) -> Iterator[tuple[str, bytes]]:
    """Yield the files, with zeros for the device code of other architectures."""
    for name, content in files:
        if not name.endswith(CUDA_PROVIDER):
            yield name, content
            continue
        pruned, kept = prune_device_code(content, *fatbin_section(content), arch, keep_sole=keep_sole)
        if not kept:
            raise SystemExit(f"{name}: has no machine code for sm_{arch}; choose another --arch.")
        print(f"{name}: {kept / 2**20:.1f} MiB of device code for sm_{arch} kept")
        yield name, pruned


def fatbin_section(library: bytes) -> tuple[int, int]:
    """Return offset and size of the device code in a shared library."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(library)
        file.flush()
        table = subprocess.run(["readelf", "-SW", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\.nv_fatbin\s+PROGBITS\s+[0-9a-f]+\s+([0-9a-f]+)\s+([0-9a-f]+)", table)
    if found is None:
        raise SystemExit(f"{CUDA_PROVIDER}: has no section .nv_fatbin.")
    return int(found[1], 16), int(found[2], 16)


def prune_device_code(library: bytes, start: int, size: int, arch: int, *, keep_sole: bool) -> tuple[bytes, int]:
    """Return the library with zeros for other architectures' code and for PTX, and the number of bytes kept.

    A section is a row of containers at multiples of 8 bytes; a container is a row of entries, one per architecture.
    """
    data, position, kept = bytearray(library), start, 0
    while position < start + size - CONTAINER_HEADER.size:
        magic, _, header, length = CONTAINER_HEADER.unpack_from(data, position)
        if magic != FATBIN_MAGIC:
            position += 8
            continue
        entries = list(read_entries(data, position + header, length))
        sole = all(one_arch == arch for _, one_arch, _, _ in entries)
        for kind, one_arch, first, count in entries:
            if kind == MACHINE_CODE and one_arch == arch and (keep_sole or not sole):
                kept += count
            else:
                data[first : first + count] = bytes(count)
        position = (position + header + length + 7) // 8 * 8
    return bytes(data), kept


def read_entries(data: bytearray, start: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield kind, architecture, offset and bytes of the code of each entry of a container."""
    position = start
    while position < start + length - 32:
        kind, _, header, size = ENTRY_HEADER.unpack_from(data, position)
        yield kind, struct.unpack_from("<I", data, position + ARCH_OFFSET)[0], position + header, size
        position += header + size


def strip_libraries(files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Yield the files, shared libraries without debug symbols."""
    for name, content in files:
        if ".so" not in Path(name).name:
            yield name, content
            continue
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            subprocess.run(["strip", "--strip-debug", file.name], check=True)
            yield name, Path(file.name).read_bytes()


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files as a .tar.xz, whose bytes depend on the files only, and print its size."""
    with path.open("wb") as out, subprocess.Popen(["xz", "-T0", "-6", "-c"], stdin=subprocess.PIPE, stdout=out) as xz:
        assert xz.stdin is not None  # noqa: S101 (stdin is a pipe)
        with tarfile.open(fileobj=xz.stdin, mode="w|") as archive:
            for name, content in files:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o755
                archive.addfile(entry, io.BytesIO(content))
    if xz.returncode:
        raise SystemExit(f"{path}: xz failed with status {xz.returncode}.")
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
