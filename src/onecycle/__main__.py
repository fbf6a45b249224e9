"""Run the `onecycle` command line by `python -m onecycle`."""

import sys

from onecycle.cli import main

sys.exit(main())
