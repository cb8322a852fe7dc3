"""Reports: what they read, how they group and summarise it, and that a page is whole, safe and self-contained."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from torchrl_genpo.commands.report import main
from torchrl_genpo.report.page import draw, number
from torchrl_genpo.report.runs import POINTS, curve, group_runs, read_run, read_runs
from torchrl_genpo.training.metrics import METRICS


def test_a_page_is_well_formed_and_needs_nothing_from_outside(make_run, report, tmp_path):
    make_run("flow/1")
    make_run("gaussian/1", **{"policy.name": "gaussian"})
    (tmp_path / "flow/1/video.mp4").write_bytes(b"v")
    page = report(tmp_path)
    assert page.tags[:2] == ["html", "head"]
    assert not {"script", "link", "img", "iframe", "object", "embed", "image"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name.split(":")[-1] in ("src", "href", "srcset", "action", "data", "poster"):
            assert value.startswith(("data:", "#")), (tag, value)
    assert "@import" not in page.source and set(re.findall(r"url\((.)", page.source)) == {"#"}
    addresses = set(re.findall(r"https?://[^\"\s]+", page.source))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "beside names of XML"
    (policy,) = [value for value in page.values("content") if "default-src" in value]
    assert "default-src 'none'" in policy and "script" not in policy
    assert not list(tmp_path.glob(".*")), "temporary files were left behind"


def test_a_page_is_the_same_for_the_same_runs(make_run, report):
    folder = make_run("run")
    assert report(folder).source == report(folder).source


def test_every_metric_has_a_chart(make_run, report):
    page = report(make_run("run"))
    columns = {*METRICS, "task/turns", "eval/zero_noise/turns"} - {"frames", "time/seconds"}
    assert set(page.values("data-column")) == columns
    assert page.tags.count("svg") == len(page.values("data-column")) == len(columns)


def test_a_chart_shows_the_median_where_it_is(make_run, tmp_path):
    for seed in (1, 2, 3):
        make_run(f"flow/{seed}", seed=seed)
    make_run("gaussian", **{"policy.name": "gaussian"})
    runs = read_runs([tmp_path / "flow", tmp_path / "gaussian"])[0]
    flow, gaussian = curve(runs[:3], "train/return"), curve(runs[3:], "train/return")
    tree = ElementTree.fromstring(draw({0: flow, 1: gaussian}, "train/return"))
    lines = {}
    for element in tree.iter("{http://www.w3.org/2000/svg}path"):
        style, data = element.get("style", ""), element.get("d")
        color = re.search(r"stroke: (#\w+)", style)
        if "fill: none" in style and color:
            lines.setdefault(color[1], np.array(re.findall(r"[ML] (\S+) (\S+)", data), float))
    for color, line in (("#0072b2", flow), ("#d55e00", gaussian)):
        for drawn, values in zip(lines[color].T, (line.frames, line.median), strict=True):
            slope, offset = np.polyfit(values, drawn, 1)
            np.testing.assert_allclose(slope * values + offset, drawn, atol=1e-3)


def test_runs_that_differ_in_the_seed_are_one_group_and_others_are_beside_it(make_run, report, tmp_path):
    for seed in (3, 1, 2):
        make_run(f"flow/{seed}", seed=seed)
    make_run("gaussian/1", offset=2.0, **{"policy.name": "gaussian"})
    (task,) = group_runs(read_runs([tmp_path])[0])
    assert {group.label: [run.seed for run in group.runs] for group in task.groups} == {
        "reversible_flow": [1, 2, 3],
        "gaussian": [1],
    }
    flow = next(group for group in task.groups if group.label == "reversible_flow")
    found = curve(flow.runs, "train/kl")
    expected = [run.column("train/kl") for run in flow.runs]  # larger with the seed
    np.testing.assert_array_equal([found.low, found.median, found.high], expected)
    assert found.frames.tolist() == [1000 * i for i in range(1, 13)]
    ends = [number(read_run(tmp_path / f"flow/{i}").column("eval/zero_noise/return")[-1]) for i in (1, 2, 3)]
    rows = report(tmp_path).rows
    head = next(row for row in rows if row[0] == "median (seeds)")
    row = next(row for row in rows if row[0] == "eval/zero_noise/return")
    assert row[head.index("reversible_flow")] == f"{ends[1]} ({', '.join(ends)})"


def test_a_last_evaluation_is_the_newest_value_that_is_known(make_run, report):
    folder = make_run("run", updates=10)
    rows = {row[0]: row[1:] for row in report(folder).rows}
    for name in ("eval/zero_noise/return", "eval/random_noise/return", "eval/zero_noise/turns"):
        assert rows[name] == [number(read_run(folder).metrics[name][7])]
    assert "eval/random_noise/turns" not in rows, "not measured with random noise"


def test_only_what_differs_is_compared(make_run, report, tmp_path):
    make_run("a", **{"start.tau": 0.3})
    make_run("b", seed=2, **{"start.tau": 1.0})
    page = report(tmp_path)
    (task,) = group_runs(read_runs([tmp_path])[0])
    assert task.differences == {"start.tau": ["0.3", "1.0"]}
    at = page.rows.index(["option", "start.tau=0.3", "start.tau=1.0"])
    assert page.rows[at + 1] == ["start.tau", "0.3", "1.0"] and page.rows[at + 2][0] == "group", "nothing else"


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (
            [{"policy.name": "gaussian", "policy.activation": "tanh"}, {"policy.activation": "mish"}],
            ["gaussian", "reversible_flow"],
        ),
        ([{"start.name": "paper"}, {"start.name": "consistent", "start.tau": 1}], ["paper", "consistent"]),
        ([{"start.tau": 0.1}, {"start.tau": 1}, {}], ["start.tau=0.1", "start.tau=1", "start.tau=-"]),
        ([{}, {"optim.lr": 0.1}, {"x": 1}], ["optim.lr=0.0003, x=-", "optim.lr=0.1, x=-", "optim.lr=0.0003, x=1"]),
        ([{}], ["reversible_flow"]),
    ],
)
def test_labels_are_short_and_tell_groups_apart(make_run, tmp_path, options, labels):
    for i, group in enumerate(options):
        make_run(str(i), **group)
    (task,) = group_runs(read_runs([tmp_path])[0])
    assert [group.label for group in task.groups] == labels


@pytest.mark.parametrize(
    "options",
    [{"num_threads": 4, "checkpoint.preempted_exit_code": 85, "tolerance.restarts": 3}, {"optim.critic_lr": None}],
)
def test_how_a_run_was_kept_and_options_of_older_versions_make_no_other_configuration(make_run, tmp_path, options):
    make_run("here", seed=1)
    make_run("there", seed=2, **options)
    (task,) = group_runs(read_runs([tmp_path])[0])
    assert len(task.groups) == 1


def test_each_task_has_charts_of_its_own(make_run, report, tmp_path):
    make_run("a")
    make_run("b", **{"env.name": "walker2d"})
    assert [task.name for task in group_runs(read_runs([tmp_path])[0])] == ["hopper", "walker2d"]
    assert report(tmp_path).values("data-column").count("train/kl") == 2


def test_seeds_that_are_no_numbers_are_sorted_behind_those_that_are(make_run, tmp_path):
    for i, seed in enumerate(["b", None, 2, 1]):
        make_run(str(i), seed=seed)
    (task,) = group_runs(read_runs([tmp_path])[0])
    assert [run.seed for run in task.groups[0].runs] == [1, 2, "b", None]


HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(1)>&\"'$x^2$"


def test_names_and_values_from_files_stay_text(make_run, report, tmp_path):
    name = HOSTILE.replace("/", "|")  # a folder's name has no slash
    first = make_run(f"{name}/1", extra=[HOSTILE], **{"policy.name": HOSTILE, "env.name": HOSTILE})
    (first / "checkpoints").mkdir()
    (first / "checkpoints" / f"{name}.mp4").write_bytes(b"v")
    make_run("byte \udcff of no character", seed=3)
    make_run(f"{name}/2", seed=HOSTILE, updates=3, **{"policy.name": "flow", "env.name": HOSTILE, "optim.x": HOSTILE})
    make_run(f"{name}/3", updates=3, **{"policy.name": HOSTILE, "env.name": HOSTILE, HOSTILE.replace(".", ""): 1})
    page = report(tmp_path)
    assert not {"script", "img"} & set(page.tags) and page.tags.count("style") == 1 + page.tags.count("svg")
    assert not [attribute for attribute in page.attributes if attribute[1].startswith("on")]
    assert HOSTILE in page.text and f"{name}.mp4" in page.text
    assert any(HOSTILE in cell for row in page.rows for cell in row)
    assert "byte ? of no character" in page.text
    assert HOSTILE in page.values("data-column")


def test_references_in_a_configuration_are_not_followed(make_run, report, monkeypatch):
    monkeypatch.setenv("GENPO_SECRET", "do-not-tell")
    folder = make_run("run")
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "x: ${oc.env:GENPO_SECRET}\n")
    assert "do-not-tell" not in report(folder).source


def test_a_row_that_was_cut_short_is_left_out(make_run):
    folder = make_run("run")
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text[:-20])
    assert read_run(folder).metrics["frames"].tolist() == [1000 * i for i in range(1, 12)]


def test_infinite_values_are_not_drawn(make_run, report):
    folder = make_run("run")
    file = folder / "metrics.csv"
    file.write_text(file.read_text().replace("1.1e-05", "inf"))
    assert "train/inversion_error" in report(folder).values("data-column")
    assert curve([read_run(folder)], "train/inversion_error").frames.tolist() == [*range(1000, 11000, 1000), 12000]


def test_the_same_run_is_taken_once(make_run, report):
    first, second = make_run("a"), make_run("b")
    page = report(first, first.parent, second)
    assert [row[-1] for row in page.rows[-3:]] == ["folder", str(first), str(second)]


def test_a_run_that_was_never_evaluated_has_a_page(make_run, report):
    assert "Last evaluation" not in report(make_run("run", updates=3)).text


def test_seeds_with_other_frames_are_interpolated_and_each_counts_where_it_has_values(make_run, tmp_path):
    make_run("a", seed=1)
    make_run("b", seed=2, updates=6)
    runs = read_runs([tmp_path])[0]
    runs[1].metrics["frames"] += 500
    found = curve(runs, "train/return")
    seeds = [np.interp(found.frames, run.metrics["frames"], run.column("train/return")) for run in runs]
    both = (found.frames >= 1500) & (found.frames <= 6500)
    assert both.sum() >= 5
    np.testing.assert_allclose(found.median[both], np.mean(seeds, 0)[both])
    np.testing.assert_allclose(found.median[~both], seeds[0][~both])


def test_long_runs_are_drawn_by_means_that_keep_their_level(make_run):
    run = read_run(make_run("run"))
    frames = np.arange(1.0, 1001.0)
    run.metrics = {"frames": frames, "train/kl": np.where(np.arange(1000) % 2, 3.0, 1.0) + frames}
    found = curve([run], "train/kl")
    assert len(found.frames) <= POINTS
    keep = slice(0, -1)  # means of five: three low, two high or the reverse
    assert np.abs(found.median - found.frames - 2)[keep].max() <= 0.2 + 1e-9


def test_the_band_is_the_middle_half_of_five_seeds(make_run, tmp_path):
    for seed in range(1, 6):
        make_run(str(seed), seed=seed)
    runs = read_runs([tmp_path])[0]
    found = curve(runs, "train/kl")
    np.testing.assert_allclose([found.low, found.high], [runs[i].column("train/kl") for i in (1, 3)])


def test_videos_are_embedded_up_to_the_limit_which_is_told(make_run, report):
    folder = make_run("run")
    (folder / "video.mp4").write_bytes(b"v" * 1000)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "checkpoint-1.mp4").write_bytes(b"w" * 500_000)
    page = report(folder, video_limit=0.4)
    assert page.values("src") == ["data:video/mp4;base64," + "dnZ2" * 333 + "dg=="]
    assert "checkpoint-1.mp4 (0.5 MB) is not embedded: over the limit, which --video-limit MB raises" in page.text


def test_the_first_video_of_every_run_comes_before_further_ones(make_run, report, tmp_path):
    for seed in (1, 2):
        folder = make_run(str(seed), seed=seed)
        (folder / "checkpoints").mkdir()
        (folder / "video.mp4").write_bytes(b"v" * 1000)
        (folder / "checkpoints" / "checkpoint-1.mp4").write_bytes(b"w" * 1000)
    page = report(tmp_path, video_limit=0.0025)
    assert page.values("src") == ["data:video/mp4;base64," + "dnZ2" * 333 + "dg=="] * 2
    assert page.text.count("checkpoint-1.mp4 (0.0 MB) is not embedded") == 2


def test_an_old_page_is_replaced_whole_or_not_at_all(make_run, tmp_path, capsys):
    folder, output = make_run("run"), tmp_path / "report.html"
    output.write_text("old")
    with pytest.raises(SystemExit):
        main([str(folder), str(folder / "nothing"), "--output", str(output)])
    assert output.read_text() == "old"
    assert main([str(folder), "--output", str(output)]) == 0
    assert f"Report: {output}" in capsys.readouterr().out and "<!DOCTYPE html>" in output.read_text()


@pytest.mark.parametrize(
    ("name", "content", "messages"),
    [
        ("metrics.csv", None, ["is not a run", "no metrics.csv", "first update"]),
        ("metrics.csv", "frames,train/kl\n", ["no rows of a training run", "Wait"]),
        ("metrics.csv", "", ["no rows of a training run"]),
        ("metrics.csv", "iteration\n1\n", ["no rows of a training run"]),
        ("metrics.csv", "frames\n" + "1" * 200_000 + "\n", ["is damaged", "field"]),
        ("metrics.csv", "frames,train/kl\n1000,zero\n", ["is damaged", "zero"]),
        ("config.yaml", None, ["no config.yaml", "Copy it again"]),
        ("config.yaml", "a: [1", ["not readable YAML", "Restore it"]),
        ("config.yaml", "[1]", ["holds no options"]),
        ("config.yaml", "a: " + "[" * 5000 + "]" * 5000, ["not readable YAML"]),
        ("config.yaml", "a: &a {b: *a}", ["not readable YAML"]),
    ],
)
def test_mistakes_are_explained_with_the_folder_and_the_remedy(make_run, tmp_path, name, content, messages):
    folder = make_run("spoilt")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(SystemExit) as error:
        main([str(folder), "--output", str(tmp_path / "report.html")])
    for message in [str(folder), *messages]:
        assert message in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_above_leaves_out_what_cannot_be_read_and_says_so(make_run, report, tmp_path):
    make_run("good")
    (make_run("spoilt") / "config.yaml").unlink()
    page = report(tmp_path)
    assert "spoilt is left out" in page.text and "no config.yaml" in page.text
    assert [row[-1] for row in page.rows[-2:]] == ["folder", str(tmp_path / "good")]


@pytest.mark.parametrize(
    ("runs", "output", "message"),
    [("nowhere", "r.html", "nowhere is not a folder"), ("run", "no/r.html", "folder that exists")],
)
def test_paths_that_are_not_there_are_named(make_run, tmp_path, runs, output, message):
    make_run("run")
    with pytest.raises(SystemExit, match=message):
        main([str(tmp_path / runs), "--output", str(tmp_path / output)])
