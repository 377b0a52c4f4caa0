"""Models: adapters and built-ins that turn what an estimator learns into blocks that merge.

The modules beside the sub-packages are those that programs import (``network``, ``estimator``,
``fm`` …) or that stored state names (``limited``, ``detector``); the sub-packages hold their parts.
"""

import evaluation  # noqa: F401  # before river: it puts off most of what river imports
