"""Conformance checks for models: any implementation can be tested by passing it in.

Each check takes ``make``, which builds an untrained model, and ``rows`` of (features, label) that
the model can learn: some dozens, with at least two labels and varied features.  It returns None or
raises :class:`CheckFailed`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from online.models.base import Model, Noting, Prediction
from online.models.errors import ModelError, NotAnswered, WeightUnsupported
from paramserver.core.blocks import ROWS, Block, Blocks, add_touched, combine, copy, merge, select
from replay.example import NOTES_BYTES_MAX, Example, Features, Label, label_text

Make = Callable[[], Model]
Rows = Sequence[tuple[Features, Label]]
Check = Callable[[Make, Rows], None]

_PASSES: Final = 3
"""Passes over the rows after which the moments of their numbers hardly change."""

_LACKING_MAX: Final = 16
"""Most columns that :func:`lacking` names."""

TOLERANCE: Final = 1e-9
"""Greatest difference of two answers, relative for numbers above 1, that counts as rounding."""


class CheckFailed(ModelError):
    """A model that fails a check: ``check`` is its name, ``reason`` what was observed."""

    check: str
    reason: str
    text = "{check}: {reason}"


def check_model(make: Make, rows: Rows) -> None:
    """Run all checks; raises CheckFailed at the first that fails."""
    for check in yield_checks():
        check(make, rows)


def yield_checks() -> Iterator[Check]:
    """Yield the checks, in order."""
    yield check_answers_before_learning
    yield check_structure_is_stable
    yield check_predict_changes_nothing
    yield check_many_is_one_by_one
    yield check_delta_composes
    yield check_cut_empties_the_delta
    yield check_reset_is_exact
    yield check_replicas_agree
    yield check_rebase_keeps_the_open_delta
    yield check_input_is_left_alone
    yield check_blocks_are_not_shared
    yield check_reset_after_an_error
    yield check_refused_weight_changes_nothing
    yield check_growth_is_bounded
    yield check_notes_are_optional


def lacking(make: Make, row: Features) -> list[str]:
    """Return the columns that the model needs for a prediction and that ``row`` does not have."""
    missing: list[str] = []
    while len(missing) < _LACKING_MAX:
        try:
            make().predict({**row, **dict.fromkeys(missing, "a")})
        except NotAnswered as error:
            cause = error.__cause__
            if not isinstance(cause, KeyError):  # the checks report it
                return missing
            name = cause.args[0] if cause.args else None
            if not isinstance(name, str) or name in row or name in missing:
                return []
            missing.append(name)
        else:
            return missing
    return []


def check_answers_before_learning(make: Make, rows: Rows) -> None:
    """Check that an untrained model predicts any row, also one with unknown names."""
    model = make()
    for features, _ in rows[:5]:
        for row in (features, _with_unknown(features, 0)):
            if not isinstance(model.predict(row), Prediction):
                _fail("answers before learning", "predict returned no Prediction")


def check_structure_is_stable(make: Make, rows: Rows) -> None:
    """Check that ``structure`` is the same text for every copy, trained or not."""
    trained = make()
    _learn(trained, rows)
    if trained.structure != make().structure:
        _fail("structure is stable", "two copies have different texts")


def check_predict_changes_nothing(make: Make, rows: Rows, predictions: int = 400) -> None:
    """Check that predictions, also with new names, leave every byte of the state unchanged."""
    model, twin = make(), make()
    half = rows[: len(rows) // 2]
    _learn(model, half)
    _learn(twin, half)
    before = pickle.dumps(model)
    for i in range(predictions):
        features = rows[i % len(rows)][0]
        model.predict(features if i % 2 else _with_unknown(features, i))
    if pickle.dumps(model) != before:
        _fail("predict changes nothing", f"state differs after {predictions} predictions")
    delta, expected = model.cut(), twin.cut()
    if _no_opaque(delta) != _no_opaque(expected) or delta.keys() != expected.keys():
        _fail("predict changes nothing", "the delta differs from one without predictions")


def check_many_is_one_by_one(make: Make, rows: Rows) -> None:
    """Check that ``predict_many`` answers as ``predict`` does and changes no state."""
    model, plain = make(), [features for features, _ in rows]
    ragged = [_with_unknown(x, i % 3) if i % 2 else dict(reversed(x.items()))
              for i, x in enumerate(plain)]  # fmt: skip
    for learned in (False, True):
        if learned:
            _learn(model, rows)
        _answers(model, rows)  # some of river's estimators cache values at the first prediction
        before = pickle.dumps(model)
        for many in (plain, plain[:1], ragged, [_with_unknown(x, 0) for x in plain]):
            alone = [model.predict(x) for x in many]
            _compare("many is one by one", alone, model.predict_many(many))
        if pickle.dumps(model) != before:
            _fail("many is one by one", "predict_many changed the state")


def check_delta_composes(make: Make, rows: Rows) -> None:
    """Check that the deltas, merged in order, give the model."""
    model, values = make(), Blocks()
    for i in range(0, len(rows), 7):
        _learn(model, rows[i : i + 7])
        before = _answers(model, rows)
        merge(values, model.cut())
        _compare("delta composes: cut moved the answers", before, _answers(model, rows))
        _compare("delta composes", _answers(model, rows), _answers(_at(make, values), rows))


def check_cut_empties_the_delta(make: Make, rows: Rows) -> None:
    """Check that the open delta is empty after a cut or a reset."""
    model = make()
    _learn(model, rows)
    values = model.cut()
    for what, again in (("cut", model.cut()), ("reset", _reset(model, values).cut())):
        if any(block.data for block in again.values()):
            _fail("cut empties the delta", f"a cut after the {what} returned {list(again)}")


def check_reset_is_exact(make: Make, rows: Rows) -> None:
    """Check that ``reset`` sets exactly the values, whatever was learned, and ignores others."""
    model, values = make(), Blocks()
    half = rows[: len(rows) // 2]
    _learn(model, half)
    merge(values, model.cut())
    expected = _answers(model, rows)
    _learn(model, [(_with_unknown(x, i), y) for i, (x, y) in enumerate(rows[-10:])])
    foreign = {"digest": Block("digest", {"count": 3, "sum": 5})}
    model.reset({**copy(values), **foreign})
    _compare("reset is exact", expected, _answers(model, rows))
    model.reset({})
    _compare("reset is exact: empty values", _answers(make(), rows), _answers(model, rows))
    _learn(model, half)
    if model.mergeable:
        again = Blocks()
        merge(again, model.cut())
        _compare("reset is exact: then learn", expected, _answers(_at(make, again), rows))


def check_replicas_agree(make: Make, rows: Rows) -> None:
    """Check that two replicas that exchange deltas give the same answers."""
    a, b = make(), make()
    if not a.mergeable:
        return
    values = Blocks()
    for i in range(0, len(rows), 10):
        _learn(b, [(dict(reversed(x.items())), y) for x, y in rows[i + 5 : i + 10]])
        _learn(a, rows[i : i + 5])
        touched = merge(values, b.cut())
        add_touched(touched, merge(values, a.cut()))
        for replica in (a, b):
            replica.rebase(copy(select(values, touched)))
    _compare("replicas agree", _answers(a, rows), _answers(b, rows))
    _compare(
        "replicas agree: with the values", _answers(a, rows), _answers(_at(make, values), rows)
    )


def check_rebase_keeps_the_open_delta(make: Make, rows: Rows) -> None:
    """Check that ``rebase`` keeps the open delta on top of the new values."""
    model, twin, other = make(), make(), make()
    if not model.mergeable:
        return
    third = len(rows) // 3
    values = Blocks()
    for replica in (model, twin):
        _learn(replica, rows[:third])
        values = replica.cut()
    _learn(model, rows[third : 2 * third])
    _learn(twin, rows[third : 2 * third])
    own = twin.cut()
    _learn(_reset(other, copy(values)), rows[2 * third :])
    touched = merge(values, other.cut())
    model.rebase(copy(select(values, touched)))
    expected = _answers(_at(make, combine(values, own)), rows)
    _compare("rebase keeps the open delta", expected, _answers(model, rows))
    _learn(model, rows[:3])
    expected = _answers(model, rows)
    later = combine(values, model.cut())
    _compare("rebase keeps the open delta: cut", expected, _answers(_at(make, later), rows))


def check_input_is_left_alone(make: Make, rows: Rows) -> None:
    """Check that the model neither changes the caller's features nor keeps a reference to them."""
    model, twin = make(), make()
    for features, label in rows:
        given = dict(features)
        model.predict(given)
        _learn(model, [(given, label)])
        if list(given.items()) != list(features.items()):
            _fail("input is left alone", f"the row became {given!r:.200}")
        for name, value in given.items():
            given[name] = 1e3 if isinstance(value, (int, float)) else "changed"
        given["changed"] = 1e3
        _learn(twin, [(features, label)])
    _compare("input is left alone: kept", _answers(twin, rows), _answers(model, rows))


