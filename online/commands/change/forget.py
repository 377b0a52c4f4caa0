"""`online forget`: relearns the journal without a source, beside the service that answers."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from online.client.simple_client import SimpleClient
from online.commands.base import (
    Context,
    agreed,
    checked,
    common,
    counting,
    in_private,
    moment,
    span,
)
from online.errors import StartRefused

if TYPE_CHECKING:
    from online.learning.ordered import OrderedLearner
    from online.rebuild.forget import Influence
    from online.rebuild.verdicts_again import Review
    from online.settings.config import Settings
    from paramserver.core.rewrites import Digest
    from paramserver.core.state import SnapshotState
    from paramserver.snapshots.history import SnapshotHistory

_SHOWN = 10  # most rows in a suggested command


@common()
def forget(
    context: Context,
    source: Annotated[str, typer.Option("--source", help="source to forget")],
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            help="forget events since: 7d, POSIX seconds, or a local time as 2026-01-31T12:00",
        ),
    ] = None,
    erase: Annotated[
        bool, typer.Option("--erase", help="also erase its events from the disk")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="file for a signed certificate")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Continue as if a source had never sent anything; the service answers meanwhile.

    The source is banned first. Then the journal is relearned without its events, in this process,
    from the newest snapshot before the first of them; the model switches to the result in one step.
    The events stay in the journal: `online rollback --undone` lists them. Ctrl-C leaves no change
    but the ban. With --erase the source's events are removed from the journal and its files, and so
    are snapshots with its influence; this is irreversible, and an interrupted erasure is completed
    by the same command.

    Example: online forget --source bot-7
    """
    begin = None if since is None else moment("--since", since)
    forget_source(context, source, begin, None, Options(yes, context.as_json, erase, certificate))


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the command: no confirmation, JSON output, erasure, file for a certificate."""

    yes: bool
    as_json: bool
    erase: bool = False
    certificate: Path | None = None

    @property
    def certified(self) -> bool:
        """Whether a certificate is to be made."""
        return self.erase or self.certificate is not None


def forget_source(
    context: Context, source: str, since: float | None, to: str | None, options: Options
) -> None:
    """Forget what a source has sent since a time, or (``to``) since a snapshot."""
    begun, as_json = time.monotonic(), options.as_json
    client, name = context.asked()
    work = _Work(context.settings(), client, name, source, since)
    with work.prepared(to, options):
        if not options.yes:
            work.ask(options)
        try:
            done = work.swap(as_json=as_json) if work.events else work.ban_only()
            if options.certified:
                done |= work.certify(options)
        except KeyboardInterrupt:
            print(
                f"interrupted: {work.stands()}; {source} stays banned until "
                f"`online quarantine unban --source {source}`",
                file=sys.stderr,
            )
            raise typer.Exit(130) from None
    done["seconds"] = round(time.monotonic() - begun, 1)
    if as_json:
        print(json.dumps(done))
        return
    if work.events:
        _print_forgotten(work, source, done)
    else:
        print(f"{work.name} holds no event of {source}, and it is banned")
    _print_erased(done)


def _print_forgotten(work: _Work, source: str, done: dict[str, Any]) -> None:
    print(
        f"{work.name} continues without {source}: {done['undone']:,} rows removed, "
        f"{done['learned']:,} events learned again from {work.beginning} in {span(done['seconds'])}"
    )
    if done["unlearned"]:
        print(f"  {done['unlearned']:,} of the removed rows are other sources', which the")
        print("  model could not learn without them")
    _print_review(done["review"])
    for replica in done["missing"]:
        print(f"  {replica} has not seen it yet")
    if "erased" not in done:
        print("  the events are kept: online rollback --undone")


def _print_erased(done: dict[str, Any]) -> None:
    if (gone := done.get("erased")) is not None:
        print(
            f"  erased: {gone['rows']:,} rows, {gone['halves']:,} halves of joins, "
            f"{gone['texts']:,} texts of failures, {gone['snapshots']:,} snapshots"
        )
    if (where := done.get("certificate")) is not None:
        print(f"  certificate: {where}; not reached are, among others, exports and backups")


def _print_review(review: dict[str, Any] | None) -> None:
    if review is None or not review["changed"]:
        return
    print(
        "  judged again without it, these would have another verdict (nothing was done about it):"
    )
    for change in review["verdicts"]:
        print(f"    {change['n']:,} {change['was']} ones would be {change['now']}")
    aside = [e["row"] for e in review["events"] if e["was"] == "quarantined"]
    if aside:
        more = " …" if len(aside) > _SHOWN else ""
        print(
            f"    to have them learned: online quarantine release {' '.join(aside[:_SHOWN])}{more}"
        )


class _Work:
    """Forgets one source in one model of the running service."""

    _swapped = False
    _digests: tuple[Digest, Digest] | None = None

    def __init__(
        self, settings: Settings, client: SimpleClient, name: str, source: str, since: float | None
    ) -> None:
        from online.challenger.promotion import as_stored
        from online.models.loading.from_settings import load_model
        from online.rebuild.rebuild import ForgetScope
        from online.rows.prediction_ids import Keys
        from online.settings.places import history_of

        self.name, self._client = name, client
        self.events = self._again = 0
        self._wanted = ForgetScope(source, since)
        self._settings = as_stored(in_private(settings))
        status = self._status()
        chosen = next((m for m in self._settings.models if m.name == name), None)
        remedy = "Name the settings file that the service was started with: --config"
        if chosen is None:
            raise StartRefused(f"these settings have no model {name!r}", remedy)
        self._model = chosen
        keys = Keys.from_file(self._settings.key_path)
        self._loaded = load_model(chosen, self._settings, keys.secret, keys.old_secrets)
        if not self._loaded.spec_hash.startswith(status["spec"]):
            raise StartRefused(f"model {name} of these settings is not the one served", remedy)
        self._open = partial(history_of, self._settings, name, self._loaded.spec_hash)
        self._history = self._open()

    def _status(self) -> dict[str, Any]:
        status = checked(self._client.get(f"/v1/models/{self.name}"))
        if status["server"] is None:
            raise StartRefused("the parameter server does not answer", "See `online status`")
        return status

    @contextlib.contextmanager
    def prepared(self, to: str | None, options: Options) -> Iterator[None]:
        """Find the source's events and the base snapshot; the journal is open in the context."""
        from online.commands.change.erasing import check_no_shards
        from online.rebuild.forget import check_reach, influence
        from online.rows.history import Decisions
        from online.settings.places import open_journal
        from online.settings.sharded import check_whole

        if options.erase:
            check_whole(self._model, "erasing")
        if to is not None:
            check_whole(self._model, "going on from a snapshot without a source")
        spec, wanted = self._loaded.spec_hash, self._wanted
        with contextlib.closing(open_journal(self._settings)) as journal:
            if options.erase:
                check_no_shards(journal, self._settings, self.name)
            self._journal, self._decisions = journal, Decisions(spec)
            self._decisions.read(journal, self.name)
            kept_from = time.time() - self._model.dedupe_window
            with counting("looking", hidden=options.as_json) as progress:
                affected = influence(
                    journal, self.name, self._decisions, wanted, kept_from, progress
                )
            if to is None:
                check_reach(affected, wanted)
            if not affected.n and options.certified:  # nothing to relearn, only to certify
                yield
                return
            self._choose(affected, to)
            if not self.events:
                when = "" if wanted.since is None and to is None else " since then"
                raise StartRefused(
                    f"the model holds no event of {wanted.source!r}{when}",
                    f"Keep new ones out with: online quarantine ban --source {wanted.source}",
                )
            yield

    def _choose(self, influence: Influence, to: str | None) -> None:
        """Choose the snapshot to begin with, of those that are there now."""
        from online.rebuild.forget import Bases

        journal, spec = self._journal, self._loaded.spec_hash
        self._found, self._to, self._history = influence, to, self._open()
        self._history.index()
        head = journal.head(self.name, spec).snapshot
        bases = Bases(journal, self.name, self._decisions, journal.partitions(self.name))
        if self._model.shards > 1:  # no snapshot holds all of it: from the first row on
            head = None
        if to is None:
            self._base = bases.before(self._history, head, self._begun(spec), influence)
        else:
            self._base = bases.named(self._history, head, to)
        clock = bases.clock(self._base.contained)
        self.events = sum(r > clock[p] for p, rows in influence.rows.items() for r in rows)
        rows = sum(p.end - clock[p.id] for p in journal.partitions(self.name))
        self._again = rows - self.events

    def _start(self) -> SnapshotState:
        """The state to begin with: of another snapshot if retention has removed the one chosen."""
        from online.rebuild.rebuild import nothing
        from paramserver.errors import SnapshotMissing

        while self._base.name is not None:
            try:
                return self._history.load(self._base.name)
            except SnapshotMissing:  # while the operator was asked, or replicas heard of the ban
                self._choose(self._found, self._to)
        loaded = self._loaded
        return nothing(self.name, loaded.spec_hash, loaded.spec_text, self._decisions.without)

    def _begun(self, spec: str) -> int:
        """The epoch in which an operator last began the lineage anew; 0: never."""
        mark = f"fresh:{spec}:"
        keys = [c.key for c in self._journal.controls(self.name, 0) if c.key.startswith(mark)]
        return max((int(key.removeprefix(mark)) for key in keys), default=0)

    @property
    def beginning(self) -> str:
        """Description of where relearning begins."""
        name = self._base.name
        return "the first row" if name is None else f"snapshot {name}"

    def ask(self, options: Options) -> None:
        """Ask for confirmation.  Raises StartRefused without a yes."""
        source = self._wanted.source
        text = f"the model holds no event of {source!r}, and it is banned"
        if self.events:
            text = (
                f"{self.events:,} events of {source!r} leave {self.name}, and it is banned; "
                f"{self._again:,} other row{'s are' if self._again != 1 else ' is'} learned again "
                f"here, since {self.beginning}"
            )
        outcome = (
            "all that it has sent is removed for good" if options.erase else "the events are kept"
        )
        question = "Erase it?" if options.erase else "Forget them?"
        agreed(text, question, more=f".\nThe service answers meanwhile; {outcome}.")

    def swap(self, *, as_json: bool) -> dict[str, Any]:
        """Ban the source, build the state without it, and have the server serve that state."""
        self._ban()
        server = self._status()["server"]
        built = self._built(server["version"], server["rewrite"], as_json=as_json)
        aside = f"aside-{server['epoch']}-{server['count']}-{secrets.token_hex(4)}"
        request = {
            "source": self._wanted.source, "since": self._wanted.since, "snapshot": aside,
            "base": self._base.name, "undone": built.undone, "digests": self._digests,
        }  # fmt: skip
        may_stand = False
        try:
            for history, part in self._parts(built.state):
                history.publish(aside, part)
            may_stand = True
            answer = self._client.post(f"/v1/models/{self.name}/forget", json=request)
            may_stand = answer.status_code < 400 or answer.status_code >= 500
        finally:
            if not may_stand:  # no control row refers to it
                for history, _ in self._parts(built.state):
                    history.withdraw(aside)
        done = checked(answer)
        self._swapped = True
        review = built.review
        return {
            **request, **done, "learned": built.learned, "unlearned": built.unlearned,
            "review": None if review is None else review.summary(),
        }  # fmt: skip

    def _parts(self, state: SnapshotState) -> list[tuple[SnapshotHistory, SnapshotState]]:
        """Return the snapshot history and the part of the state of each server."""
        from online.settings.places import history_of
        from paramserver.core.shards import Cut

        if self._model.shards == 1:
            return [(self._history, state)]
        parts = []
        for shard, values in enumerate(Cut(self._model.shards).blocks(state.values)):
            history = history_of(self._settings, self.name, state.spec, shard)
            parts.append((history, replace(state, values=values)))
        return parts

    def ban_only(self) -> dict[str, Any]:
        """Ban the source; the model contains none of its events."""
        self._ban()
        return {"source": self._wanted.source, "since": self._wanted.since, "undone": 0}

    def stands(self) -> str:
        """Describe the state after an interruption."""
        if self._swapped:
            return "it is forgotten, but not erased yet: run the same command again"
        return "the model is as it was"

    def certify(self, options: Options) -> dict[str, Any]:
        """Erase if that is requested, and write a certificate of what was done."""
        from online.audit.log import keys_of
        from online.commands.change.erasing import Erasing
        from online.rebuild import certify, erase

        journal, spec, wanted = self._journal, self._loaded.spec_hash, self._wanted
        keys = keys_of(self._settings.key_path)
        progress = partial(counting, hidden=options.as_json)
        out: dict[str, Any] = {}
        number = forget = erase.newest_forget(journal, self.name, spec, wanted.source)
        content, note = None, None
        try:
            if forget:
                content = certify.forgotten(journal, self.name, forget)
                certify.checked(content, keys)
        except StartRefused as error:  # the erasure can still be done
            if not options.erase:
                raise
            content, note = None, str(error).splitlines()[0]
        if options.erase:
            work = Erasing(self._client, self._settings, self.name, spec, progress)
            erasure, done = work.erase(journal, wanted.source, wanted.since)
            number, out["erased"] = erasure.seq, msgspec.structs.asdict(done)
            if content is None:
                content = certify.nothing_forgotten(self.name, spec, erasure.decision, note)
            content = certify.erased(content, erasure, done)
        elif content is None:
            raise StartRefused(
                f"{wanted.source!r} was never forgotten by this model",
                "Forget it first: online forget --source NAME",
            )
        document = certify.checked(content, keys)
        own = self._settings.state_dir / certify.FOLDER / f"{self.name}-{number}.json"
        for file in filter(None, (own, options.certificate)):
            certify.write(document, file)
        if options.erase:
            erasure.end(done)
        return {**out, "certificate": str(options.certificate or own)}

    def _ban(self) -> None:
        body = {"source": self._wanted.source, "banned": True}
        done = checked(self._client.post(f"/v1/models/{self.name}/sources", json=body))
        if not done["complete"]:
            raise StartRefused(
                f"{self._wanted.source!r} is banned, but these replicas have not seen it: "
                f"{', '.join(done['missing'])}",
                "Run it again when they answer, or have left the list of `online status`",
            )

    def _review(self, start: SnapshotState, learner: OrderedLearner) -> Review | None:
        """Make the reviewer that judges the rows of other sources again.

        It follows the model's settings; None: no filter is configured.
        """
        from online.rebuild.verdicts_again import Review
        from online.trust.filtering import filtering_for
        from online.trust.root_set import RootSet, root_rows
        from paramserver.filters.sources import of_sources

        model, settings = self._model, self._settings
        rows = root_rows(model, settings, numeric_only=self._loaded.model.numeric_only)
        root = None
        if rows and model.root_set is not None:
            root = RootSet(model.root_set, rows, lambda: learner.serving)
        sources_max, vouched = settings.limits.sources_max, settings.tokens.vouched
        filters = filtering_for(model, learner, root, sources_max=sources_max, vouched=vouched)
        if filters is None:
            return None
        filters.reset(of_sources(start.values))
        return Review(filters, learner)

    def _built(self, version: list[int], rewrite: int, *, as_json: bool) -> Any:
        from online.rebuild.rebuild import Rebuild, method_of
        from paramserver.core.rewrites import SPANS_MAX

        start, loaded = self._start(), self._loaded
        rebuild = Rebuild(
            self._journal,
            self._decisions,
            self._wanted,
            start,
            method_of(self._model, loaded, self._settings),
            review=partial(self._review, start),
        )
        with counting("learning again", hidden=as_json) as progress:
            rebuild.run(progress)
        rebuild.run()  # rows that came meanwhile; replicas learn the later ones
        self._digests = rebuild.digests
        built = rebuild.built((version[0], version[1]), rewrite, time.time())
        spans = sum(len(flat) // 2 for flat in built.undone.values())
        if spans > SPANS_MAX:
            raise StartRefused(
                f"the events of {self._wanted.source!r} stand in {spans:,} places of the journal, "
                f"and {SPANS_MAX:,} can be taken out at once",
                "Forget what it has sent of late: --since",
            )
        return built
