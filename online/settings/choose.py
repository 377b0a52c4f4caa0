"""Settings of a model that chooses among actions."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, model_validator

from online.settings.tree import Seconds, Tree
from replay.plain import is_plain, plain

_REWARD_MAX: Final = 1e9


class Choose(Tree):
    """How a model of `task: choose` chooses among actions, and what it takes for a reward."""

    policy: Literal[
        "auto", "greedy", "epsilon", "softmax", "squarecb", "confidence", "thompson"
    ] = Field("auto", description="how it explores; greedy: never")
    epsilon: float = Field(
        0.05, ge=0, le=1, description="policy: epsilon; share of choices that are drawn evenly"
    )
    floor: float = Field(
        0.0,
        ge=0,
        le=1,
        description="least probability of each action that may be chosen, at most an even share",
    )
    budget: float = Field(
        1.0, ge=0, le=1, description="most probability of all actions but the best one together"
    )
    reward_range: tuple[float, float] = Field(
        (0.0, 1.0), description="the least and the greatest reward that is taken"
    )
    default_reward: float | None = Field(
        None,
        description="what a choice is worth whose reward has not come within `reward_wait`; none: "
        "it teaches nothing",
    )
    reward_wait: Seconds = Field(
        600, description="how long a choice waits for the default, or for all of its rewards"
    )
    aggregate: Literal["earliest", "sum", "last"] = Field(
        "earliest",
        description="what is learned of several rewards of a choice: the first, at once; or, once, "
        "when `reward_wait` has passed: their sum, cut to `reward_range`, or the last",
    )
    rewards: dict[str, float] = Field(
        default_factory=dict,
        max_length=32,
        description="weights of named rewards, as `{click: 0.1, purchase: 1}`: what is learned is "
        "their weighted sum, cut to `reward_range`",
    )
    rewards_max: int = Field(
        64,
        ge=1,
        le=10_000,
        description="rewards of one choice that are kept until it is learned",
    )
    apprentice: bool = Field(
        False,
        description="answer the caller's own choice (`baseline`), learn from what comes of it, and "
        "count how often the model would have taken it, too",
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
        for name, weight in self.rewards.items():
            if not name or not is_plain(name) or not abs(weight) <= _REWARD_MAX:
                raise ValueError(
                    f"rewards: {plain(name)!r}: {weight:g} is no name with a weight within "
                    f"±{_REWARD_MAX:g}"
                )
        return self

    @property
    def waits(self) -> bool:
        """Whether each choice is written down, and something becomes of it when its wait ends."""
        return self.default_reward is not None or self.aggregate != "earliest"

    def policy_parts(self) -> dict[str, Any]:
        """Return what decides how likely each action is."""
        parts = self.model_dump(include={"epsilon", "floor", "budget"})
        return {"kind": self.policy, **parts}
