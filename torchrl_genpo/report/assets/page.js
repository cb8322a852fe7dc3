// This source code is licensed under the MIT license found in the
// LICENSE file in the root directory of this source tree.
// Draws the charts of a report with uPlot, and draws them again when a control, the width or the colour scheme changes.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const controls = document.querySelector(".controls");
  const charts = [...document.querySelectorAll(".chart")];
  const plots = new Map();
  const LOW = 0, MEDIAN = 1, HIGH = 2; // rows of a group's curve; then one for each seed

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const fade = (color, alpha) => color + Math.round(255 * alpha).toString(16).padStart(2, "0");
  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
  const text = (v, digits) => {
    const rounded = Number(v.toPrecision(digits)), size = Math.abs(rounded);
    if (size >= 10000) return compact.format(rounded);
    return size && size < 0.001 ? rounded.toExponential() : String(rounded);
  };
  const short = (ticks) => ticks.map((v) => (v == null ? "" : text(v, 3))); // null: a tick that uPlot leaves blank

  function options(element, groups, task, axis, isLog) {
    const eachSeed = controls.elements.seeds.checked;
    const series = [{}], bands = [], medians = [];
    for (const { id, curve } of groups) {
      const color = css(`--c${id % data.colors}`), first = series.length;
      const isDense = curve.frames.length > 60;
      curve.rows.forEach((_, row) => {
        if (row === MEDIAN) {
          series.push({ stroke: color, width: isDense ? 1.5 : 2, dash: id >= data.colors ? [6, 4] : undefined, points: { size: 6, fill: color } });
        } else {
          const isEdge = row < HIGH + 1; // of the band, which alone is seen
          series.push({ show: isEdge || eachSeed, stroke: isEdge ? "transparent" : fade(color, 0.55), width: isEdge ? 0 : 1, points: { show: false } });
        }
      });
      bands.push({ series: [first + HIGH, first + LOW], fill: fade(color, 0.16) });
      medians.push({ id, color, row: first + MEDIAN });
    }
    const ink = { stroke: css("--muted"), font: "11px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: css("--grid"), width: 1 } };
    return {
      width: element.clientWidth,
      height: element.clientHeight,
      legend: { show: false },
      padding: [10, 14, 0, 0],
      cursor: {
        y: false,
        sync: { key: `task ${element.dataset.task}`, scales: ["x", null], setSeries: false },
        points: { show: (u, i) => medians.some(({ row }) => row === i) },
      },
      scales: { x: { time: false }, y: isLog ? { distr: 3 } : {} },
      axes: [
        { ...ink, size: 26, label: task.axes[axis].label, labelSize: 16, labelGap: 0, labelFont: ink.font, values: (u, ticks) => short(ticks), space: 60 },
        { ...ink, size: 52, values: (u, ticks) => short(ticks) },
      ],
      series,
      bands,
      hooks: { init: [(u) => addTip(u, element)], setCursor: [(u) => fillTip(u, medians)] },
    };
  }

  function addTip(u, element) {
    u.tip = document.createElement("div");
    u.tip.className = "tip";
    u.tip.hidden = true;
    u.over.append(u.tip);
    u.element = element;
  }

  // The charts of a task share a cursor, but only the one that is pointed at or focused tells its values.
  function fillTip(u, medians) {
    const { left, idxs } = u.cursor;
    const isHere = u.element.matches(":hover") || document.activeElement === u.element;
    u.tip.hidden = left < 0 || !isHere;
    if (u.tip.hidden) return;
    const found = medians.map((m) => ({ ...m, value: u.data[m.row][idxs[m.row]], x: u.data[0][idxs[m.row]] })).filter((m) => m.value != null);
    found.sort((a, b) => b.value - a.value);
    u.tip.replaceChildren(...found.map(({ id, color, value, x }) => {
      const line = document.createElement("div"), dot = document.createElement("i"), at = document.createElement("small");
      dot.style.background = color;
      at.textContent = `at ${text(x, 3)}`;
      line.append(dot, `${text(value, 4)}  ${data.labels[id]}`, at);
      return line;
    }));
    u.tip.hidden = !found.length;
    const isRight = left > u.over.clientWidth / 2;
    u.tip.style.left = isRight ? "auto" : `${left + 12}px`;
    u.tip.style.right = isRight ? `${u.over.clientWidth - left + 12}px` : "auto";
    u.tip.style.top = "4px";
  }

  function draw(element) {
    plots.get(element)?.destroy();
    plots.delete(element);
    if (!element.clientWidth) return; // in a closed section: drawn when it opens
    const task = data.tasks[element.dataset.task], chart = task.charts[element.dataset.column];
    const axis = controls.elements.axis.value;
    const shown = new FormData(controls).getAll("group").map(Number);
    const groups = chart.groups.map((id, i) => ({ id, curve: chart.curves[i] })).filter(({ id, curve }) => curve && shown.includes(id));
    // every group has an x of its own; the first table, which holds nothing else, stretches x over the whole task
    const joined = uPlot.join([[[0, task.axes[axis].end]], ...groups.map(({ curve }) => [curve[axis], ...curve.rows])]);
    plots.set(element, new uPlot(options(element, groups, task, axis, chart.log), joined, element));
  }
  const drawAll = () => charts.forEach(draw);

  function step(event) {
    const u = plots.get(event.currentTarget), way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!u || !way) return;
    event.preventDefault();
    const left = u.cursor.left < 0 ? 0 : u.cursor.left + way * u.over.clientWidth / 40;
    u.setCursor({ left: Math.min(Math.max(left, 0), u.over.clientWidth), top: u.over.clientHeight / 2 });
  }

  controls.reset(); // a browser that reloads keeps what was chosen
  controls.addEventListener("change", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  const watch = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    const u = plots.get(target);
    if (!u || u.width !== target.clientWidth) draw(target);
  }));
  for (const element of charts) {
    element.addEventListener("keydown", step);
    element.addEventListener("blur", () => plots.get(element)?.setCursor({ left: -10, top: -10 }));
    watch.observe(element);
  }
})();
