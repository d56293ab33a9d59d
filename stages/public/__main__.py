"""`python -m orrery` is `orrery`."""

import sys

from orrery.pipeline.cli import main

sys.exit(main())
