"""A page per scenario, written from its file: `python -m flyball.experiments.scenario_pages docs/scenarios`.

With `--pictures` also a picture of a quarter of an hour of each; a test compares the text alone with what this writes.
"""

import dataclasses
import inspect
import re
import sys
from collections import Counter
from pathlib import Path

from ..envs.batch_jobs import BatchSpec
from ..envs.events import DROPOUT, FEED_LOSS, METER, OUTAGE, Event
from ..envs.faults import CLASSES, RATE_PER_GPU_HOUR
from ..envs.load import LoadSpec, ServiceLoad
from ..envs.scenario import PlantRanges, Scenario, list_scenarios, load_scenario
from ..envs.training_jobs import TrainingSpec
from ..fleet.skus import SKUS

HEAD = (
    "<!-- written by `python -m flyball.experiments.scenario_pages docs/scenarios`; edit the scenario file instead -->"
)


def pages(folder: Path) -> dict[str, str]:
    """Text of every page by file name; a page shows its picture where `folder` has one."""
    scenarios = [load_scenario(name) for name in list_scenarios()]
    out = {"README.md": index_page(scenarios)}
    out.update({f"{s.name}.md": scenario_page(s, (folder / f"{s.name}.png").exists()) for s in scenarios})
    return out


def index_page(scenarios: list[Scenario]) -> str:
    """Families and what happens in each."""
    rows = [
        [f"[{s.name}]({s.name}.md)", s.family, str(len(s.fleet.nodes)), f"{s.seconds / 60:g}", s.summary]
        for s in sorted(scenarios, key=lambda s: (s.family, s.name))
    ]
    return _join(
        HEAD,
        "# Scenarios",
        "What can happen to a fleet, by family; scenarios of one family share their tuned baselines. `flyball "
        "scenarios` lists them, `flyball simulate NAME` runs one, and `--set key=value` changes any key of a page.",
        _table(["scenario", "family", "nodes", "minutes", "what happens"], rows),
    )


def scenario_page(s: Scenario, has_picture: bool = False) -> str:
    """Everything that a user asks of one scenario."""
    picture = [f"![A quarter of an hour of {s.name}]({s.name}.png)"] if has_picture else []
    return _join(
        HEAD,
        f"# {s.name}",
        s.summary,
        *picture,
        f"**What is hard.** {s.hard}",
        f"**What a good controller does.** {s.good_controller}",
        f"```\nflyball simulate {s.name} --policy best-baseline\n```",
        "## What happens",
        f"An episode lasts {s.seconds:g} s, of which the first {s.warmup_s:g} s are not judged. "
        + ("The engine turns away requests that would be late" if s.early_rejection else "The engine turns nobody away")
        + (", and admits no more to decode than its ITL target allows." if s.slo_aware_admission else "."),
        _timeline(s),
        *_faults(s),
        *_weather(s),
        *_training(s),
        *_batch(s),
        "## Load",
        *_load(s),
        "## Site",
        *_site(s),
        "## Drawn anew in every episode",
        "What the arbiter is not told, uniform between two bounds"
        + (", and the starts of events above" if any(e.t_min_s is not None for e in s.events) else "")
        + ". Bold ones are this scenario's own.",
        _ranges(s),
    )


def _timeline(s: Scenario) -> str:
    if not s.events:
        return "No event: all that happens is load and what is drawn."
    rows = []
    for e in sorted(s.events, key=lambda e: e.t_s if e.t_min_s is None else e.t_min_s):
        when = f"{e.t_s:g} s" if e.t_min_s is None else f"{e.t_min_s:g} to {e.t_max_s:g} s"
        lasts = "to the end" if e.until_s is None else f"{e.until_s:g} s"
        rows.append([when, lasts, e.domain or s.fleet.domains[0].name, _what(e)])
    return _table(["start", "lasts", "domain", "what"], rows)


def _what(e: Event) -> str:
    if e.kind == FEED_LOSS:
        return f"a feed fails without notice: {e.limit_frac:.0%} of the limit and of the breakers' rating are left"
    if e.kind == OUTAGE:
        return "all power fails; its nodes start again when it is back"
    if e.kind == METER:
        return f"its meter is off by {e.bias_frac:+.0%}" if e.fault == "biased" else f"its meter is {e.fault}"
    if e.kind == DROPOUT:
        return f"{e.lost_frac:.0%} of its nodes' telemetry is lost"
    notice = f"announced {e.notice_s:g} s before" if e.notice_s else "without notice"
    ramp = f", over {e.ramp_s:g} s" if e.ramp_s else ""
    return f"the limit becomes {e.limit_frac:.0%} of nominal, {notice}{ramp}"


def _faults(s: Scenario) -> list[str]:
    if not s.fault_scale:
        return []
    gpus = sum(n.gpus for n in s.fleet.nodes)
    hours = s.seconds / 3600 * s.fault_scale
    rows = [
        [name, f"{rate:.3g}", f"{rate * gpus * hours:.2g}"]
        for name, rate in zip(CLASSES, RATE_PER_GPU_HOUR, strict=True)
    ]
    return [
        f"Faults come at {s.fault_scale:,g} times their measured rate (GPU and HBM faults more often above 65 °C):",
        _table(["class", "per GPU-hour", "expected per episode"], rows),
    ]


def _weather(s: Scenario) -> list[str]:
    w = s.weather
    if w.is_constant:
        return []
    if w.file:
        return [f"The inlet follows `{Path(w.file).name}`."]
    hours = s.seconds * w.lapse / 3600
    return [
        f"The inlet swings by ±{w.amplitude_c:g} °C around its mean as over {hours:.2g} hours from "
        f"{w.start_hour:g}:00, {w.lapse:g} times faster."
    ]


