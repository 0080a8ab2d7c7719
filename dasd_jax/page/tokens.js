// The inspector: one rollout at a time, its tokens in the colours of the teacher's direction, and the numbers of one.

const now = { run: 0, items: [], place: 0, rollout: null, token: 0 };
const LABELS = {
  entropy: "entropy, nats", gap: "gap, nats", dense: "teacher’s share of the credit", credit: "credit",
};
const DIRECTIONS = ["the teacher does not act", "pulled toward the teacher", "pushed away from the teacher"];
const FILTERS = { all: () => true, right: (c) => "rR".includes(c), wrong: (c) => "wW".includes(c), truncated: (c) => "RW".includes(c) };

/** Lists the rollouts of the run that pass the filter, {step, problem, rollout}. */
function listRollouts() {
  const passes = FILTERS[byId("token-filter").value];
  now.items = data.runs[now.run].index.flatMap(([step, problems]) => problems.flatMap((verdicts, problem) =>
    [...verdicts].flatMap((verdict, rollout) => (passes(verdict) ? [{ step, problem, rollout, verdict }] : []))));
  showRollout(0);
}

/** Of a rollout's packed numbers, name → values. */
function arraysOf(block, problem, rollout) {
  let start = 0;
  for (const [i, each] of block.head.problems.entries()) {
    for (const [j, other] of each.rollouts.entries()) {
      const end = start + other.names.length * other.count;
      if (i === problem && j === rollout) {
        return Object.fromEntries(other.names.map((name, k) => [name, block.numbers.subarray(start + k * other.count, start + (k + 1) * other.count)]));
      }
      start = end;
    }
  }
  return {};
}

/** Shows the rollout at a place of the list. */
async function showRollout(place) {
  now.place = place;
  const item = now.items[place];
  byId("token-count").value = now.items.length ? `${(place + 1).toLocaleString("en")} of ${now.items.length.toLocaleString("en")}` : "none";
  byId("token-previous").disabled = place <= 0;
  byId("token-next").disabled = place >= now.items.length - 1;
  if (!item) {
    for (const id of ["token-problem-text", "token-verdict", "token-text", "token-prompts", "token-detail"]) byId(id).replaceChildren();
    for (const id of ["token-step", "token-problem", "token-rollout"]) byId(id).replaceChildren();
    now.rollout = null;
    return;
  }
  const run = now.run;
  const block = await open(`step-${run}-${item.step}`);
  if (now.items[now.place] !== item || now.run !== run) return; // another one was chosen meanwhile
  const problem = block.head.problems[item.problem];
  now.rollout = { ...problem.rollouts[item.rollout], arrays: arraysOf(block, item.problem, item.rollout) };
  fillSelects(item, block);
  showProblem(problem, now.rollout, item.verdict);
  showTokens(now.rollout);
}

/** The selects offer what passes the filter. */
function fillSelects(item, block) {
  const steps = [...new Set(now.items.map((each) => each.step))];
  const ofStep = now.items.filter((each) => each.step === item.step);
  const ofProblem = ofStep.filter((each) => each.problem === item.problem);
  const problems = [...new Set(ofStep.map((each) => each.problem))];
  const words = { r: "right", w: "wrong", R: "right, truncated", W: "wrong, truncated" };
  const title = (i) => `${i + 1}: ${String(block.head.problems[i].question).replace(/\s+/g, " ").slice(0, 90)}`;
  fill(byId("token-step"), steps.map((step) => [step, step]), item.step);
  fill(byId("token-problem"), problems.map((i) => [i, title(i)]), item.problem);
  fill(byId("token-rollout"), ofProblem.map((each) => [each.rollout, `${each.rollout + 1}: ${words[each.verdict]}`]), item.rollout);
}

/** Name → text, as terms and descriptions. */
const described = (pairs) => pairs.filter(([, text]) => text !== undefined && text !== null && text !== "")
  .flatMap(([name, text]) => [make("dt", "", name), make("dd", "", text)]);

