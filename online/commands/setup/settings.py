"""`online config`: shows and checks the settings."""

from __future__ import annotations

import json

import typer
import yaml

from online.commands.base import AsJson, File, load_settings

app = typer.Typer(help="Show or check the settings.", no_args_is_help=True)


@app.command("show")
def config_show(path: File = None, as_json: AsJson = False) -> None:
    """Show every setting with its value, defaults included.

    Example: online config show online.yaml
    """
    data = load_settings(path).model_dump(mode="json")
    print(json.dumps(data) if as_json else yaml.safe_dump(data, sort_keys=False), end="")


@app.command("check")
def config_check(path: File = None) -> None:
    """Check a settings file, and that its models can be built and served with it.

    Example: online config check online.yaml
    """
    from online.models.loading.from_settings import merge_rule
    from online.service.state.check_state import load_checked

    settings = load_settings(path)
    for model in settings.models:
        rule = merge_rule(model, load_checked(model, settings).model)
        print(f"{model.name}: {model.purpose.name}, {model.learner}, merge: {rule}")
        if (challenging := model.challenging) is not None:
            print(f"{model.name}: challenger {challenging.learner}")
    print("the settings are good")
