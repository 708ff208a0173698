"""What holds for every test."""

import signal

# A shell without job control starts what it puts into the background with SIGINT ignored, and children
# inherit that. The programs under test are to be interruptible wherever the suite is run from.
signal.signal(signal.SIGINT, signal.default_int_handler)
