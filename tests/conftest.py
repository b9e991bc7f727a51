"""Settings that every test shares."""

from __future__ import annotations

from hypothesis import settings

# Timing one example of a property says little on a busy machine; pytest-timeout guards against hanging.
settings.register_profile("rayemu", deadline=None)
settings.load_profile("rayemu")
