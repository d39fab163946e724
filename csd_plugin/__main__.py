"""`python -m csd_plugin` is the command `basicsr`; torchrun needs a module."""

import sys

from csd_plugin.cli import main

sys.exit(main())
