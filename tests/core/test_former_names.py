"""Modules and names that were public in 0.1.0 are found, and are the very same objects."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECKS = {
    "submodules": """
from g2d.harden.step import Step
from g2d.harden.watch import Check
import g2d.harden, g2d.harden.course, g2d.harden.distil, g2d.harden.regularise
import g2d.training.recipes as now
from g2d.training.recipes.monitor import Check as same
assert Step is g2d.harden.Step is now.Step and Check is same
assert g2d.harden is now and g2d.harden.course.HardenedTraining is now.HardenedTraining
assert callable(g2d.harden.distil), "the function, not the module of that name"
from g2d.harden.adversarial import stale
assert stale is now.stale and not isinstance(now.adversarial, type(now))
""",
    "names": """
from g2d.harden import Course, lightly
from g2d.training.recipes import HardenedTraining, fgsm_light
assert (Course, lightly) == (HardenedTraining, fgsm_light)
""",
    "results": """
from g2d.results import read_results
import g2d, g2d.report.results
assert read_results is g2d.report.results.read_results
assert g2d.results is g2d.report.results
""",
    "cheap": """
import g2d, sys
assert "torch" not in sys.modules
""",
}


@pytest.mark.parametrize("check", CHECKS)
def test_a_fresh_process_finds_what_0_1_0_had(check):
    """Each in its own process: what was imported before decides how a module is found."""
    done = subprocess.run(
        [sys.executable, "-c", CHECKS[check]], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