/** A verdict in words: right or wrong, and whether the response was cut off. */
const verdictWords = (right, finished) => [
  make("b", right ? "right" : "wrong", right ? "✓ right" : "✗ wrong"), ...(finished ? [] : [make("b", "cut", "truncated")]),
];

function showProblem(problem, rollout, verdict) {
  byId("token-problem-text").replaceChildren(...described([["Question", problem.question], ["Reference", problem.answer], ["Source", problem.source]]));
  const said = [["extracted", rollout.extracted ?? "nothing"], ["reward", figure(rollout.reward)],
    ["learned from as", rollout.learned_reward === undefined ? "" : figure(rollout.learned_reward)], ["advantage", figure(rollout.advantage)],
    ["tokens", rollout.count], ["error", rollout.error]].filter(([, value]) => value !== "" && value !== undefined);
  byId("token-verdict").replaceChildren(
    make("span", "", verdictWords("rR".includes(verdict), "rw".includes(verdict)).flatMap((each) => [each, " "])),
    ...said.map(([name, value]) => make("span", "", [`${name} `, make("b", "", value)])));
  const prompts = [["Student’s prompt", [problem.prompt]], ...[problem.teacher_prompts, rollout.teacher_prompts].flatMap((views) =>
    Object.entries(views || {}).map(([view, texts]) => [`Prompt of the teacher “${view}”`, [].concat(texts)]))];
  byId("token-prompts").replaceChildren(...prompts.filter(([, texts]) => texts.some(Boolean)).map(([title, texts]) =>
    make("details", "", [make("summary", "", title), ...texts.map((text) => make("p", "prompt", text))])));
}

/** Direction (0 off, 1 toward the teacher, 2 away), level and fork of a mark (rollouts.py). */
function markOf(letter) {
  const digit = parseInt(letter, 32);
  return { fork: digit >= 15, direction: Math.floor((digit % 15) / 5), level: digit % 5 };
}

/** The classes of a token: its colour, and whether it is a fork. */
function tokenClass(letter) {
  const { fork, direction, level } = markOf(letter);
  return `t${direction ? ` ${"-ar"[direction]}${level}` : ""}${fork ? " fork" : ""}`;
}

function showTokens(rollout) {
  byId("token-text").replaceChildren(...rollout.pieces.map((piece, i) => {
    // A token that is a line break is seen by its sign.
    const text = piece.trim() ? piece : piece.replaceAll("\n", "↵\n");
    return make("span", tokenClass(rollout.marks[i]), text, { role: "option", id: `t${i}`, "aria-selected": "false" });
  }));
  byId("token-text").scrollTop = 0;
  showToken(0);
}

/** Shows the numbers of one token. */
function showToken(i) {
  const { rollout } = now;
  const tokens = byId("token-text").children;
  if (!rollout || !tokens[i]) return;
  tokens[now.token]?.classList.remove("now");
  tokens[now.token]?.setAttribute("aria-selected", "false");
  now.token = i;
  tokens[i].classList.add("now");
  tokens[i].setAttribute("aria-selected", "true");
  byId("token-text").setAttribute("aria-activedescendant", `t${i}`);
  const { fork, direction } = markOf(rollout.marks[i]);
  const share = [["verifier’s share of the credit", rollout.advantage]].filter(() => "advantage" in rollout);
  const order = ["entropy", "gap", "route", "gate", "dense", null, "credit"];
  const known = order.flatMap((name) => (name === null ? share : name in rollout.arrays ? [[LABELS[name] || name, rollout.arrays[name][i]]] : []));
  const others = rollout.names.filter((name) => !order.includes(name)).map((name) => [name, rollout.arrays[name][i]]);
  const alternatives = Object.entries(rollout.alternatives[i] || {});
  byId("token-detail").replaceChildren(
    make("p", "note", `token ${i + 1} of ${rollout.count}`),
    make("p", "piece", make("span", tokenClass(rollout.marks[i]), rollout.pieces[i].replaceAll("\n", "↵\n"))),
    make("p", "note", [DIRECTIONS[direction], fork ? ", a fork" : ""]),
    make("dl", "", [...known, ...others].flatMap(([name, value]) => [make("dt", "", name), make("dd", "", figure(value, 3))])),
    ...(alternatives.length ? [make("div", "views", alternatives.map(([view, likeliest]) => alternativesOf(view, likeliest)))] : []));
}