def check_blocks_are_not_shared(make: Make, rows: Rows) -> None:
    """Check that blocks passed in and returned share no container with the model."""
    model, twin = make(), make()
    half = len(rows) // 2
    for replica in (model, twin):
        _learn(replica, rows[:half])
    _spoil(model.cut())
    values = twin.cut()
    _compare("blocks are not shared: cut", _answers(twin, rows), _answers(model, rows))
    for verb in ("reset", "rebase"):
        given = copy(values)
        getattr(model, verb)(given)
        _spoil(given)
        _compare(f"blocks are not shared: {verb}", _answers(twin, rows), _answers(model, rows))
        _learn(model, rows[half:])
        _learn(twin, rows[half:])
        _compare(f"blocks are not shared: {verb}", _answers(twin, rows), _answers(model, rows))
        model.reset(copy(values))
        twin.reset(copy(values))


def check_reset_after_an_error(make: Make, rows: Rows) -> None:
    """Check that after a row that raised, ``reset`` and replayed rows restore the state."""
    model, twin = make(), make()
    third = len(rows) // 3
    values = Blocks()
    for replica in (model, twin):
        _learn(replica, rows[:third])
        values = replica.cut()
        _learn(replica, rows[third : 2 * third])
    features, label = rows[-1]
    try:
        _learn(model, [({**features, "new name": 1.0, "text": "no number"}, label)])
    except Exception:
        pass
    model.reset(copy(values))
    _learn(model, rows[third : 2 * third])
    _compare("reset after an error", _answers(twin, rows), _answers(model, rows))
    clean = _at(make, values)
    _learn(clean, rows[third : 2 * third])
    if _no_opaque(model.cut()) != _no_opaque(clean.cut()):
        _fail("reset after an error", "the delta differs from one without the error")


