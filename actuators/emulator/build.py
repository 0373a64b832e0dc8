"""Compiles the emulated NVML library at first use and keeps it in the user's cache."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..errors import EmulatorError

SOURCE = Path(__file__).with_name("nvml_emulator.c")
SONAME = "libnvidia-ml.so.1"
"""The name that pynvml loads: once a library with this soname is in the process, the loader returns it."""

FLAGS = (
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    f"-Wl,-soname,{SONAME}",
)


def cache_dir() -> Path:
    """Where compiled libraries are kept: `$XDG_CACHE_HOME/flyball`, else `~/.cache/flyball`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flyball"


def library_path(cache: Path | None = None) -> Path:
    """The emulated library, compiled if this source was never compiled with these flags.

    Args:
        cache: Folder of compiled libraries; `cache_dir()` by default.

    Raises:
        EmulatorError: if there is no C compiler, or it refuses the source.
    """
    source = SOURCE.read_bytes()
    key = hashlib.sha256(source + " ".join(FLAGS).encode() + os.uname().machine.encode()).hexdigest()[:16]
    folder = (cache or cache_dir()) / f"nvml-{key}"
    library = folder / SONAME
    if library.exists():
        return library
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise EmulatorError(
            "no C compiler found for the emulated NVML library; install one "
            "(Debian, Ubuntu: apt install gcc libc6-dev; Fedora: dnf install gcc) or set CC"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # many agents may start at once: each compiles to a name of its own and the last rename wins
    handle, scratch = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(handle)
    try:
        done = subprocess.run(
            [compiler, *FLAGS, "-o", scratch, str(SOURCE), "-lm", "-lpthread"], capture_output=True, text=True
        )
        if done.returncode:
            raise EmulatorError(f"{compiler} refused {SOURCE.name}: {done.stderr.strip().splitlines()[-1:]}")
        os.replace(scratch, library)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return library
