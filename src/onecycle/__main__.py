"""`python -m onecycle` is `onecycle`."""

import sys

from onecycle.cli import main

sys.exit(main())
