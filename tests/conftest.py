"""Settings that every test shares."""

from __future__ import annotations

import signal

from hypothesis import settings

# Timing one example of a property says little on a busy machine; pytest-timeout guards against hanging.
settings.register_profile("rayemu", deadline=None)
settings.load_profile("rayemu")

# A shell's background job ignores Ctrl-C, and so do its children; tests that interrupt want it heard.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
