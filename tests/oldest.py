"""Print the oldest versions that pyproject.toml allows, as constraints for pip; `make oldest` uses them."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for line in sum(
    (project["optional-dependencies"][extra] for extra in ("ingest", "cpu", "s3", "dicom")), project["dependencies"]
):
    name, version = re.match(r"([\w-]+)>=([\w.]+)", line).groups()
    sys.stdout.write(f"{name}=={version}\n")
