// Small multiples: every panel shows one or two numbers of all series over the steps, and a cursor that all share.

const SIZE = { width: 360, height: 190, left: 44, right: 8, top: 8, bottom: 22 };
const KINDS = 6; // of colour, dash and marker
const MARKS = [
  "M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0", "M-2.7,-2.7h5.4v5.4h-5.4z", "M0,-3.6l3.5,6.2h-7z",
  "M0,-3.8l3.3,3.8l-3.3,3.8l-3.3,-3.8z", "M-3.5,-2.6h7l-3.5,6.2z", "M-3,-3l6,6m0,-6l-6,6",
];
// Names and titles; of two names the second is drawn thin. Panels of one scale have the same y axis.
const PANELS = [
  { title: "Reward", unit: "mean of the rollouts", names: ["reward/mean"] },
  { title: "Entropy", unit: "nats a token", names: ["entropy/mean"] },
  { title: "Attracting arm", unit: "mean mass a token", names: ["router/attract_mass"], scale: "mass" },
  { title: "Repelling arm", unit: "mean mass a token", names: ["router/repel_mass"], scale: "mass" },
  { title: "Gap", unit: "mean |gap|, nats; thin: rounding error, last measured", names: ["gap/mean_abs", "gap/noise_mean_abs"] },
  { title: "Length", unit: "tokens; thin: 95th percentile", names: ["rollout/length_mean", "rollout/length_p95"] },
];

/** The key of a series: a piece of its line with its marker. */
function key(place) {
  const kind = place % KINDS;
  return draw("svg", { class: "key", viewBox: "0 0 38 14", "aria-hidden": "true" }, [
    draw("path", { class: `series s${kind} d${kind}`, d: "M1,7H37" }),
    draw("path", { class: `mark s${kind}`, d: MARKS[kind], transform: "translate(19,7)" }),
  ]);
}

/** A number of a run: step → [value, standard error or undefined]. */
function curve(run, name) {
  const points = new Map();
  if (!(name in run.values)) return points;
  const [place, values] = run.values[name];
  const errors = run.errors[name] || [];
  run.step_lists[place].forEach((step, i) => values[i] !== null && points.set(step, [values[i], errors[i] ?? undefined]));
  return points;
}

/** A number of a group: [{step, value, low, high}] in the order of the steps. Seeds: mean, minimum and maximum, at the
 * steps that all of them have, so that the line never jumps because a seed is missing. */
function line(group, name) {
  const [first, ...others] = group.runs.map((i) => curve(data.runs[i], name));
  const steps = [...first.keys()].filter((step) => others.every((points) => points.has(step)));
  return steps.map((step) => {
    const [value, error] = first.get(step);
    if (!others.length) return error === undefined ? { step, value } : { step, value, low: value - error, high: value + error };
    const values = [value, ...others.map((points) => points.get(step)[0])];
    const mean = values.reduce((a, b) => a + b) / values.length;
    return { step, value: mean, low: Math.min(...values), high: Math.max(...values) };
  });
}

/** Round numbers that divide a range into about `count` parts. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const found = [];
  for (let i = Math.ceil(low / size - 1e-9); i * size <= high + 1e-9 * size; i++) found.push(i * size);
  return found;
}

/** The range of the values of some lines, with a margin; from 0 where they come near it. */
function range(lines) {
  const values = lines.flat().flatMap((point) => [point.value, point.low ?? point.value, point.high ?? point.value]);
  let low = values.reduce((a, b) => Math.min(a, b), Infinity);
  let high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const margin = (high - low || Math.abs(high) || 1) * 0.06;
  if (low >= 0 && low < 0.5 * high) low = 0;
  else low -= margin;
  return [low, high + margin];
}

const panels = [];

