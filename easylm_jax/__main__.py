"""`python -m easylm_jax` is the command `easylm`."""

import sys

from easylm_jax.cli.main import main

sys.exit(main())
