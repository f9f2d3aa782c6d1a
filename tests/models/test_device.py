"""What a process keeps for the device that was chosen."""

import platform
import subprocess
import sys

import pytest

SCORING = """
import resource, torch
from oodflow.evaluation.scoring import score_images
from oodflow.models.device import available_device
from oodflow.models.glow import Glow

device = available_device("cpu")
model, images = Glow(3, 2, 32), torch.zeros(256, 3, 32, 32, dtype=torch.uint8)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    score_images(model, images, None, device=device, batch_size=128)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do not ask so")
def test_tensors_on_the_cpu_lie_in_memory_that_the_process_has_already():
    """Otherwise the third scoring asks the system for some 24 000 pages."""
    words = [sys.executable, "-c", SCORING]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000