/** The likeliest tokens of a view, with a bar each. */
function alternativesOf(view, likeliest) {
  const items = likeliest.map(([piece, probability]) => {
    const bar = make("i");
    bar.style.width = `${100 * Math.min(Math.max(probability ?? 0, 0), 1)}%`;
    return make("li", "", [bar, make("span", "", piece.replaceAll("\n", "↵")), make("span", "", figure(probability, 3))]);
  });
  return make("div", "", [make("h3", "", view), make("ol", "", items)]);
}

/** Goes to the first rollout of the list for which something holds. */
function choose(holds) {
  const place = now.items.findIndex(holds);
  if (place >= 0) showRollout(place);
}

whenRead(() => {
  const places = runsWith((run) => run.index.length);
  if (!places.length) {
    nothing("tokens-body", "tokens-note", data.runs.some((run) => run.logged_steps)
      ? "No rollouts are kept: --max_mb leaves no room for them." : "The runs have logged no rollouts.");
    return;
  }
  const left = data.runs.filter((run) => run.index.length < run.logged_steps)
    .map((run) => `${run.name}: of ${run.logged_steps} steps with rollouts ${run.index.length} are kept, evenly spaced.`);
  byId("tokens-note").textContent = left.join(" ");
  fillRuns(byId("token-run"), places);
  now.run = places[0];
  byId("token-run").addEventListener("change", () => { now.run = +byId("token-run").value; listRollouts(); });
  byId("token-filter").addEventListener("change", listRollouts);
  byId("token-step").addEventListener("change", () => choose((item) => item.step === +byId("token-step").value));
  const here = (item) => item.step === +byId("token-step").value && item.problem === +byId("token-problem").value;
  byId("token-problem").addEventListener("change", () => choose(here));
  byId("token-rollout").addEventListener("change", () => choose((item) => here(item) && item.rollout === +byId("token-rollout").value));
  byId("token-previous").addEventListener("click", () => showRollout(now.place - 1));
  byId("token-next").addEventListener("click", () => showRollout(now.place + 1));
  const box = byId("token-text");
  box.addEventListener("pointerover", (event) => event.target.id.startsWith("t") && event.target.parentNode === box && showToken(+event.target.id.slice(1)));
  box.addEventListener("keydown", (event) => {
    const last = box.children.length - 1;
    const next = { ArrowLeft: now.token - 1, ArrowRight: now.token + 1, Home: 0, End: last, ArrowUp: lineAway(-1), ArrowDown: lineAway(1) }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    showToken(Math.min(Math.max(next, 0), last));
    box.children[now.token].scrollIntoView({ block: "nearest" });
  });
  listRollouts();
});

/** The token nearest to the present one in the line above (-1) or below (1). */
function lineAway(way) {
  const tokens = byId("token-text").children;
  const from = tokens[now.token].getBoundingClientRect();
  let i = now.token;
  while (tokens[i + way] && Math.abs(tokens[i].getBoundingClientRect().top - from.top) < 4) i += way;
  const top = tokens[i].getBoundingClientRect().top;
  const apart = (place) => Math.abs(tokens[place].getBoundingClientRect().left - from.left);
  let best = i;
  while (tokens[i] && Math.abs(tokens[i].getBoundingClientRect().top - top) < 4) {
    if (apart(i) < apart(best)) best = i;
    i += way;
  }
  return best;
}
