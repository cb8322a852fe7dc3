"""Run folders, as genpo-train writes them, with made-up numbers; and pages as a browser parses them."""

from __future__ import annotations

import csv
import math
from html.parser import HTMLParser

import pytest
import yaml

from torchrl_genpo.report import write_report
from torchrl_genpo.training.metrics import METRICS

UPDATES = 12


def values(column, step, seed, offset):
    """Positive, smooth, and of its own height for every column and group."""
    height = 1 + METRICS.index(column) if column in METRICS else 3
    return round(height * (offset + math.sqrt(step)) * (1 + 0.05 * (seed if isinstance(seed, int) else 0)), 6)


@pytest.fixture
def make_run(tmp_path):
    """Writes a run: ``make_run("a/1", seed=1, **{"policy.name": "gaussian"})``; returns its folder."""

    def make(name, seed=1, updates=UPDATES, offset=1.0, extra=("task/turns", "eval/zero_noise/turns"), **options):
        folder, columns = tmp_path / name, [*METRICS, *extra]
        folder.mkdir(parents=True)
        config = {"seed": seed}
        defaults = {"collector.total_frames": 1000 * UPDATES, "env.name": "hopper", "optim.lr": 3e-4}
        for key, value in (defaults | {"policy.name": "reversible_flow"} | options).items():
            *groups, last = key.split(".")
            node = config
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            for step in range(1, updates + 1):
                row = {column: values(column, step, seed, offset) for column in columns}
                row |= {"frames": 1000 * step, "time/seconds": 60.0 * step * offset}
                row |= {"train/inversion_error": 1e-6 * step * offset}
                writer.writerow({k: v for k, v in row.items() if step % 4 == 0 or not k.startswith("eval/")})
        return folder

    return make


VOID = {"meta"}


class Page(HTMLParser):
    """Checks that every element is closed in turn; gathers tags, attributes, rows of tables and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.tags, self.rows, self.text, self.source = [], [], [], [], "", text
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open[-1] == tag, f"</{tag}> closes {self.open[-1]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]


@pytest.fixture
def report(tmp_path):
    def write(*runs, **options):
        write_report(runs, tmp_path / "report.html", **options)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write
