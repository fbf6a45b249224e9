"""The entry point of `python -m onecycle`, which is the same as the command `onecycle`."""

import sys

from onecycle.cli import main

sys.exit(main())
