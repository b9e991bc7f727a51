"""Settings that every test shares."""

from __future__ import annotations

import signal

from hypothesis import settings

# Timing one example of a property says little on a busy machine; pytest-timeout guards against hanging.
settings.register_profile("rayemu", deadline=None)
settings.load_profile("rayemu")

# A shell's background job ignores Ctrl-C, one of `nohup` SIGHUP, and so do their children; tests that send
# these want them heard.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)