def _training(s: Scenario) -> list[str]:
    if not s.training:
        return []
    return [
        f"Training all the time at full clock is worth {s.training_weight:g} of serving all that the fleet could.",
        *(f"`{t.service}`:\n\n" + _fields(t, TrainingSpec, {"service"}) for t in s.training),
    ]


def _batch(s: Scenario) -> list[str]:
    if not s.queues:
        return []
    queues = [
        [f"`{q.name}`", q.parent or "–", _gpus(q.quota), _gpus(q.limit), str(q.over_quota_weight), str(q.priority)]
        for q in s.queues
    ]
    jobs = [
        [
            f"`{j.queue}`",
            f"{j.jobs_per_hour:g}",
            str(j.priority),
            f"{j.work_median_s:g} s",
            f"{j.gang_frac:.0%} of {j.gang_nodes} nodes" if j.gang_frac else "–",
        ]
        for j in s.batch.jobs
    ]
    return [
        f"Jobs run on the nodes of `{s.batch.service}`, by the rules of [placement](../placement.md). All its GPUs "
        f"computing at full clock are worth {s.training_weight:g} of serving all that the fleet could.",
        _table(["queue", "parent", "quota, GPUs", "limit, GPUs", "over-quota weight", "priority"], queues),
        _table(["queue", "jobs an hour", "priority", "median work", "gangs"], jobs),
        _fields(s.batch, BatchSpec, {"service", "jobs"}) or "Starting and stopping them costs what it does by default.",
    ]


def _gpus(amount: float) -> str:
    return f"{amount:g}" if amount >= 0 else "none"


def _load(s: Scenario) -> list[str]:
    out = [
        f"Mean arrivals are {s.load.target_util:g} of what the fleet could serve uncapped, split at best between its "
        "stages.",
        _fields(s.load, LoadSpec, {"target_util", "service"}) or "Everything else as it comes.",
    ]
    for own in s.load.service:
        if own.share > 0:
            text = _fields(own, ServiceLoad, {"name"})
            out.append(f"`{own.name}`:\n\n{text}" if text else f"`{own.name}`: as above.")
    return out


def _site(s: Scenario) -> list[str]:
    fleet = s.fleet
    groups = Counter((n.service, n.stage, n.sku, n.gpus) for n in fleet.nodes)
    kinds = {v.name: v for v in fleet.services}
    nodes = []
    for (service, stage, sku, gpus), count in sorted(groups.items()):
        kind = kinds[service].kind
        role = f"starts as {stage}" if kind == "disaggregated" else kind
        nodes.append([service, kinds[service].model, role, f"{count} × {gpus} {sku}", str(kinds[service].priority)])
    nameplate_w = sum(SKUS[n.sku].nameplate_node_w * n.gpus / SKUS[n.sku].node_gpus for n in fleet.nodes)
    domains = Counter((_depth(fleet, d), d.peak_w) for d in fleet.domains)
    limits = [[str(depth), str(count), f"{peak_w / 1000:,.1f}"] for (depth, peak_w), count in sorted(domains.items())]
    return [
        f"`{fleet.name}`: {len(fleet.nodes)} nodes with a nameplate of {nameplate_w / 1000:,.1f} kW on "
        f"{fleet.domains[0].peak_w / 1000:,.1f} kW.",
        _table(["service", "model", "role", "nodes", "priority"], nodes),
        _table(["level", "domains", "limit of each, kW"], limits),
    ]


def _depth(fleet, domain) -> int:
    return int(fleet.domain_static["depth"][fleet.domain_index[domain.name]])


def _ranges(s: Scenario) -> str:
    defaults, meaning = PlantRanges(), _meanings(PlantRanges)
    rows = []
    for name, (low, high) in s.plant.items():
        mark = "**" if (low, high) != defaults[name] else ""
        span = f"{low:g} to {high:g}" if low != high else f"{low:g}"
        rows.append([f"{mark}`{name}`{mark}", span, meaning[name]])
    return _table(["parameter", "range", "meaning"], rows)


def _fields(value, cls: type, without: set[str]) -> str:
    """What differs from a dataclass's defaults, with the meaning that its docstring gives."""
    meaning = _meanings(cls)
    rows = []
    for f in dataclasses.fields(cls):
        got = getattr(value, f.name)
        if f.name not in without and got != f.default:
            rows.append([f"`{f.name}`", f"{got:g}" if isinstance(got, float) else str(got), meaning[f.name]])
    return _table(["key", "value", "meaning"], rows) if rows else ""


def _meanings(cls: type) -> dict[str, str]:
    """Attributes of a docstring by name, each on one line."""
    text = inspect.getdoc(cls) or ""
    found = re.findall(r"^    (\w+): (.+(?:\n      .+)*)", text.partition("Attributes:")[2], re.M)
    return {name: " ".join(lines.split()) for name, lines in found}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows])


def _join(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"


def write(folder: Path, has_pictures: bool = False) -> list[Path]:
    """Write every page, and pictures where asked; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if has_pictures:
        from .scenario_pictures import draw

        written += [draw(load_scenario(name), folder / f"{name}.png") for name in list_scenarios()]
    for name, text in pages(folder).items():
        (folder / name).write_text(text)
        written.append(folder / name)
    return written


if __name__ == "__main__":
    given = [a for a in sys.argv[1:] if a != "--pictures"]
    for path in write(Path(given[0] if given else "docs/scenarios"), "--pictures" in sys.argv[1:]):
        print(path)
