"""What holds for every test."""

import os
import signal

# A shell without job control starts what it puts into the background with SIGINT ignored, and children
# inherit that. The programs under test are to be interruptible wherever the suite is run from.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The suite starts this program about a thousand times: it is compiled once only, whatever the shell that runs
# the suite has set.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
