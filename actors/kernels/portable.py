"""Switches code for single kinds of processors off: `TRIDEX_PORTABLE=1` leaves numpy, BLAS and torch's public API.

CI runs the tests of every kernel's portable counterpart this way (`make test-portable`). The answers are the same to
rounding, several times slower.
"""

from __future__ import annotations

import os

PORTABLE = os.environ.get("TRIDEX_PORTABLE", "0") not in ("", "0")
