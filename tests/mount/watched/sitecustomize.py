"""Python imports this at its start: the event loop of the mount that this process becomes is watched.

It is on the path of the mounts that tests start, so that they start as users start them: `-m attachfs`.
"""

import os
import sys
from pathlib import Path

if "mount" in sys.orig_argv and "LOOP_WATCHDOG_REPORT" in os.environ:
    sys.path.append(str(Path(__file__).parents[3]))

    from tests.mount.watchdog import ProcessorWatchdog, install

    install(ProcessorWatchdog(Path(os.environ["LOOP_WATCHDOG_REPORT"])))
