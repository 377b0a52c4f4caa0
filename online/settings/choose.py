"""Settings of a contextual bandit: a model that chooses among actions."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, model_validator

from online.settings.tree import Seconds, Tree
from replay.plain import is_plain, plain

_REWARD_MAX: Final = 1e9


class Choose(Tree):
    """How a model of `task: choose` chooses among actions, and which rewards it accepts."""

    policy: Literal[
        "auto", "greedy", "epsilon", "softmax", "squarecb", "confidence", "thompson"
    ] = Field("auto", description="exploration policy; greedy: no exploration")
    epsilon: float = Field(
        0.05, ge=0, le=1, description="policy: epsilon; share of choices drawn uniformly"
    )
    floor: float = Field(
        0.0,
        ge=0,
        le=1,
        description="least probability of each eligible action; at most a uniform share",
    )
    budget: float = Field(
        1.0, ge=0, le=1, description="greatest probability of all actions but the best together"
    )
    reward_range: tuple[float, float] = Field(
        (0.0, 1.0), description="the least and the greatest accepted reward"
    )
    default_reward: float | None = Field(
        None,
        description="reward of a choice for which none came within `reward_wait`; none: it teaches "
        "nothing",
    )
    reward_wait: Seconds = Field(
        600, description="how long a choice waits for the default reward, or for all its rewards"
    )
    record: Literal["behind", "before"] = Field(
        "behind",
        description="whether a choice that waits is written behind its answer, or before it: then "
        "no kill loses one",
    )
    aggregate: Literal["earliest", "sum", "last"] = Field(
        "earliest",
        description="how several rewards of a choice are combined: earliest: the first, at once; "
        "after `reward_wait`: their sum, clipped to `reward_range`, or the last",
    )
    rewards: dict[str, float] = Field(
        default_factory=dict,
        max_length=32,
        description="weights of named rewards, such as `{click: 0.1, purchase: 1}`: their weighted "
        "sum is learned, clipped to `reward_range`",
    )
    rewards_max: int = Field(
        64, ge=1, le=10_000, description="rewards per choice that are stored until it is learned"
    )
    apprentice: bool = Field(
        False,
        description="answer with the caller's own choice (`baseline`), learn from its reward, and "
        "count how often the model would have chosen it",
    )

    @model_validator(mode="after")
    def _fits(self) -> Choose:
        least, most = self.reward_range
        if not least < most or not abs(least) <= _REWARD_MAX or not abs(most) <= _REWARD_MAX:
            raise ValueError(
                f"reward_range: [{least:g}, {most:g}] is no range: the least first, within "
                f"±{_REWARD_MAX:g}"
            )
        if self.default_reward is not None and not least <= self.default_reward <= most:
            raise ValueError(
                f"default_reward: {self.default_reward:g} is not in reward_range, "
                f"[{least:g}, {most:g}]"
            )
        if self.record == "before" and not self.waits:
            raise ValueError(
                "record: before: no choice is written without `default_reward` or `aggregate`: set "
                "one of them, or leave it out"
            )
        for name, weight in self.rewards.items():
            if not name or not is_plain(name) or not abs(weight) <= _REWARD_MAX:
                raise ValueError(
                    f"rewards: {plain(name)!r}: {weight:g} is no name with a weight within "
                    f"±{_REWARD_MAX:g}"
                )
        return self

    @property
    def waits(self) -> bool:
        """Whether choices are journaled and something happens when their wait ends."""
        return self.default_reward is not None or self.aggregate != "earliest"

    def policy_parts(self) -> dict[str, Any]:
        """Return the settings that determine the probability of each action."""
        parts = self.model_dump(include={"epsilon", "floor", "budget"})
        return {"kind": self.policy, **parts}