/** Adds a panel to a grid, unless no run has its numbers. */
function addPanel(grid, { title, unit, names, scale }, remove) {
  const found = names.map((name) => data.groups.map((group) => line(group, name)));
  const lines = found.flat();
  if (!lines.some((points) => points.length)) return;
  const panel = { names, scale, found, lines, steps: [...new Set(lines.flat().map((point) => point.step))].sort((a, b) => a - b) };
  panel.plot = draw("svg", { class: "plot", viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, tabindex: "0", role: "img" });
  panel.plot.setAttribute("aria-label", `${title}, steps ${panel.steps[0]} to ${panel.steps.at(-1)}; arrow keys move the cursor`);
  panel.readout = make("p", "readout");
  const head = [make("h3", "", title), make("span", "unit", unit)];
  panel.figure = make("article", "panel", [make("header", "", head), panel.plot, panel.readout]);
  if (remove) {
    const button = make("button", "close", "×", { type: "button", "aria-label": `Remove ${title}` });
    button.addEventListener("click", () => { panels.splice(panels.indexOf(panel), 1); panel.figure.remove(); });
    panel.figure.firstChild.append(button);
  }
  panels.push(panel);
  grid.append(panel.figure);
  panel.plot.addEventListener("pointermove", (event) => {
    const box = panel.plot.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * SIZE.width;
    const step = panel.low + ((place - SIZE.left) / (SIZE.width - SIZE.left - SIZE.right)) * (panel.high - panel.low);
    moveCursor(nearest(panel.steps, step));
  });
  panel.plot.addEventListener("pointerleave", () => moveCursor(null));
  panel.plot.addEventListener("focus", () => panel.readout.setAttribute("aria-live", "polite"));
  panel.plot.addEventListener("blur", () => { panel.readout.removeAttribute("aria-live"); moveCursor(null); });
  panel.plot.addEventListener("keydown", (event) => {
    const last = panel.steps.length - 1;
    const now = panel.step === null ? last : panel.steps.indexOf(panel.step);
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    moveCursor(panel.steps[Math.min(Math.max(next, 0), last)]);
  });
}

/** The nearest of some ordered numbers. */
const nearest = (numbers, wanted) => numbers.reduce((best, each) => (Math.abs(each - wanted) < Math.abs(best - wanted) ? each : best), numbers[0]);

/** Draws a panel. */
function plot(panel, [bottom, top], [low, high]) {
  Object.assign(panel, { low, high, step: null });
  const { width, height, left, right, top: above, bottom: below } = SIZE;
  const x = (step) => left + ((step - low) / (high - low)) * (width - left - right);
  const y = (value) => height - below - ((value - bottom) / (top - bottom)) * (height - above - below);
  panel.x = x;
  const parts = [];
  for (const value of ticks(bottom, top, 4)) {
    parts.push(draw("path", { class: "axis", d: `M${left},${y(value).toFixed(1)}H${width - right}` }));
    parts.push(draw("text", { class: "tick", x: left - 6, y: y(value) + 3.5, "text-anchor": "end" }, [figure(value, 3)]));
  }
  for (const step of ticks(low, high, 5).filter(Number.isInteger)) {
    const anchor = x(step) > width - 24 ? "end" : "middle";
    parts.push(draw("text", { class: "tick", x: x(step), y: height - 6, "text-anchor": anchor }, [String(step)]));
  }
  const at = (point, name = "value") => `${x(point.step).toFixed(1)},${y(point[name]).toFixed(1)}`;
  panel.found.forEach((groups, second) => groups.forEach((points, place) => {
    if (!points.length) return;
    const kind = place % KINDS;
    const seeds = data.groups[place].runs.length > 1;
    if (seeds && !second) {
      const back = points.slice().reverse().map((point) => at(point, "low"));
      parts.push(draw("path", { class: `band s${kind}`, d: `M${[...points.map((point) => at(point, "high")), ...back].join("L")}Z` }));
    } else if (!seeds) {
      const bars = points.filter((point) => point.low !== undefined).map((point) => `M${at(point, "low")}L${at(point, "high")}`);
      if (bars.length) parts.push(draw("path", { class: `bar s${kind}`, d: bars.join("") }));
    }
    parts.push(draw("path", { class: `series s${kind} d${kind}${second ? " second" : ""}`, d: `M${points.map((point) => at(point)).join("L")}` }));
    const every = points.length <= 12 ? 1 : Math.ceil(points.length / 6);
    if (second && points.length > 12) return;
    points.forEach((point, i) => (i + place) % every === 0 && parts.push(
      draw("path", { class: `mark s${kind}`, d: MARKS[kind], transform: `translate(${at(point)})${second ? "scale(.7)" : ""}` })));
  }));
  panel.cursor = draw("path", { class: "cursor" });
  panel.plot.replaceChildren(...parts, panel.cursor);
  readOut(panel, null);
}

