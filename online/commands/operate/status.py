"""`online status` and `online fsck`: show what runs, and verify the stored state."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from online.commands.base import (
    Context,
    bar,
    checked,
    client_of,
    common,
    console,
    in_private,
    readable,
    span,
    table,
)
from online.messages.model_status import short

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from online.settings.config import Settings


@common(model=False)
def status(context: Context) -> None:
    """Show the running models: version, freshness, quality and replicas of each.

    Example: online status --json
    """
    reached = context.reached()
    client = client_of(reached, timeout_s=10.0)
    models = checked(client.get("/v1/models"))["models"]
    if context.as_json:
        print(json.dumps({"url": reached.url, "changing": reached.changing, "models": models}))
        return
    terminal = console()
    terminal.print(reached.url)
    if reached.changing is not None:
        since = time.strftime("%H:%M:%S", time.localtime(reached.changing))
        terminal.print(f"[yellow]new settings are applied since {since}; it answers[/yellow]")
    for model in readable(models):
        _show_model(terminal, model)


_QUALITY: Final = (
    "accuracy", "balanced_accuracy", "majority", "no_change", "kappa_m", "kappa_t", "log_loss",
    "brier", "ece", "auc", "f1", "mae", "rmse", "r2", "mean_mae", "last_mae",
)  # fmt: skip
_ACTIONS: Final = 10  # the most frequently chosen
_SLICES: Final = 8  # values per feature
_LACKS_S: Final = 5.0  # as in the alarm of docs/monitoring.md
_DRIFT: Final = {"act": "[red]{}[/red]", "watch": "[yellow]{}[/yellow]"}


def _show_model(console: Console, model: dict[str, Any]) -> None:
    server = model["server"]
    quality = model["quality"]
    console.print(f"\n[bold]{model['model']}[/bold]  {model['task']}, {model['learner']}")
    console.print(f"version {model['version']}   learned {model['learned']:,} events")
    scores = [(name, quality.get(name)) for name in _QUALITY]
    named = "  ".join(f"{name} {short(value)}" for name, value in scores if value is not None)
    console.print(f"prequential over {quality['n']:,} answers: {named or 'no answers yet'}")
    _show_choices(console, model.get("choices"))
    _show_conversions(console, model.get("conversions"))
    if (sure := model.get("confidence")) is not None and sure["n"]:
        held = f"{sure['size']:.2f} labels" if "size" in sure else f"width {sure['width']:.4g}"
        requested = f"asked {sure['level']:g}, {held} in the mean over {sure['n']:,} answers"
        console.print(f"sure: {sure['coverage']:.3f} of answers had the label ({requested})")
    if (sharp := model.get("calibration")) is not None and sharp["n"]:
        gained = f"log loss {-sharp['gained']:+.4f} a row over {sharp['n']:,} answers"
        console.print(f"calibrated: sharpness {sharp['sharpness']:.2f}, {gained}")
    if (drift := model["drift"]) is not None:
        state = _DRIFT.get(drift["state"], "{}").format(drift["state"])
        judged, many = drift["judged"], len(drift["replicas"])
        rows = f" ({judged:,} labelled rows" + (f" of {many} replicas)" if many else ")")
        counted = drift["why"].startswith(f"{judged} labelled rows")
        console.print(f"drift: {state}: {drift['why']}{'' if counted else rows}")
    if server is None:
        console.print("[red]parameter server: no contact; replicas answer and keep feedback[/red]")
    else:
        age = server["snapshot_age_s"]
        text = "none yet" if age is None else f"{age:.0f} s old"
        console.print(f"parameter server: {server['state']}; newest snapshot {text}")
        if server.get("reach_s") is not None:
            console.print(f"rollback reaches back {span(server['reach_s'])}")
        _show_shards(console, server.get("shards") or [])
        for name, reason in server["refused"].items():
            console.print(f"[red]snapshot {name} was refused: {reason}[/red]")
    _show_decisions(console, model["rewrites"])
    _show_room(console, model["journal"])
    _show_slices(console, model.get("slices") or {})
    _show_replay(console, model["replay"])
    _show_challenger(console, model.get("challenger"))
    if model["incident"]:
        console.print(f"[red]incident: {model['incident']}[/red]")
    numbers = ("predictions", "learned", "age ms", "rows behind", "contact", "canary")
    replicas = table("replica", *numbers, right=numbers)
    for name, report in model["replicas"].items():
        replicas.add_row(
            name,
            f"{report.get('predictions', 0):,.0f}",
            f"{report.get('learned', 0):,.0f}",
            f"{report['age_ms']:.0f}" if "age_ms" in report else "–",
            f"{report.get('behind_rows', 0):,.0f}",
            f"{report['contact_age_s']:.1f} s ago",
            _canary(report.get("unserved_s")),
        )
    console.print(replicas)


def _show_shards(console: Console, shards: list[dict[str, Any]]) -> None:
    """Print the state of each server of a model with several servers."""
    for number, shard in enumerate(shards):
        text = f"  shard {number}: {shard['state']}"
        if shard.get("reason"):
            text += f" ({shard['reason']})"
        if lacks := shard.get("lacks_rows"):
            text += f", lacks {lacks:,} rows of shard 0's"
        console.print(text, style=None if shard["state"] == "serving" else "red", markup=False)


def _canary(unserved_s: float | None) -> str:
    """Describe whether a replica lacks values of the server, and for how long."""
    if unserved_s is None:
        return "–"
    return f"[red]lacks {unserved_s:.1f} s[/red]" if unserved_s > _LACKS_S else "served"


def _show_decisions(console: Console, rewrites: dict[str, Any] | None) -> None:
    if rewrites is None:
        return
    if rewrites["frozen"]:
        console.print("[yellow]frozen: it learns nothing, feedback is kept[/yellow]")
    if rewrites["last"] is not None:
        last = rewrites["last"]
        to = f" to {last['snapshot']}" if "snapshot" in last else ""
        console.print(f"last decision: {last['kind']}{to}")
    if rewrites["undone"]:
        console.print(
            f"{rewrites['undone']:,} rows were undone, and kept; which of them were "
            "learned again: online rollback --undone"
        )
    if failed := rewrites.get("failed"):
        text = f"{failed:,} events failed, the newest: {rewrites['failed_reason']}"
        console.print(text, style="yellow", markup=False)
    if (lost := rewrites.get("lost")) is not None:
        on = time.strftime("%Y-%m-%d %H:%M", time.localtime(lost["at"]))
        console.print(
            f"[yellow]{lost['events']:,} events were lost from the journal, accepted on {on}; a "
            "repeat of one of them is learned again[/yellow]"
        )
    if banned := rewrites["banned"]:
        more = f" and {len(banned) - 10} more" if banned[10:] else ""
        console.print(f"banned sources: {', '.join(banned[:10])}{more}")


def _show_choices(console: Console, choices: dict[str, Any] | None) -> None:
    """Print the rewards of choices, beside those of policies that learn nothing."""
    if choices is None or not choices["n"]:
        return
    parts = [f"reward {short(choices['reward'])} over {choices['n']:,} choices"]
    if (alone := choices["constant"]) is not None:
        parts.append(f"always {alone['action']} {short(alone['reward'])}")
    parts.append(f"evenly {short(choices['evenly'])}")
    if (base := choices["baseline"]) is not None:
        parts.append(f"your own {short(base['reward'])} (agreed {base['agreed']:.0%})")
    if choices["explored"] is not None:
        parts.append(f"explored {choices['explored']:.1%}")
    if choices["defaulted"]:
        parts.append(f"{choices['defaulted']:,} by default")
    console.print(", ".join(parts), markup=False)
    shares = [f"{name} {share['share']:.1%}" for name, share in choices["actions"].items()]
    more = f" and {len(shares) - _ACTIONS} more" if len(shares) > _ACTIONS else ""
    console.print(f"chosen: {', '.join(shares[:_ACTIONS])}{more}", markup=False)
    if (learns := choices["apprentice"]) is not None:
        kept = "–" if learns["kept"] is None else f"{learns['kept']:.1%}"
        ready = "online promote lets it answer" if learns["ready"] else "not sure yet"
        if choices["answers"] == "model":
            ready = "it answers"
        console.print(
            f"apprentice: agreed {learns['agreed']:.1%}, sure to keep {kept} of your reward over "
            f"{learns['n']:,} choices, {learns['asked']:.0%} are asked: {ready}"
        )


def _show_conversions(console: Console, conversions: dict[str, Any] | None) -> None:
    """Print how many predictions wait for labels, and the outcome of those without one in time."""
    if conversions is None:
        return
    waiting = "–" if conversions["waiting"] is None else f"{conversions['waiting']:,}"
    if (oldest_s := conversions["oldest_s"]) is not None:
        waiting += f" (the oldest for {span(oldest_s)})"
    share = conversions["within"]
    late = "too few positives to know" if share is None else f"{share:.0%} of the positives have"
    console.print(
        f"conversions: {waiting} wait, {conversions['defaulted']:,} without a label within "
        f"{span(conversions['window_s'])} ({late} come by then), "
        f"{conversions['corrected']:,} corrected later"
    )


def _show_slices(console: Console, slices: dict[str, dict[str, Any]]) -> None:
    for name, values in slices.items():
        lines = []
        for value, scores in list(values.items())[:_SLICES]:
            rest = (f"{what} {short(scores[what])}" for what in scores if what != "n")
            lines.append(f"  {value}: {', '.join(rest)} over {scores['n']:,}")
        if len(values) > _SLICES:
            lines.append(f"  and {len(values) - _SLICES} values more: online status --json")
        console.print("\n".join([f"by {name}:", *(lines or ["  no rows yet"])]), markup=False)


def _show_replay(console: Console, replay: dict[str, Any] | None) -> None:
    if replay is None:
        return
    per_row = replay["replayed"] / max(replay["seen"], 1)
    shares = ", ".join(f"{label} {share:.0%}" for label, share in replay["classes"].items())
    console.print(
        f"replay: {replay['policy']}, {replay['kept']:,} of {replay['capacity']:,} rows kept, "
        f"{per_row:.1f} learned again for a fresh one" + (f"; {shares}" if shares else "")
    )


def _show_challenger(console: Console, challenger: dict[str, Any] | None) -> None:
    if challenger is None:
        return
    if challenger["state"] != "learning":
        console.print(
            f"challenger: {challenger['learner']}, {challenger['state']}: {challenger['incident']}"
        )
        return
    text = f"challenger: {challenger['learner']}, {challenger['verdict']}"
    if challenger["rows"]:
        text += f", {challenger['challenger']:.4g} to {challenger['champion']:.4g}"
        text += f" on {challenger['rows']:,} rows"
        low, high = challenger["interval"]
        text += f" (difference of scores {low:+.3f} … {high:+.3f})"
    console.print(f"{text}; {challenger['behind_rows']:,} rows behind")
    for why in challenger["lacking"]:
        console.print(f"  {why}")
    if challenger["incident"]:
        console.print(f"[red]  incident: {challenger['incident']}[/red]")


def _show_room(console: Console, journal: dict[str, Any] | None) -> None:
    if journal is None:
        console.print("[red]journal: no answer[/red]")
        return
    size = f"{journal['size'] / 2**20:,.1f} MB"
    if journal["bound"] is not None:
        size += f" of {journal['bound'] / 2**20:,.0f} ({journal['used_ratio']:.1%})"
    console.print(
        f"journal: {size}; {journal['rows']:,} rows, {journal['waiting']:,} halves of joins"
    )
    if journal["rows_per_day"] is None:
        console.print("  growth: measuring")
        return
    grown = f"{journal['rows_per_day']:,.0f} rows, {journal['bytes_per_day'] / 2**20:,.1f} MB a day"
    days = journal["days_left"]
    left = "it does not fill" if days is None else f"full in {days:,.1f} days"
    console.print(f"  growth: {grown} over the last {span(journal['measured_s'])}; {left}")


@common(model=False)
def fsck(
    context: Context,
    given_up: Annotated[
        list[str] | None,
        typer.Option(
            "--give-up", help="PARTITION:OFFSET of a damaged row to continue without; offline only"
        ),
    ] = None,
) -> None:
    """Verify the whole journal and the audit log, compare the events of the newest snapshot with
    the journal, and read every snapshot.

    Works with the service running or stopped.  Exit code 1 if anything is wrong.  With --give-up,
    once for each damaged row, the models permanently go on without these rows: keep a copy of the
    state folder first.

    Example: online fsck

    Example: online fsck --give-up 3:1042
    """
    from online.rebuild.soundness import check_log, examine

    settings = in_private(context.settings())
    if given_up:
        from online.service.state.damaged_rows import give_up, places_of

        for line in give_up(settings, places_of(given_up)):
            print(line, file=sys.stderr if context.as_json else sys.stdout)
    with bar("rows", hidden=context.as_json) as progress:

        def counter() -> Callable[[int, int], None]:
            task: TaskID = progress.add_task("", total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        journal = examine(settings, counter())
        decided = check_log(settings) if journal.sound else None
        results, texts = _compared(settings, counter, sound=journal.sound)
    if context.as_json:
        log = None if decided is None else decided.as_dict()
        whole = {"journal": journal.as_dict(), "log": log}
        print(json.dumps([{**result, **whole} for result in results]))
    else:
        print("\n".join([str(journal), *([] if decided is None else [str(decided)]), *texts]))
    good = journal.sound and decided is not None and decided.good
    raise typer.Exit(0 if good and all(r["good"] for r in results) else 1)


def _compared(
    settings: Settings, counter: Callable[[], Callable[[int, int], None]], *, sound: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare each model with the journal; returns data and texts.  ``sound``: the journal's."""
    from online.errors import OnlineError
    from online.rebuild.fsck import NeverServed, check, unnamed
    from online.service.state.run_file import is_served
    from replay.errors import ReplayError

    results: list[dict[str, Any]] = []
    texts: list[str] = []
    unknown: list[NeverServed] = []
    others: list[str] = []
    if sound:
        with contextlib.suppress(OnlineError, ReplayError, OSError):
            others = unnamed(settings)
    for model in settings.models:
        try:
            served = is_served(settings.state_dir)
            findings = check(settings, model.name, counter(), served=served)
        except NeverServed as error:
            new = not others
            results.append({"model": model.name, "good": new, "never_served": True})
            text = "nothing to compare"
            if others:
                text = "NOT GOOD if it was renamed: give it its old name, or begin in a new folder"
            texts.append(f"{model.name}: never served from this state, {text}")
            unknown.append(error)
        except (OnlineError, ReplayError) as error:
            if sound and len(settings.models) == 1:
                raise
            reason = ". ".join(str(error).splitlines())
            results.append({"model": model.name, "good": False, "error": reason})
            texts.append(f"{model.name}: can't be compared: {reason}")
        else:
            results.append(findings.as_dict())
            texts.append(str(findings))
    if sound and len(unknown) == len(settings.models):
        raise unknown[0]
    texts += [f"{name}: the journal has it, and these settings do not name it" for name in others]
    return [{**result, "unnamed": others} for result in results], texts
