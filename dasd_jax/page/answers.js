// The same held-out problem at the first and at the last evaluation that kept answers.

const held = { run: 0, kept: null };

async function loadAnswers(run) {
  held.run = run;
  held.kept = (await open(`answers-${run}`)).head;
  const title = (problem, i) => `${i + 1}: ${String(problem.question).replace(/\s+/g, " ").slice(0, 90)}`;
  fill(byId("answer-problem"), held.kept.problems.map((problem, i) => [i, title(problem, i)]), 0);
  showAnswers();
  const { answers, all_answers: all } = data.runs[run];
  byId("answers-note").textContent = answers < all ? `Of ${all} problems with kept answers ${answers} are kept here, evenly spaced.` : "";
}

function showAnswers() {
  const place = +byId("answer-problem").value;
  const problem = held.kept.problems[place];
  byId("answer-previous").disabled = place <= 0;
  byId("answer-next").disabled = place >= held.kept.problems.length - 1;
  byId("answer-question").replaceChildren(...described([["Question", problem.question], ["Reference", problem.answer], ["Source", problem.source]]));
  byId("answer-sides").replaceChildren(...held.kept.steps.map((step, side) => {
    const samples = problem.sides[side];
    const right = samples.filter((sample) => sample.right).length;
    const score = samples.length ? `${right} of ${samples.length} right` : "not answered";
    return make("div", "", [make("h3", "", `After step ${step}: ${score}`), ...samples.map(answer)]);
  }));
}

/** One answer with its verdict. */
function answer(sample) {
  const facts = [`extracted ${sample.extracted ?? "nothing"}`, `${sample.length} tokens`];
  const verdict = verdictWords(sample.right, sample.finished);
  return make("div", "answer", [make("p", "verdict", [...verdict, ...facts.map((fact) => make("span", "", fact))]), sample.text]);
}

whenRead(() => {
  const places = runsWith((run) => run.answers);
  if (!places.length) {
    nothing("answers-body", "answers-note", data.runs.some((run) => run.all_answers)
      ? "No answers are kept: --max_mb leaves no room for them." : "The runs have kept no answers to held-out problems.");
    return;
  }
  fillRuns(byId("answer-run"), places);
  byId("answer-run").addEventListener("change", () => loadAnswers(+byId("answer-run").value));
  byId("answer-problem").addEventListener("change", showAnswers);
  for (const [id, way] of [["answer-previous", -1], ["answer-next", 1]]) {
    byId(id).addEventListener("click", () => {
      byId("answer-problem").value = +byId("answer-problem").value + way;
      showAnswers();
    });
  }
  loadAnswers(places[0]);
});
