// What all parts of the page share. Texts of models reach the document as text nodes alone: `make` and `draw` never
// read markup.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

/** An HTML element with a class, children (elements or texts) and attributes. */
function make(tag, className = "", children = [], attributes = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...[].concat(children).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

/** An SVG element with attributes and children. */
function draw(tag, attributes = {}, children = []) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A number in up to `digits` significant digits; a dash for what is no number. */
function figure(value, digits = 4) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replaceAll("-", "−").replace("e+", "e");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

/** A value of a configuration as text. */
const setting = (value) => (value === null || value === undefined ? "–" : typeof value === "string" ? value || "“”" : JSON.stringify(value));

/** A table with a caption; of `columns` each {name, number}; a cell is a text or an element, the first one a heading. */
function table(caption, columns, rows) {
  const kind = (column, cell) => (column.number ? "number" : String(cell.textContent ?? cell).length > 40 ? "long" : "text");
  const head = columns.map((column) => make("th", column.number ? "number" : "", column.name, { scope: "col" }));
  const body = rows.map((cells) =>
    make("tr", "", cells.map((cell, i) =>
      i ? make("td", kind(columns[i], cell), cell) : make("th", kind(columns[i], cell), cell, { scope: "row" }))));
  const parts = [make("thead", "", make("tr", "", head)), make("tbody", "", body)];
  if (caption) parts.unshift(make("caption", "", caption));
  return make("div", "scroll", make("table", "", parts), { tabindex: "0", role: "group", "aria-label": caption || "table" });
}

/** Fills a select with [value, text] pairs and chooses one. */
function fill(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => {
    const option = make("option", "", text, { value });
    option.selected = String(value) === String(chosen);
    return option;
  }));
}

/** Fills a select with the runs of these places. */
const fillRuns = (select, places) => fill(select, places.map((i) => [i, data.runs[i].name]), places[0]);

/** The places of the runs for which something holds. */
const runsWith = (holds) => data.runs.map((run, i) => i).filter((i) => holds(data.runs[i]));

/** The value of a half-precision number from its two bytes. */
function half(high, low) {
  const exponent = (high & 0x7c) >> 2;
  const fraction = ((high & 3) << 8) | low;
  const sign = high & 0x80 ? -1 : 1;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** A packed block (pack.py) of the page: {head, numbers: Float32Array}. */
async function unpack(id) {
  const text = atob(JSON.parse(byId(id).textContent));
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const whole = new Uint8Array(await new Response(stream).arrayBuffer());
  const start = 4 + new DataView(whole.buffer).getUint32(0, true);
  const count = (whole.length - start) / 2;
  const numbers = new Float32Array(count);
  for (let i = 0; i < count; i++) numbers[i] = half(whole[start + i], whole[start + count + i]);
  return { head: JSON.parse(new TextDecoder().decode(whole.subarray(4, start))), numbers };
}

/** The same, keeping the blocks that were opened last. */
const opened = new Map();
function open(id) {
  const block = opened.get(id) || unpack(id);
  opened.delete(id);
  opened.set(id, block);
  if (opened.size > 12) opened.delete(opened.keys().next().value);
  return block;
}

/** Blocks follow this script: what reads them waits until the page is there. */
function whenRead(start) {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
}

/** Hides the body of a section that has nothing to show, and says why. */
function nothing(body, note, why) {
  byId(body).hidden = true;
  byId(note).textContent = why;
}
