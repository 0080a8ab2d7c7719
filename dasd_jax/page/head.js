// The runs, their settings, warnings and words.

const withError = (value, error) => `${value.toFixed(3).replace("-", "−")} ± ${error === null ? "–" : error.toFixed(3)}`;
const average = (side) => withError(side.average, side.error);

function drawRuns() {
  const names = data.groups.map((group) => group.name);
  const title = names.length > 3 ? `${data.runs.length} runs` : names.join(" · ");
  byId("title").textContent = title;
  document.title = `${title} – report`;
  const samples = [...new Set(data.runs.flatMap((run) => (run.heldout ? [run.heldout.samples] : [])))];
  const k = samples.length === 1 ? samples[0] : "k";
  const columns = [
    { name: "run" }, { name: "method" }, { name: "model" }, { name: "seed", number: true }, { name: "steps", number: true },
    { name: `avg@${k} before`, number: true }, { name: "after", number: true }, { name: "rise", number: true },
    { name: `pass@${k} before, after`, number: true },
  ];
  const rows = data.runs.map((run) => {
    const held = run.heldout;
    const steps = run.finished ? `${run.steps}` : `${run.steps} of ${setting(run.planned)}`;
    const label = held && samples.length > 1 ? `avg@${held.samples} ` : "";
    const twice = held && held.after.step > held.before.step;
    return [
      run.name, run.method, run.model, setting(run.seed), steps,
      held ? label + average(held.before) : "–",
      twice ? average(held.after) : "–",
      held && held.rise !== null ? (held.rise < 0 ? "" : "+") + withError(held.rise, held.rise_error) : "–",
      held ? held.before.passed.toFixed(3) + (twice ? ` → ${held.after.passed.toFixed(3)}` : "") : "–",
    ];
  });
  byId("runs-body").append(table("", columns, rows));
  byId("runs-body").append(make("p", "note",
    "Averages of held-out problems ± standard error by problem, at the first and at the last evaluation. " +
    "The standard error of the rise is that of the paired differences."));
  for (const run of data.runs.filter((each) => each.evaluated_since)) {
    byId("runs-body").append(make("p", "note",
      `${run.name}: since step ${run.evaluated_since} held-out problems are evaluated with other settings. ` +
      "Earlier evaluations do not compare and are left out."));
  }
  for (const run of data.runs) {
    for (const note of run.notes) byId("runs-body").append(make("p", "note", `${run.name}: ${note}.`));
  }
  if (data.settings.length) {
    const heads = [{ name: "setting" }, ...data.runs.map((run) => ({ name: run.name }))];
    const cells = data.settings.map((row) => [make("code", "", row.name), ...row.values.map((value) => make("code", "", setting(value)))]);
    byId("runs-body").append(table("Settings that differ", heads, cells));
  } else if (data.runs.length > 1) {
    byId("runs-body").append(make("p", "note", 
      data.runs.some((run) => run.notes.length) ? "Apart from that, the runs have the same settings." : "The runs have the same settings."));
  }
}

function drawWarnings() {
  const body = byId("warnings-body");
  const rows = [];
  for (const run of data.runs) {
    if (run.warnings === null) {
      body.append(make("p", "empty", `${run.name}: written by another version of dasd_jax; its warning levels are unknown.`));
    } else if (!run.warnings.length) {
      body.append(make("p", "empty", `${run.name}: no warnings.`));
    }
    for (const each of run.warnings || []) {
      const until = each.until > each.step ? `${each.step} to ${each.until}` : `${each.step}`;
      rows.push([run.name, until, each.text]);
    }
  }
  if (rows.length) body.append(table("", [{ name: "run" }, { name: "crossed at step", number: true }, { name: "warning" }], rows));
}

function drawWords() {
  const body = byId("words-body");
  const columns = [
    { name: "word" }, { name: "z", number: true }, { name: "log-odds", number: true },
    { name: "suppressed", number: true }, { name: "favoured", number: true },
  ];
  const row = (word) => [make("span", "mono", word.word), figure(word.z, 3), figure(word.log_odds, 3), word.suppressed, word.favoured];
  for (const run of data.runs) {
    const sides = [
      ["suppressed", run.words.filter((word) => word.log_odds > 0)],
      ["favoured", run.words.filter((word) => word.log_odds < 0).reverse()],
    ].filter(([, words]) => words.length);
    if (!sides.length) body.append(make("p", "empty", `${run.name}: no words with enough gaps.`));
    else body.append(make("div", "pair", sides.map(([side, words]) => table(`${run.name}: ${side}`, columns, words.map(row)))));
  }
}

drawRuns();
drawWarnings();
drawWords();
