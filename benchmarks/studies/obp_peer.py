"""The peer of the off-policy table: SNIPS and DR of the Open Bandit Pipeline (`obp`, 2023).

It asks for Python below 3.11, so it is not installed; `pip install --ignore-requires-python
--no-deps -t FOLDER obp==0.5.7` brings its estimators, which are read here without the rest of it.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np


def estimators(folder: Path) -> tuple[Any, Any]:
    """SNIPS and DR.  FileNotFoundError without the package in the folder."""
    if not (folder / "obp").is_dir():
        raise FileNotFoundError(f"no obp in {folder}; install it there")
    sys.path.insert(0, str(folder))
    for name in ("obp", "obp.ope"):  # their own modules import what the estimators do not need
        module = types.ModuleType(name)
        module.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = module
    from obp.ope.estimators import DoublyRobust, SelfNormalizedInverseProbabilityWeighting

    return SelfNormalizedInverseProbabilityWeighting(), DoublyRobust()


def judge(peers: tuple[Any, Any], log: list[tuple[Any, ...]]) -> tuple[float, float]:
    """Judge a log with both: reward, chosen action, its propensity, what is wanted, expected."""
    reward, chosen, pscore, wanted, expected = (np.array(x) for x in zip(*log, strict=True))
    snips, dr = peers
    told = {"reward": reward, "action": chosen, "pscore": pscore, "action_dist": wanted[..., None]}
    model = {"estimated_rewards_by_reg_model": expected[..., None]}
    return snips.estimate_policy_value(**told), dr.estimate_policy_value(**told, **model)
