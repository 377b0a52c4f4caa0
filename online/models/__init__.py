"""Models: how river estimators and plain Python classes become blocks."""

import evaluation  # noqa: F401  # before river: it puts off most of what river imports
