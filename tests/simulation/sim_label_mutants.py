"""Rules of labels that change, taken out one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim_mutant import Mutant, only

_FINALS = "online.rows.finals"
_BASE = "online.learning.base"
_LOCAL = "online.learning.local_model"
_LEARNER = "online.learning.merged"
_CORRECTIONS = "online.replica.corrections"
_HISTORY = "online.rows.history"

_LABELS: Mapping[str, Any] = {"labels": True, "twice": False, "old": 0.0}
_DEFAULTS: Mapping[str, Any] = {**_LABELS, "defaults": True}

LABEL_MUTANTS: dict[str, Mutant] = {
    "a final label is a row of each who asks": Mutant(
        (
            (
                _FINALS,
                "return NewRow(final_key(first.key), name,",
                "return NewRow(event_key(_FINAL, f'{asked.at}{first.key.hex()}'), name,",
            ),
        ),
        climate=_LABELS,
        within=10,
    ),
    "a final label is a repeat of the provisional one": Mutant(
        ((_CORRECTIONS, "            if label.provisional:\n", "            if True:\n"),),
        climate=_LABELS,
        within=10,
    ),
    "no lesson is taken back": Mutant(
        ((_BASE, "        return first.label, first.weight\n", "        return None\n"),),
        climate=_LABELS,
        within=10,
    ),
    "a lesson is taken back at the weight that was sent": Mutant(
        ((_FINALS, "weight=provisional.weight * lesson.factor,", "weight=provisional.weight,"),),
        climate=_LABELS,
        within=20,
    ),
    "a lesson that is undone is taken back": Mutant(
        (
            (
                _BASE,
                "        if self.undone.has(first.partition, first.offset):\n",
                "        if False:\n",
            ),
        ),
        climate=only("rollback", "kill replica", **_LABELS, snapshot_s=0.1),
        within=100,
    ),
    "an event is taught again after its final label": Mutant(
        (
            (
                _HISTORY,
                "only = Only(absent=final_key(event.key)) if is_provisional(self.row) else None",
                "only = None",
            ),
        ),
        climate=only("freeze", **_LABELS),
        within=100,
        begin=3,
    ),
    "a lesson that is forgotten is taken back": Mutant(
        (
            (
                "online.rebuild.rebuild",
                "        return out or self._decisions.lacks(",
                "        return self._decisions.lacks(",
            ),
        ),
        climate={**_LABELS, "forgets": True, "relearns": 0.0},
        within=200,
        begin=7,
    ),
    "a server has a correction before what it corrects": Mutant(
        ((_LOCAL, "                held.add(delta.partition)\n", "                pass\n"),),
        climate=only("cut", "stall", "rollback", **_LABELS, snapshot_s=0.1),
        within=100,
    ),
    "a label by default is final": Mutant(
        (("online.serving.default_labels", "late=late, provisional=True)", "late=late)"),),
        climate=_DEFAULTS,
        within=40,
        begin=13,
    ),
    "a label by default has a key of its own": Mutant(
        (
            (
                "online.serving.default_labels",
                "        return joined(key, made, label, at, half.payload, late=late, "
                "provisional=True)\n",
                "        key = event_key('default', key.hex())\n"
                "        row = joined(key, made, label, at, b'', late=late, provisional=True)\n"
                "        return msgspec.structs.replace(row, over=None)\n",
            ),
            (
                "online.serving.default_labels",
                "from collections.abc import Callable, Sequence\n",
                "from collections.abc import Callable, Sequence\n"
                "import msgspec\n"
                "from online.rows.prediction_ids import event_key\n",
            ),
        ),
        climate=_DEFAULTS,
        within=40,
        begin=4,
    ),
}
