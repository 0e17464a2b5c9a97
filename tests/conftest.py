"""For all tests."""

from __future__ import annotations

import signal

# A shell starts ``pytest &`` with these ignored, and every process that a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