def check_refused_weight_changes_nothing(make: Make, rows: Rows) -> None:
    """Check that a weight is learned, or refused with WeightUnsupported without any change."""
    model = make()
    if not model.learns:
        return
    _learn(model, rows[:-1])
    before = pickle.dumps(model)
    features, label = rows[-1]
    try:
        model.learn(dict(features), label, 2.5)
    except WeightUnsupported:
        if pickle.dumps(model) != before:
            _fail("refused weight changes nothing", "state differs after the refusal")


def check_growth_is_bounded(make: Make, rows: Rows) -> None:
    """Check that rows with known names add no keys to state or delta.

    The first passes may still add some: numbers are scaled by the rows before them, so the same row
    is encoded differently later.
    """
    model, values = make(), Blocks()
    for _ in range(_PASSES):
        _learn(model, rows)
    merge(values, model.cut())
    names = len({name for features, _ in rows for name in features}) + 1
    state = {name: max(len(block.data), names) for name, block in _no_opaque(values).items()}
    for _ in range(_PASSES + 1):  # what adds a key for each row adds more than before
        _learn(model, rows)
    delta = model.cut()
    for name, block in _no_opaque(delta).items():
        if len(block.data) > state.get(name, 0):
            reason = f"block {name!r} has {len(block.data)} keys after the same rows again"
            _fail("growth is bounded", f"{reason}, at most {state.get(name, 0)} are due")


def check_notes_are_optional(make: Make, rows: Rows) -> None:
    """Check that notes are small, and that notes of another form are ignored."""
    model, *others = (make() for _ in range(5))
    if not isinstance(model, Noting):
        return
    damaged = (None, b"", bytes(3), bytes(NOTES_BYTES_MAX))
    for features, label in rows:
        answer = model.predict(features)
        if answer.notes is not None and len(answer.notes) > NOTES_BYTES_MAX:
            _fail("notes are optional", f"they take {len(answer.notes)} bytes")
        model.learn(features, label, 1.0)
        shares = {label_text(k): p for k, p in (answer.probabilities or {}).items()}
        for other, notes in zip(others, damaged, strict=True):
            assert isinstance(other, Noting)
            other.learn_noted(Example(dict(features), label, score=shares, notes=notes), 1.0)
    for other in others:
        _compare("notes are optional: damaged", _answers(model, rows), _answers(other, rows))


def _fail(check: str, reason: str) -> None:
    raise CheckFailed(check, reason)


def _learn(model: Model, rows: Rows) -> None:
    if model.learns:
        for features, label in rows:
            model.learn(features, label, 1.0)


def _at(make: Make, values: Blocks) -> Model:
    return _reset(make(), copy(values))


def _reset(model: Model, values: Blocks) -> Model:
    model.reset(values)
    return model


def _with_unknown(features: Features, i: int) -> Features:
    return {**features, f"unknown {i}": 1.5}


def _answers(model: Model, rows: Rows) -> list[Prediction]:
    return [model.predict(features) for features, _ in rows]


def _no_opaque(blocks: Blocks) -> Blocks:
    return {name: block for name, block in blocks.items() if block.kind != "opaque"}


def _spoil(blocks: Blocks) -> None:
    for block in blocks.values():
        if isinstance(block.data, dict):
            block.data.clear()
        elif block.kind == ROWS:
            block.data.put(block.data.ids.copy(), np.full_like(block.data.numbers, np.nan))


def _compare(check: str, expected: list[Prediction], got: list[Prediction]) -> None:
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        if not _same(a, b):
            _fail(check, f"row {i}: expected {a!r:.300}, got {b!r:.300}")


def _same(a: Prediction, b: Prediction) -> bool:
    if a.probabilities is not None and b.probabilities is not None:
        if a.probabilities.keys() != b.probabilities.keys():
            return False
        if not all(_close(p, b.probabilities[label]) for label, p in a.probabilities.items()):
            return False
        if a.label == b.label:
            return True
        # Of two labels within rounding either may be the answer.
        if a.label is None or b.label is None:
            return False
        return _close(a.probabilities.get(a.label, 0.0), a.probabilities.get(b.label, -1.0))
    if a.probabilities is not b.probabilities:
        return False
    if isinstance(a.label, float) and isinstance(b.label, float):
        return _close(a.label, b.label)
    return a.label == b.label


def _close(a: Any, b: Any) -> bool:
    return bool(abs(a - b) <= TOLERANCE * max(1.0, abs(a)))
