"""Python environments of peers, installed from pinned versions, and reused while the versions are unchanged."""

import hashlib
import subprocess
import sys
from pathlib import Path

from slicemill.common.errors import InputError
from slicemill.common.files import write_bytes
from slicemill.common.terminal import print_line

NNUNET_FOLDER = Path(__file__).parents[1] / "studies" / "nnunet"
"""Folder with the requirements of nnU-Net."""


def prepare_environment(folder: Path, requirements: Path, name: str) -> Path:
    """Return the interpreter of the environment in `folder`, and install it if the versions in `requirements` changed.

    Raises
    ------
    InputError
        The installation failed. The message holds the installer's last line and the path of its log.
    """
    python, marker = folder / "environment" / "bin" / "python", folder / "installed"
    stamp = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if marker.exists() and marker.read_text(encoding="utf-8") == stamp:
        return python
    print_line(f"{name}: installing into a separate environment")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "install.log"
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(folder / "environment")],
        [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-r", str(requirements)],
    )
    with log.open("w", encoding="utf-8") as stream:
        for words in commands:
            done = subprocess.run(  # noqa: S603 (this interpreter and that of the environment)
                words, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, check=False
            )
            if done.returncode:
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                last = lines[-1] if lines else "no message"
                raise InputError(f"{name}: cannot be installed: {last} Installer log: {log}.")
    write_bytes(marker, stamp.encode())
    return python
