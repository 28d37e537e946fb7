"""Builds the stand-ins for the CUDA libraries from the C sources in `libraries`.

A function that onnxruntime's CUDA provider needs and that no source defines is refused at run time: it returns the
library's error "not supported", and its line in the log says so.
"""

import importlib.metadata
import importlib.util
import mmap
import re
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent / "libraries"
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
"""Names the onnxruntime-gpu whose calls the stand-ins answer."""
LIBRARIES = {
    "cudart": "libcudart.so.13",
    "cublas": "libcublas.so.13",
    "cublasLt": "libcublasLt.so.13",
    "curand": "libcurand.so.10",
    "cuda": "libcuda.so.1",
    "cudnn": "libcudnn.so.9",
}
"""The name of each source, and of the library that it stands in for."""
SHARED = "libstand_in.so"
FLAGS = ("-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing")


def explain_missing() -> str | None:
    """Return what the dry card lacks here, or None."""
    (version,) = re.findall(r"^onnxruntime-gpu==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    try:
        found = importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return f"needs onnxruntime-gpu {version}; run `make card`"
    if found != version:
        return f"needs onnxruntime-gpu {version}, not {found}; run `make card`"
    if not (shutil.which("cc") and shutil.which("nm")):
        return "needs a C compiler (cc) and nm"
    return None


def build(folder: Path) -> None:
    """Write all libraries into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _run("cc", *FLAGS, "-shared", SOURCES / "shared.c", "-o", folder / SHARED, f"-Wl,-soname,{SHARED}")
    needed = _needed(_provider())
    for source, library in LIBRARIES.items():
        (folder / f"refused_{source}.h").write_text("")
        _compile(folder, source)
        refused = sorted(needed[source] - _defined(folder / f"{source}.o"))
        (folder / f"refused_{source}.h").write_text("".join(f"REFUSE({name})\n" for name in refused))
        _compile(folder, source)
        names = (f"-Wl,-soname,{library}", "-Wl,--default-symver", "-Wl,-rpath,$ORIGIN")
        _run("cc", "-shared", folder / f"{source}.o", folder / SHARED, *names, "-o", folder / library)


def _compile(folder: Path, source: str) -> None:
    _run("cc", *FLAGS, "-I", SOURCES, "-I", folder, "-c", SOURCES / f"{source}.c", "-o", folder / f"{source}.o")


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _provider() -> Path:
    """Return onnxruntime's library of the CUDA provider, without importing onnxruntime."""
    origin = importlib.util.find_spec("onnxruntime").origin
    return Path(origin).parent / "capi" / "libonnxruntime_providers_cuda.so"


def _needed(provider: Path) -> dict[str, set[str]]:
    """Return the functions that the provider takes from each library; it links all but cuDNN's, which it names."""
    needed: dict[str, set[str]] = {source: set() for source in LIBRARIES}
    sources = {library: source for source, library in LIBRARIES.items()}
    for line in _run("nm", "-D", "--undefined-only", provider).splitlines():
        name, _, library = line.split()[-1].partition("@")
        if library in sources:
            needed[sources[library]].add(name)
        elif re.match("cu[A-Z]", name):
            needed["cuda"].add(name)
    with provider.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        needed["cudnn"] = {name.decode() for name in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", content)}
    assert all(len(needed[source]) > 10 for source in ("cudart", "cublas", "cudnn"))
    return needed


def _defined(compiled: Path) -> set[str]:
    return {line.split()[-1] for line in _run("nm", "--defined-only", compiled).splitlines()}
