// The plane of entropy and gap: a sample of the logged tokens, a mark each.

const PLANE = { left: 56, right: 14, top: 12, bottom: 42 };
const plane = { points: null };

/** The points of a run: steps, how many of each step, and three numbers a token. */
async function loadPlane(run) {
  const { head, numbers } = await open(`plane-${run}`);
  const total = head.drawn.reduce((a, b) => a + b, 0);
  plane.points = {
    ...head, entropy: numbers.subarray(0, total), gap: numbers.subarray(total, 2 * total), share: numbers.subarray(2 * total),
  };
  for (const [id, place] of [["plane-from", 0], ["plane-to", head.steps.length - 1]]) {
    Object.assign(byId(id), { min: 0, max: head.steps.length - 1, step: 1 });
    byId(id).value = place;
  }
  drawPlane();
}

/** A number's place on a square-root scale that goes through 0. */
const root = (value) => Math.sign(value) * Math.sqrt(Math.abs(value));

/** The value below which a share of some numbers lies. */
function quantile(numbers, share) {
  const ordered = Float32Array.from(numbers).sort();
  return ordered.length ? ordered[Math.floor(share * (ordered.length - 1))] : 0;
}

/** Round values for an axis from `low` to `high`, whose places on the square-root scale are not too close. */
function rootTicks(low, high) {
  const sizes = [0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 50].flatMap((size) => [size, -size]);
  const found = [];
  const apart = (root(high) - root(low)) / 9;
  for (const value of [0, ...sizes.sort((a, b) => Math.abs(b) - Math.abs(a))]) {
    if (value < low || value > high) continue;
    if (found.every((other) => Math.abs(root(other) - root(value)) > apart)) found.push(value);
  }
  return found;
}

function drawPlane() {
  const { steps, drawn, logged, entropy, gap, share } = plane.points;
  const [from, to] = [+byId("plane-from").value, +byId("plane-to").value].sort((a, b) => a - b);
  byId("plane-from-value").value = steps[from];
  byId("plane-to-value").value = steps[to];
  const starts = drawn.map((count, i) => drawn.slice(0, i).reduce((a, b) => a + b, 0));
  const [first, end] = [starts[from], starts[to] + drawn[to]];

  const canvas = byId("plane-canvas");
  const scale = window.devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  // The axes hold 99.8 % of all tokens of the run, so that they stay when the steps change; the others lie on the edge.
  const right = Math.max(quantile(entropy, 0.998), 0.1);
  const reach = Math.max(quantile(gap.map(Math.abs), 0.998), 0.1);
  const x = (value) => PLANE.left + (root(Math.min(value, right)) / root(right)) * (width - PLANE.left - PLANE.right);
  const y = (value) => {
    const place = root(Math.max(Math.min(value, reach), -reach)) / root(reach);
    return PLANE.top + ((1 - place) / 2) * (height - PLANE.top - PLANE.bottom);
  };
  const colour = (name) => getComputedStyle(document.querySelector(`#plane-legend ${name}`)).backgroundColor;
  const style = getComputedStyle(canvas);
  context.font = `11px ${style.fontFamily}`;
  context.fillStyle = context.strokeStyle = style.color;
  context.textAlign = "center";
  for (const value of rootTicks(0, right)) {
    context.globalAlpha = 0.12;
    context.fillRect(x(value), PLANE.top, 1, height - PLANE.top - PLANE.bottom);
    context.globalAlpha = 0.75;
    context.fillText(figure(value), x(value), height - PLANE.bottom + 16);
  }
  context.fillText("entropy of the student, nats", (width + PLANE.left) / 2, height - 6);
  context.textAlign = "right";
  for (const value of rootTicks(-reach, reach)) {
    context.globalAlpha = value ? 0.12 : 0.4;
    context.fillRect(PLANE.left, y(value), width - PLANE.left - PLANE.right, 1);
    context.globalAlpha = 0.75;
    context.fillText(figure(value), PLANE.left - 8, y(value) + 4);
  }
  context.save();
  context.translate(12, (height - PLANE.bottom) / 2);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.fillText("gap, nats", 0, 0);
  context.restore();

  const counts = { off: 0, attract: 0, repel: 0 };
  const size = Math.min(1, 40 / Math.sqrt(Math.max(end - first, 1)) + 0.45);
  for (const [name, sign] of [["off", 0], ["attract", 1], ["repel", -1]]) {
    context.fillStyle = colour(`.${name}`);
    context.globalAlpha = end - first > 10000 ? 0.32 : 0.5;
    for (let i = first; i < end; i++) {
      if (Math.sign(share[i]) !== sign) continue;
      counts[name]++;
      const radius = sign ? size * (1.2 + 4 * Math.sqrt(Math.abs(share[i]))) : 1;
      const [across, down] = [x(entropy[i]), y(gap[i])];
      context.beginPath();
      if (sign > 0) context.arc(across, down, radius, 0, 7);
      else if (sign) { // a lozenge, for those who do not see the colours apart
        context.moveTo(across, down - 1.25 * radius);
        context.lineTo(across + 1.25 * radius, down);
        context.lineTo(across, down + 1.25 * radius);
        context.lineTo(across - 1.25 * radius, down);
      } else context.rect(across - 1, down - 1, 2, 2);
      context.fill();
    }
  }
  const total = Math.max(end - first, 1);
  const percent = (count) => `${((100 * count) / total).toFixed(0)} %`;
  const all = logged.slice(from, to + 1).reduce((a, b) => a + b, 0);
  byId("plane-words").textContent =
    `Steps ${steps[from]} to ${steps[to]}: ${(end - first).toLocaleString("en")} of ${all.toLocaleString("en")} logged tokens are drawn, evenly picked. ` +
    `${percent(counts.attract)} of the tokens are pulled toward the teacher, ${percent(counts.repel)} pushed away from it; on ${percent(counts.off)} it does not act.`;
}

whenRead(() => {
  const places = runsWith((run) => run.plane);
  if (!places.length) {
    for (const id of ["plane-controls", "plane-legend", "plane-canvas"]) byId(id).hidden = true;
    byId("plane-words").textContent = "No run has logged tokens with entropy and gap.";
    return;
  }
  byId("plane-canvas").setAttribute("aria-label", "Tokens in the plane of entropy and gap");
  fillRuns(byId("plane-run"), places);
  byId("plane-run").addEventListener("change", () => loadPlane(byId("plane-run").value));
  for (const id of ["plane-from", "plane-to"]) byId(id).addEventListener("input", drawPlane);
  new ResizeObserver(() => plane.points && drawPlane()).observe(byId("plane-canvas"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlane);
  loadPlane(places[0]);
});
