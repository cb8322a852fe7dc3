"""Reports: what they read, how they group and summarise it, and that a page is whole, safe and self-contained."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from torchrl_genpo.commands.report import main
from torchrl_genpo.report import group_runs, read_run, read_runs
from torchrl_genpo.report.groups import POINTS, curves
from torchrl_genpo.report.page import draw, evaluations, number
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
    assert page.tags.count("svg") == len(page.values("data-column")) == len(columns) + 2, "two against hours, too"


def test_a_chart_shows_the_median_and_the_band_where_they_are(make_run, tmp_path):
    for seed in (1, 2, 3):
        make_run(f"flow/{seed}", seed=seed)
    make_run("gaussian", **{"policy.name": "gaussian"})
    runs = read_runs([tmp_path / "flow", tmp_path / "gaussian"])[0]
    flow, gaussian = curves(runs[:3], "train/return"), curves(runs[3:], "train/return")
    tree = ElementTree.fromstring(draw({0: flow, 1: gaussian}, "train/return", "frames"))
    lines = {}
    for element in tree.iter("{http://www.w3.org/2000/svg}path"):
        style, data = element.get("style", ""), element.get("d")
        color = re.search(r"stroke: (#\w+)", style)
        if "fill: none" in style and color:
            lines.setdefault(color[1], np.array(re.findall(r"[ML] (\S+) (\S+)", data), float))
    for color, curve in (("#0072b2", flow), ("#d55e00", gaussian)):
        for drawn, values in zip(lines[color].T, (curve["frames"], curve["median"]), strict=True):
            slope, offset = np.polyfit(values, drawn, 1)
            np.testing.assert_allclose(slope * values + offset, drawn, atol=1e-3)
    bands = [use for use in tree.iter("{http://www.w3.org/2000/svg}use") if "fill-opacity: 0.18" in use.get("style")]
    assert ["#0072b2" in band.get("style") for band in bands] == [True], "a single seed has no band"


def test_runs_that_differ_in_the_seed_are_one_group_and_others_are_beside_it(make_run, report, tmp_path):
    for seed in (3, 1, 2):
        make_run(f"flow/{seed}", seed=seed)
    make_run("gaussian/1", offset=2.0, **{"policy.name": "gaussian"})
    (task,) = group_runs(read_runs([tmp_path])[0])
    assert [group.label for group in task.groups] == ["reversible_flow", "gaussian"]
    assert [[run.seed for run in group.runs] for group in task.groups] == [[1, 2, 3], [1]]
    flow, gaussian = (curves(group.runs, "train/kl") for group in task.groups)
    np.testing.assert_array_equal(flow["seeds"], [flow["low"], flow["median"], flow["high"]])  # larger with the seed
    assert (flow["low"] < flow["median"]).all() and (flow["median"] < flow["high"]).all()
    assert flow["frames"].tolist() == [1000 * i for i in range(1, 13)]
    np.testing.assert_allclose(flow["seconds"], [60 * i for i in range(1, 13)])
    np.testing.assert_allclose(gaussian["seconds"], 2 * flow["seconds"])
    ends = [number(read_run(tmp_path / f"flow/{i}").column("eval/zero_noise/return")[-1]) for i in (1, 2, 3)]
    row = next(row for row in report(tmp_path).rows if row[:2] == ["return", "reversible_flow"])
    assert row[2] == f"{ends[1]} ({', '.join(ends)})" and row[4] == "12,000"


def test_a_last_evaluation_is_the_newest_row_that_has_one(make_run, tmp_path):
    make_run("run", updates=10)
    (task,) = group_runs(read_runs([tmp_path])[0])
    found = {name: (zero, random, frames) for name, _, zero, random, frames in evaluations(task)}
    run = task.groups[0].runs[0]
    zero, random = (number(run.metrics[f"eval/{noise}_noise/return"][7]) for noise in ("zero", "random"))
    assert found["return"] == (zero, random, "8,000")
    assert found["turns"][1] == "-", "not measured with random noise"


def test_only_what_differs_is_compared(make_run, report, tmp_path):
    make_run("a", **{"start.tau": 0.3})
    make_run("b", seed=2, **{"start.tau": 1.0})
    page = report(tmp_path)
    (task,) = group_runs(read_runs([tmp_path])[0])
    assert task.differences == {"start.tau": ["0.3", "1.0"]}
    assert [group.label for group in task.groups] == ["start.tau=0.3", "start.tau=1.0"]
    at = page.rows.index(["option", "start.tau=0.3", "start.tau=1.0"])
    assert page.rows[at + 1] == ["start.tau", "0.3", "1.0"] and page.rows[at + 2][0] == "group", "nothing else"


CONSISTENT, PAPER = {"start.name": "consistent"}, {"start.name": "paper"}


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (
            [{}, {"loss.ratio": "action", "loss.num_memories": 4}, {"optim.lr": 1e-3}],
            ["reversible_flow", "loss.ratio=action", "optim.lr=0.001"],
        ),
        (
            [{"policy.name": "gaussian", "policy.activation": "tanh"}, {"policy.activation": "mish"}],
            ["gaussian", "reversible_flow"],
        ),
        (
            [CONSISTENT | {"start.tau": 0.1}, CONSISTENT | {"start.tau": 1}, PAPER, PAPER | {"loss.epochs": 5}],
            ["consistent, start.tau=0.1", "consistent, start.tau=1", "paper", "paper, loss.epochs=5"],
        ),
        ([{"x": 1}, {"x": "1"}], ["x=1 (1)", "x=1 (2)"]),
        ([{"x": 1}, {"x": 1, "y": 2}, {"y": 2}], ["no y", "reversible_flow", "no x"]),
    ],
)
def test_labels_are_short_and_tell_groups_apart(make_run, tmp_path, options, labels):
    for i, group in enumerate(options):
        make_run(str(i), **group)
    (task,) = group_runs(read_runs([tmp_path])[0])
    assert [group.label for group in task.groups] == labels


def test_how_a_run_was_kept_and_computed_makes_no_other_configuration(make_run, tmp_path):
    make_run("here", seed=1)
    make_run("cluster", seed=2, num_threads=4, **{"checkpoint.preempted_exit_code": 85, "tolerance.restarts": 3})
    (task,) = group_runs(read_runs([tmp_path])[0])
    assert len(task.groups) == 1


def test_an_option_that_is_null_is_as_one_that_an_older_configuration_lacks(make_run, tmp_path):
    make_run("old", seed=1)
    make_run("new", seed=2, **{"optim.critic_lr": None})
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
    assert [run.seed for run in task.groups[0].runs] == [1, 2, None, "b"]


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


def test_damage_is_left_out_and_told(make_run, tmp_path):
    folder = make_run("run")
    file = folder / "metrics.csv"
    lines = file.read_text().splitlines()
    lines[3] = lines[3].replace("0.001", "zero", 1).replace(lines[3].split(",")[1], "a\0b")
    lines.insert(6, lines[5])  # the same frames again
    lines[-1] = lines[-1][: len(lines[-1]) // 2]  # cut short
    file.write_text("\n".join(lines))
    run = read_run(folder)
    assert run.damaged == [4, 7, 14] and run.metrics["frames"].tolist() == [1000, 2000, *range(4000, 12000, 1000)]
    warnings = "\n".join(run.warnings())
    assert "3 damaged rows of metrics.csv were left out (lines 4, 7, 14)" in warnings
    assert "unfinished: 11,000 of 12,000 frames (92%)" in warnings and f"resume={folder}" in warnings


def test_a_large_inversion_error_and_infinite_values_are_told(make_run, report):
    folder = make_run("run")
    file = folder / "metrics.csv"
    file.write_text(file.read_text().replace("1.2e-05", "0.25").replace("1.1e-05", "inf"))
    page = report(folder)
    assert "The inversion error reached" in page.text and "in 2 of 12 updates" in page.text
    assert "Infinite values are not drawn: train/inversion_error" in page.text
    np.testing.assert_allclose(curves([read_run(folder)], "train/inversion_error")["median"][-2:], [1e-5, 0.25])


def test_numbers_that_no_axis_can_show_are_told_and_not_drawn(make_run, report):
    folder = make_run("run")
    file = folder / "metrics.csv"
    file.write_text(file.read_text().replace("1.2e-05", "1.7e308").replace("1.1e-05", "-1.7e308"))
    assert "Infinite values are not drawn: train/inversion_error" in report(folder).text


def test_of_stale_data_the_inversion_error_is_no_numerical_error(make_run):
    file = make_run("run") / "metrics.csv"
    header, *rows = file.read_text().replace("1.2e-05", "0.25").replace("1.1e-05", "0.2").splitlines()
    for staleness, told in ((0, True), (1, False)):
        file.write_text("\n".join([f"{header},collect/staleness", *(f"{row},{staleness}" for row in rows)]))
        assert ("The inversion error reached" in "\n".join(read_run(file.parent).warnings())) == told


def test_the_same_run_is_taken_once_and_a_repeated_seed_is_told(make_run, report):
    first, second = make_run("a"), make_run("b")
    page = report(first, first.parent, second)
    assert [row[-1] for row in page.rows[-2:]] == [str(first), str(second)] and page.rows[-3][-1] == "folder"
    assert f"seed 1 of {first}" in page.text


def test_a_run_that_was_never_evaluated_has_a_page(make_run, report):
    page = report(make_run("run", updates=3))
    assert "None of these runs was evaluated" in page.text and "never evaluated so far" in page.text


def test_seeds_with_other_frames_are_interpolated_and_each_counts_where_it_has_values(make_run, tmp_path):
    make_run("a", seed=1)
    make_run("b", seed=2, updates=6)
    runs = read_runs([tmp_path])[0]
    runs[1].metrics["frames"] += 500
    found = curves(runs, "train/return")
    x, y = runs[0].column("frames"), runs[0].column("train/return")
    np.testing.assert_allclose(found["seeds"][0], np.interp(found["frames"], x, y))
    both = (found["frames"] >= 1500) & (found["frames"] <= 6500)
    assert both.sum() >= 5 and (np.isfinite(found["seeds"][1]) == both).all()
    np.testing.assert_allclose(found["median"][both], found["seeds"][:, both].mean(0))
    np.testing.assert_allclose(found["median"][~both], found["seeds"][0][~both])


def test_hours_are_at_the_median_pace_of_the_seeds(make_run, tmp_path):
    make_run("slow", seed=1, updates=6)
    make_run("fast", seed=2)
    runs = read_runs([tmp_path])[0]
    (fast,) = [run for run in runs if run.seed == 2]
    fast.metrics["time/seconds"] /= 10
    np.testing.assert_allclose(curves(runs, "train/return")["seconds"], [33.0 * i for i in range(1, 13)])


def test_long_runs_are_drawn_by_means_that_keep_their_level(make_run):
    run = read_run(make_run("run"))
    frames = np.arange(1.0, 1001.0)
    noisy = np.where(np.arange(1000) % 2, 3.0, 1.0) + frames
    run.metrics = {"frames": frames, "time/seconds": frames / 10, "train/kl": noisy}
    found = curves([run], "train/kl")
    assert len(found["frames"]) <= POINTS
    keep = slice(0, -1)  # means of five: three low, two high or the reverse
    assert np.abs(found["median"] - found["frames"] - 2)[keep].max() <= 0.2 + 1e-9
    np.testing.assert_allclose(found["seconds"], found["frames"] / 10)


def test_the_band_is_the_middle_half_of_five_seeds(make_run, tmp_path):
    for seed in range(1, 6):
        make_run(str(seed), seed=seed)
    found = curves(read_runs([tmp_path])[0], "train/kl")
    np.testing.assert_allclose([found["low"], found["high"]], found["seeds"][[1, 3]])


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


BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("spoil", "messages"),
    [
        (lambda folder: (folder / "metrics.csv").unlink(), ["is not a run", "no metrics.csv", "first update"]),
        (lambda folder: (folder / "metrics.csv").write_text("frames,train/kl\n"), ["no readable row yet", "Wait"]),
        (lambda folder: (folder / "metrics.csv").write_text(""), ["no first column 'frames'"]),
        (
            lambda folder: (folder / "metrics.csv").write_text("iteration\n1\n"),
            ["no first column 'frames'", "pretrain.py"],
        ),
        (lambda folder: (folder / "metrics.csv").write_text("frames\n" + "1" * 200_000), ["is damaged", "field limit"]),
        (lambda folder: (folder / "config.yaml").unlink(), ["no config.yaml", "Copy it again"]),
        (lambda folder: (folder / "config.yaml").write_text("a: [1"), ["not readable YAML", "Restore it"]),
        (lambda folder: (folder / "config.yaml").write_text("[1]"), ["holds no options"]),
        (lambda folder: (folder / "config.yaml").write_text("a: " + "[" * 5000 + "]" * 5000), ["not readable YAML"]),
        (lambda folder: (folder / "config.yaml").write_text("a: &a {b: *a}"), ["not readable YAML", "aliases"]),
        (lambda folder: (folder / "config.yaml").write_text(BOMB), ["not readable YAML", "aliases"]),
    ],
)
def test_mistakes_are_explained_with_the_folder_and_the_remedy(make_run, tmp_path, spoil, messages):
    folder = make_run("spoilt")
    spoil(folder)
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
