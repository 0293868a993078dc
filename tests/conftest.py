"""What holds for all tests."""

from __future__ import annotations

import signal

# Started in the background of a script, Ctrl-C is ignored, here and by all that is started from here; and it is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
