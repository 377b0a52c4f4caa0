"""Bodies of choices and of their rewards, as validated structs."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from online.messages.structs import FromPeer

_REWARD: Final = (
    "a number within the model's `reward_range`, or numbers by name where `choose.rewards` has them"
)
_ITS_ID: Final = (
    "its own id, which identifies repeats if rewards of a choice are summed or the last is taken"
)


class Action(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One of the actions from which one is chosen."""

    id: Annotated[str, Meta(min_length=1, description="its name, by which the model learns")]
    features: Annotated[
        dict[str, Any], Meta(description="its features, for actions that come and go")
    ] = {}


class Slot(msgspec.Struct, forbid_unknown_fields=True):
    """One of several positions for which an action is chosen, none of them twice."""

    id: Annotated[
        str, Meta(min_length=1, max_length=64, description="its name, added to the context")
    ]
    features: Annotated[dict[str, Any], Meta(description="features of this slot")] = {}
    exclude: Annotated[list[str], Meta(description="ids that may not be chosen here")] = []
    baseline: Annotated[
        str | None, Meta(description="the action that you would take in this slot")
    ] = None


class ChooseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The context of a choice (`context`), and the available actions."""

    actions: Annotated[list[Action], Meta(min_length=1)]
    context: Annotated[dict[str, Any], Meta(description="features of the situation")] = {}
    exclude: Annotated[
        list[str], Meta(description="ids of actions that may not be chosen this time")
    ] = []
    baseline: Annotated[
        str | None,
        Meta(description="the action that you would take; a model in `apprentice` mode takes it"),
    ] = None
    id: Annotated[
        str | None,
        Meta(
            description="your own short id for the reward, instead of a token: 1 to 64 letters, "
            "digits and `._:-`.  Every replica gives the same answer to a repeat with it"
        ),
    ] = None
    defer: Annotated[
        bool, Meta(description="the choice may not be used: no default reward before `…/activate`")
    ] = False
    max_age_ms: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="503 `too_old` if the model is older than this"),
    ] = None
    slots: Annotated[
        list[Slot] | None, Meta(description="several slots: the answer has an action for each")
    ] = None


class Ranked(msgspec.Struct, gc=False):
    """One action of an answer, with its probability and its expected reward."""

    id: str
    probability: float
    expected: float


class Chosen(msgspec.Struct, omit_defaults=True):
    """The chosen action, and the ranking of all actions."""

    id: Annotated[str, Meta(description="send it back with the reward")]
    action: str
    probability: Annotated[float, Meta(description="how likely this action was to be chosen")]
    ranking: list[Ranked]
    model: str
    version: str
    own: int
    age_ms: float | None
    updates_behind: int | None
    from_peer: FromPeer = False
    repeated: Annotated[
        bool, Meta(description="chosen before under this id; the version is the one of that time")
    ] = False
    agreed: Annotated[
        bool | msgspec.UnsetType,
        Meta(description="apprentice: whether the model would also have taken the baseline"),
    ] = msgspec.UNSET
    slot: Annotated[str | msgspec.UnsetType, Meta(description="which of several slots")] = (
        msgspec.UNSET
    )

    def __repr__(self) -> str:
        return f"<chosen {self.action!r} ({self.probability:.2f}) of {len(self.ranking)}>"


class ChosenSlots(msgspec.Struct):
    """The chosen action of each slot, each with an id for its reward."""

    slots: list[Chosen]
    model: str


class Reward(msgspec.Struct, forbid_unknown_fields=True):
    """The reward of a choice."""

    id: Annotated[str, Meta(description="the id of the choice: its token, or your own")]
    reward: Annotated[Any, Meta(description=_REWARD)]
    source: Annotated[str, Meta(max_length=256)] = "default"
    event_time: Annotated[float | None, Meta(description="POSIX seconds")] = None
    reward_id: Annotated[str, Meta(min_length=1, max_length=128, description=_ITS_ID)] | None = None


class RewardRequest(msgspec.Struct, forbid_unknown_fields=True):
    """One reward (`id` and `reward`), or many (`rewards`) in one transaction."""

    id: Annotated[str | None, Meta(description="the id of the choice: its token, or your own")] = (
        None
    )
    reward: Annotated[Any, Meta(description=_REWARD)] = None
    source: Annotated[str, Meta(max_length=256)] = "default"
    event_time: Annotated[float | None, Meta(description="POSIX seconds")] = None
    rewards: list[Reward] | None = None
    reward_id: Annotated[str, Meta(min_length=1, max_length=128, description=_ITS_ID)] | None = None
