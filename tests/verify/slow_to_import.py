"""Burns more CPU time on import than an item may have."""

import time

from graders import right  # noqa: F401

while time.process_time() < 2.5:
    pass
