"""Which OpenGL MuJoCo draws with. It reads MUJOCO_GL when it is imported, so the choice comes before the simulators."""

from __future__ import annotations

import os
import subprocess
import sys

from ...pipeline.errors import TaskError

BACKENDS = ("egl", "osmesa", "glfw")
"""In the order of trying: a GPU or Mesa without a display, Mesa in memory, a window system."""

_PROBE = """
import mujoco
context = mujoco.GLContext(16, 16)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
context.free()
"""


def choose_opengl() -> str:
    """Set MUJOCO_GL to what draws on this machine, unless the user has; return it.

    A backend is tried in a process of its own, since one that fails cannot be replaced in the same.

    Raises:
        TaskError: none draws; or MuJoCo is loaded already, without one.
    """
    stated = os.environ.get("MUJOCO_GL")
    if stated is None and "mujoco" in sys.modules:
        raise TaskError(
            "MuJoCo was loaded in this process without OpenGL; set the environment variable "
            f"MUJOCO_GL={'|'.join(BACKENDS)} before Python starts"
        )
    failures = {}
    for backend in BACKENDS if stated is None else (stated,):
        if backend == "glfw" and stated is None and not os.environ.get("DISPLAY"):
            failures[backend] = "no display"
            continue
        if (failure := _try(backend)) is None:
            os.environ["MUJOCO_GL"] = backend
            return backend
        failures[backend] = failure
    tried = "; ".join(f"{backend}: {failure}" for backend, failure in failures.items())
    raise TaskError(
        f"MuJoCo cannot render here{' with MUJOCO_GL=' + stated if stated else ''} (tried {tried}). "
        "On Debian or Ubuntu: apt-get install libegl1 libgl1-mesa-dri, then MUJOCO_GL=egl; or apt-get install "
        "libosmesa6, then MUJOCO_GL=osmesa. Without any, --out FILE.png draws curves"
    )


def _try(backend: str) -> str | None:
    """None if the backend draws, else why not."""
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return "no answer within 120 seconds"
    if probe.returncode == 0:
        return None
    lines = probe.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {probe.returncode}"
