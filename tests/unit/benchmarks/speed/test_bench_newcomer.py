"""The table of a first answer: this project's own two lines of it."""

from __future__ import annotations

from benchmarks.speed import newcomer


def test_our_lines_of_the_table() -> None:
    plain, declared = newcomer.run(None, runs=1)
    assert (plain.files, plain.lines, plain.processes, plain.learns) == (1, 2, 1, True)
    assert (declared.files, declared.processes) == (2, 1)
    assert plain.misspelt_field.startswith("422 feature: ")
    assert plain.misspelt_field.endswith("unknown field `feature`. Did you mean `features`?")
    assert plain.misspelt_name == "200 an answer"
    assert declared.misspelt_name.startswith("422 features.amuont: ")
    assert "Did you mean `amount`?" in declared.misspelt_name
    for line in (plain, declared):
        assert line.first_answer_s > 0
        assert line.memory_mb > 0


def test_the_peers_are_asked_the_same() -> None:
    ours, _, litserve, bentoml = newcomer.recipes(newcomer.Path("python"))
    assert [one.what for one in (ours, litserve, bentoml)] == [
        "this project",
        "LitServe",
        "BentoML",
    ]
    for one in (ours, litserve, bentoml):
        compile("".join(one.files.values()), one.what, "exec")
        pipeline = "preprocessing.StandardScaler() | linear_model.LogisticRegression()"
        assert pipeline in "".join(one.files.values())
