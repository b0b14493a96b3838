"""Training: from a data set to a published epsilon-prediction checkpoint."""

import worker as _worker  # noqa: F401  # before torch: settles how its CPU threads wait
