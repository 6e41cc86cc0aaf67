"""What came of a round: callbacks, objects, attempts and what was left."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.kills.aws import Aws
from bench.kills.runs import Runs
from bench.kills.victims import VICTIMS, Victim

IMAGES = 500
BATCH_SIZE = 100
OURS = "biospex-batch-"
PREFECTS = "prefect-workspace-attempt-"
"""Where Prefect keeps the files of an attempt; a worker that is killed leaves them."""

LEFTOVERS = ("uploads", "files", "other files", "messages", "dead letters", "runs", "processes")


@dataclass
class Round:
    """One kill and what came of it.

    Attributes:
        moment: seconds between the victim's appearance and the kill.
        hit: what the kill hit, in words; None if all was over before.
        seconds: from the kill to the last callback; None if that was out before.
        left: what was left, by kind.
        broken: the sentences that make the round a failure.
        notes: what is worth knowing and allowed.
    """

    number: int
    victim: Victim | None
    moment: float
    hit: str | None = None
    callbacks: int = 0
    duplicates: int = 0
    wrong: int = 0
    seconds: float | None = None
    left: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def count_callbacks(
    this: Round, exports: Sequence[Path], aws: Aws, runs: Runs, killed: float | None
) -> None:
    """One success for each export; two if the process was killed between sending and noting it.

    Args:
        killed: the second of the kill, if there was one.
    """
    sent: dict[str, list[float]] = {path.name: [] for path in exports}
    for body, moment in aws.callbacks():
        this.callbacks += 1
        sent[body["downloadId"]].append(moment)
        stem = body["downloadId"].removesuffix(".zip").removesuffix(".tar.gz")
        wanted = [f"{stem}-part{part}.zip" for part in range(1, IMAGES // BATCH_SIZE + 1)]
        if body.get("batchFiles") != wanted:
            this.broken.append(f"callback {json.dumps(body)}")
    for download, moments in sent.items():
        if not moments:
            this.broken.append(f"no callback for {download}")
        if len(moments) > 1:
            this.duplicates += len(moments) - 1
            story = runs.story(download, killed)
            at = ", ".join(f"{moment - (killed or 0):+.3f}" for moment in sorted(moments))
            allowed = (
                killed is not None
                and len(moments) == 2
                and min(moments) <= killed
                and not any(note <= killed for note in runs.noted(download))
            )
            text = f"{len(moments)} callbacks for {download}, sent at {at} s; {story}"
            (this.notes if allowed else this.broken).append(text)
    if killed is not None:
        late = [moment for moments in sent.values() for moment in moments if moment > killed]
        this.seconds = max(late) - killed if late else None


def count_attempts(this: Round, runs: Runs) -> None:
    """One attempt: an outage is no fault of an export, nor of the service."""
    for run in runs.current():
        if failed := runs.failures(run):
            ends = ", ".join(f"{state.name} ({state.message})" for state in failed)
            this.broken.append(f"{run.name} was tried more than once: {ends}")


def compare(this: Round, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """The objects, given by their checksums, are those of an undisturbed run."""
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            this.wrong += 1
            state = "other bytes" if key in found else "missing"
            this.broken.append(f"{key}: {state if key in expected else 'not asked for'}")


def count_leftovers(this: Round, aws: Aws, tmp: Path, runs: Runs) -> None:
    """Nothing is left."""
    # Not Prefect's empty directories: a runner leaves one even when it is stopped cleanly.
    paths = [path.relative_to(tmp) for path in sorted(tmp.rglob("*")) if path.is_file()]
    others = [str(path) for path in paths if not path.parts[0].startswith((OURS, PREFECTS))]
    unfinished = [
        f"{run.name} {run.state_name}"
        for run in runs.current()
        if not run.state or not run.state.is_final()
    ]
    details = {
        "uploads": aws.uploads(),
        "files": sorted(path.name for path in tmp.glob(f"{OURS}*")),
        "other files": others,
        "runs": unfinished,
    }
    this.left.update({kind: len(found) for kind, found in details.items()})
    this.left["messages"] = aws.waiting()
    this.left["dead letters"] = aws.dead()
    for kind in LEFTOVERS:
        if this.left[kind]:
            what = ", ".join(details.get(kind, []))
            this.broken.append(f"{this.left[kind]} {kind} left {what}".rstrip())


def line(this: Round) -> str:
    """The printed line of a round."""
    hit = f"{this.hit} after {this.moment:.1f} s" if this.hit else "nothing, all was over"
    took = f", {this.seconds:.0f} s to the last callback" if this.seconds is not None else ""
    extra = "".join(f"\n      {note}" for note in this.notes)
    extra += "".join(f"\n      BROKEN: {reason}" for reason in this.broken)
    return f"{this.number:4} {this.victim}: {hit}; {this.callbacks} callbacks{took}{extra}"


def table(rounds: Sequence[Round]) -> Iterator[str]:
    """A Markdown table of the rounds by what was killed."""
    counted = ("callbacks", "duplicates", "objects wrong")
    heads = ("killed", "rounds", "hit", *counted, *LEFTOVERS, "broken", "s median", "s max")
    yield f"| {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * (len(heads) - 1)}"
    for name in (*VICTIMS, "all"):
        these = [one for one in rounds if name in (one.victim, "all")]
        seconds = [one.seconds for one in these if one.seconds is not None]
        cells = [
            name,
            len(these),
            sum(one.hit is not None for one in these),
            sum(one.callbacks for one in these),
            sum(one.duplicates for one in these),
            sum(one.wrong for one in these),
            *(sum(one.left[kind] for one in these) for kind in LEFTOVERS),
            sum(bool(one.broken) for one in these),
            f"{median(seconds):.0f}" if seconds else "-",
            f"{max(seconds):.0f}" if seconds else "-",
        ]
        yield f"| {' | '.join(map(str, cells))} |"
