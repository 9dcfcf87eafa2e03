"""The command ``engine``."""

from __future__ import annotations

import signal
import sys

from . import _engine


def main() -> None:
    # Python's own handler only takes a note, which nobody reads while the engine works.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_engine.main(sys.argv[1:]))