/** Writes the values of a panel at a step, or at the last one. */
function readOut(panel, step) {
  const wanted = step ?? panel.steps.at(-1);
  panel.step = step === null ? null : nearest(panel.steps, wanted);
  panel.cursor.setAttribute("d", step === null ? "" : `M${panel.x(wanted).toFixed(1)},${SIZE.top}V${SIZE.height - SIZE.bottom}`);
  const parts = [make("span", "", `step ${wanted}`)];
  data.groups.forEach((group, place) => {
    const values = panel.found.map((groups) => groups[place].find((point) => point.step === wanted));
    if (!values.some(Boolean)) return;
    const texts = values.map((point) => {
      if (!point) return "–";
      if (point.low === undefined) return figure(point.value, 3);
      if (group.runs.length > 1) return `${figure(point.value, 3)} (${figure(point.low, 3)} to ${figure(point.high, 3)})`;
      return `${figure(point.value, 3)} ± ${figure(point.high - point.value, 2)}`;
    });
    parts.push(make("span", "", [key(place), make("b", "", texts.join(" · "))]));
  });
  panel.readout.replaceChildren(...parts);
}

/** Moves the cursor of all panels to a step; null takes it away. */
const moveCursor = (step) => panels.forEach((panel) => readOut(panel, step));

/** Draws all panels; those of one scale, and the steps of all, share an axis. */
function plotAll() {
  const steps = panels.flatMap((panel) => [panel.steps[0], panel.steps.at(-1)]);
  const low = Math.min(...steps);
  const high = Math.max(...steps, low + 1);
  for (const panel of panels) {
    const together = panel.scale ? panels.filter((other) => other.scale === panel.scale) : [panel];
    plot(panel, range(together.flatMap((other) => other.lines)), [low, high]);
  }
}

function drawCurves() {
  const every = [...new Set(data.runs.flatMap((run) => Object.keys(run.values)))].sort();
  const averages = every.map((name) => name.match(/^eval\/(?:(.*)\/)?avg@(\d+)$/)).filter(Boolean);
  const named = new Set(averages.map(([, benchmark]) => benchmark).filter((each) => each && each !== "macro"));
  const several = named.size > 1; // one alone is all of it, and its macro average
  const evaluated = averages.filter(([, benchmark]) => several || !benchmark).map(([name, benchmark, samples]) => {
    return {
      title: benchmark ? `Held out: ${benchmark}` : "Held out", unit: `avg@${samples}; thin: pass@${samples}`,
      names: [name, name.replace(/avg@(\d+)$/, "pass@$1")],
    };
  });
  const health = every.filter((name) => name.startsWith("health/")).map((name) => ({ title: name.slice(7).replaceAll("_", " "), unit: name, names: [name] }));
  const shown = [...PANELS.slice(0, 1), ...evaluated, ...PANELS.slice(1), ...health];
  shown.forEach((panel) => addPanel(byId("panels"), panel));
  plotAll();

  byId("legend").append(...data.groups.map((group, place) => make("li", "", [key(place), group.name])));
  byId("curves-note").textContent = "Over training steps. Bars are standard errors by problem." +
    (data.groups.some((group) => group.runs.length > 1) ? " Of several seeds the line is the mean, the band reaches from the lowest to the highest, at the steps that all of them have." : "");
  const used = new Set(shown.flatMap((panel) => panel.names));
  const drawn = (name) => data.groups.some((group) => line(group, name).length);
  fill(byId("other"), [["", "choose…"], ...every.filter((name) => !used.has(name) && drawn(name)).map((name) => [name, name])], "");
  byId("other").addEventListener("change", () => {
    const name = byId("other").value;
    if (name && !panels.some((panel) => panel.names[0] === name)) {
      addPanel(byId("more"), { title: name, unit: "", names: [name] }, true);
      plotAll();
    }
    byId("other").value = "";
  });
}

drawCurves();
