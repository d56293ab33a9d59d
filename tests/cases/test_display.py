"""Films without a display."""

import re

import pytest


@pytest.mark.slow
def test_32_without_a_display_there_is_a_film_or_a_message_that_names_the_way_out(run_case) -> None:
    sections = run_case("32-no-display")
    assert "rc=0" in sections[""], "the run itself draws nothing"
    for gl in ("", "egl", "osmesa", "glfw", "nonsense"):
        text = sections[f"MUJOCO_GL={gl}"]
        assert "Traceback" not in text, gl
        seconds = float(re.search(r"real\s+(\d+)m([\d.]+)s", text)[2])
        film = f"wrote work/film{gl}.gif" in text
        assert film or ("MUJOCO_GL" in text and "--out FILE.png draws curves" in text and seconds < 30), text
    assert "MUJOCO_GL=nonsense" in sections["MUJOCO_GL=nonsense"]
    assert "rc=0" in sections["curves need no OpenGL"]
    assert "wrote work/curves.png" in sections["curves need no OpenGL"]
