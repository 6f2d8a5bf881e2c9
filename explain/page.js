"use strict";

// A class is its number here and in the address, for its name may be any text. `which` map is drawn is such a number,
// "pred" (of the predicted class), "true" (of the true class, or what takes its place) or "margin" (between them).

const byId = (id) => document.getElementById(id);
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const data = JSON.parse(byId("data").textContent);
const cells = new Int8Array(bytes(data.cells).buffer);
const scales = new Float32Array(bytes(data.scales).buffer);
const colours = { sequential: bytes(data.sequential), diverging: bytes(data.diverging) };
const { classes, side } = data;
const total = data.index.length;
// data.shown are the classes of each error whose maps and probabilities are here.
const probability = (i, number) => data.probabilities[i][data.shown[i].indexOf(number)];
const confidence = data.index.map((_, i) => probability(i, data.predicted[i]));
const [controls, grid, panel] = ["controls", "grid", "detail"].map(byId);

let order = []; // errors that pass the filters, as sorted
let chosen = null; // an error, not a place in the order
let pointed = null; // {error, which}: the pointer is on a class of that error
let opacity = data.opacity; // of the overlay before it was switched off

const percent = (p) =>
  p < 1e-4 ? "<0.01%" : `${(100 * Math.min(p, 0.9999)).toFixed(p < 0.01 || p > 0.999 ? 2 : 1)}%`;

const count = (number) => number.toLocaleString("en");
const title = (i) => (data.files ? data.files[i] : `${data.split} image ${data.index[i]}`);

// Pictures: the same steps as cam.display and gallery.overlay

/** The class of a map; the margin is its map minus that of the true class. */
function classOf(i, which) {
  if (which === "true") return data.true[i];
  return which === "pred" || which === "margin" ? data.predicted[i] : Number(which);
}

/** The map of error i for a class of data.shown[i], as the model made it. */
function rawMap(i, number) {
  const size = data.grid[0] * data.grid[1];
  const place = i * data.shown[i].length + data.shown[i].indexOf(number);
  return Float64Array.from(cells.subarray(place * size, (place + 1) * size), (cell) => cell * scales[place]);
}

/** From the cells of the grid to side x side values, bilinear. */
function enlarge(values) {
  const [rows, columns] = data.grid;
  const axis = (count) =>
    Array.from({ length: side }, (_, i) => {
      const at = Math.max(0, ((i + 0.5) * count) / side - 0.5);
      const low = Math.min(Math.floor(at), count - 1);
      return [low, Math.min(low + 1, count - 1), at - low];
    });
  const across = axis(columns);
  return axis(rows).flatMap(([top, bottom, down]) =>
    across.map(([left, right, along]) => {
      const upper = values[top * columns + left] * (1 - along) + values[top * columns + right] * along;
      const lower = values[bottom * columns + left] * (1 - along) + values[bottom * columns + right] * along;
      return upper * (1 - down) + lower * down;
    }),
  );
}

/** side x side values in [0, 1], of the margin in [-1, 1]. */
function heat(i, which) {
  const other = which === "margin" ? rawMap(i, data.true[i]) : null;
  const raw = rawMap(i, classOf(i, which)).map((value, k) => (other ? value - other[k] : Math.max(value, 0)));
  const values = enlarge(raw);
  const peak = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  return peak > 0 ? values.map((value) => value / peak) : values;
}

const scratch = new OffscreenCanvas(side, side).getContext("2d");
const layer = scratch.createImageData(side, side);

/** Draws error i with its map over it; what there is to say instead, when there is no map or no evidence in it. */
function paint(canvas, i, which) {
  const context = canvas.getContext("2d");
  const [x, y] = [i % data.columns, Math.floor(i / data.columns)];
  context.drawImage(byId("sheet"), x * side, y * side, side, side, 0, 0, side, side);
  if (which === null) return "";
  if (!data.shown[i].includes(classOf(i, which))) return "none of its likeliest classes";
  const signed = which === "margin";
  const strength = byId("opacity").valueAsNumber;
  if (signed && strength > 0) {
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(0, 0, side, side);
    context.globalCompositeOperation = "source-over";
  }
  const values = heat(i, which);
  const table = signed ? colours.diverging : colours.sequential;
  values.forEach((value, k) => {
    const level = Math.min(255, Math.floor((signed ? (value + 1) / 2 : value) * 256));
    layer.data.set(table.subarray(3 * level, 3 * level + 3), 4 * k);
    layer.data[4 * k + 3] = Math.round(255 * strength * Math.abs(value));
  });
  scratch.putImageData(layer, 0, 0);
  context.drawImage(scratch.canvas, 0, 0);
  return values.some((value) => value !== 0) ? "" : "no positive evidence";
}

/** Draws the map of error i wherever it is seen: in its card, and in the panel. */
function repaint(i) {
  const own = pointed?.error === i;
  const which = own ? pointed.which : asked("map");
  const signed = which === "margin";
  const now = signed ? which : String(classOf(i, which));
  const [pred, other] = [classes[data.predicted[i]], classes[data.true[i]]];
  for (const node of [cards.get(i), i === chosen && panel]) {
    if (!node) continue;
    const lack = paint(node.querySelector(".map"), i, which);
    const name = signed ? `${pred} \u2212 ${other}` : classes[now];
    const p = signed || lack || node === panel ? "" : percent(probability(i, Number(now)));
    const words = own || node === panel ? [name, p].join(" ").trim() : "";
    node.querySelector(".said").textContent = [words, lack].filter(Boolean).join(": ");
    for (const mark of node.querySelectorAll("[data-which]")) mark.classList.toggle("now", mark.dataset.which === now);
    node.classList.toggle("signed", signed);
  }
}

/** Shows another class's map of one error for a while: {error, which}, or null. */
function point(to) {
  const errors = new Set([pointed?.error, to?.error]);
  pointed = to;
  for (const i of errors) if (i !== undefined) repaint(i);
}

function repaintAll() {
  for (const i of new Set([...cards.keys(), chosen])) if (i !== null) repaint(i);
}

// Filters and order

const FILTERS = {
  true: (i, value) => data.true[i] === Number(value),
  pred: (i, value) => data.predicted[i] === Number(value),
  "confidence-from": (i, value) => confidence[i] >= value / 100,
  "confidence-to": (i, value) => confidence[i] <= value / 100,
  "loss-from": (i, value) => data.loss[i] >= value,
  "loss-to": (i, value) => data.loss[i] <= value,
  disputed: (i) => data.disputed[i],
};
const ORDERS = {
  loss: (i) => -data.loss[i],
  confidence: (i) => -confidence[i],
  unsure: (i) => confidence[i],
  index: (i) => i,
  random: (i) => data.shuffled[i],
};

/** What the control of that name says; "" of a filter that lets everything pass. */
const asked = (name) => new FormData(controls).get(name) ?? "";

function ask(name, value) {
  const input = controls.elements[name];
  if (input?.type === "checkbox") input.checked = value !== "";
  else if (input) input.value = value;
}

const pairs = document.querySelectorAll("#matrix button, #bars button"); // of classes, to filter by

function refilter() {
  const filters = Object.entries(FILTERS).map(([name, passes]) => [passes, asked(name)]);
  const active = filters.filter(([, value]) => value !== "");
  const key = ORDERS[asked("sort")];
  order = [...data.index.keys()]
    .filter((i) => active.every(([passes, value]) => passes(i, value)))
    .sort((a, b) => key(a) - key(b) || a - b);
  byId("count").textContent = `${order.length < total ? `${count(order.length)} of ` : ""}${count(total)} shown`;
  byId("nothing").hidden = order.length > 0;
  const [label, said] = [asked("true"), asked("pred")];
  for (const pair of pairs) {
    pair.ariaPressed = (pair.dataset.true ?? "") === label && (pair.dataset.pred ?? "") === said;
  }
  lay();
  choose(order.includes(chosen) ? chosen : null, false);
}

function reset() {
  for (const name in FILTERS) ask(name, "");
  refilter();
}

// The address keeps what is shown, so that it can be bookmarked.

const KEPT = ["sort", "map", ...Object.keys(FILTERS)];
const atStart = (name) => String(data.start[name] ?? "");

function remember() {
  const state = new URLSearchParams();
  for (const name of KEPT) if (asked(name) !== atStart(name)) state.set(name, asked(name));
  if (chosen !== null) state.set("chosen", data.index[chosen]);
  const hash = state.size ? `#${state}` : "";
  if (hash !== location.hash) history.replaceState(null, "", hash || location.pathname + location.search);
}

/** Sets the controls as the address says; the error that is chosen there, or -1. */
function recall() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const name of KEPT) {
    ask(name, state.get(name) ?? atStart(name));
    if (controls.elements[name]?.selectedIndex < 0) ask(name, atStart(name));
  }
  return data.index.findIndex((index) => String(index) === state.get("chosen"));
}

// The grid: only cards in view exist

const cards = new Map(); // error -> node, in their order
let columns = 1;
let height = 0; // of a row

function lay() {
  const style = getComputedStyle(grid);
  columns = style.gridTemplateColumns.split(" ").length;
  cards.clear();
  grid.replaceChildren(...order.slice(0, 1).map(card));
  height = (grid.firstChild?.getBoundingClientRect().height ?? 0) + parseFloat(style.rowGap);
  grid.replaceChildren();
  grid.style.height = `${Math.ceil(order.length / columns) * height}px`;
  show();
}

function show() {
  const top = -grid.getBoundingClientRect().top;
  const rows = Math.ceil(order.length / columns);
  const first = Math.min(rows, Math.max(0, Math.floor(top / height) - 1));
  const last = Math.max(first, Math.ceil((top + window.innerHeight) / height) + 1);
  const wanted = order.slice(first * columns, last * columns);
  const before = new Map(cards);
  if (wanted.length === before.size && wanted[0] === before.keys().next().value) return; // all there
  cards.clear();
  wanted.forEach((i, k) => cards.set(i, before.get(i) ?? card(i, first * columns + k)));
  grid.style.paddingTop = `${first * height}px`;
  grid.replaceChildren(...cards.values());
  for (const i of wanted) if (!before.has(i)) repaint(i);
}

function card(i, place) {
  const node = byId("card").content.firstElementChild.cloneNode(true);
  const [pred, other] = [data.predicted[i], data.true[i]];
  const [p, q] = [confidence[i], probability(i, other)].map(percent);
  node.id = `error-${i}`;
  node.dataset.error = i;
  Object.assign(node, { ariaSetSize: order.length, ariaPosInSet: place + 1, ariaSelected: i === chosen });
  node.ariaLabel = `${title(i)}: predicted ${classes[pred]} ${p}, ${data.rival} ${classes[other]}`;
  if (data.disputed[i]) node.ariaLabel += `, ${data.badge}`;
  else node.querySelector(".badge").remove();
  const name = data.files ? data.files[i].split("/").pop() : `#${data.index[i]}`;
  const words = [classes[pred], p, classes[other], q, name, data.loss ? `· loss ${data.loss[i].toFixed(2)}` : ""];
  node.querySelectorAll(".words em, .words i").forEach((part, k) => (part.textContent = words[k]));
  node.querySelectorAll(".strip i").forEach((bar, k) => setClass(bar, i, k));
  return node;
}

/** Makes a bar or a row that of the k-th class of error i; what it may say: the name, the probability, the role. */
function setClass(node, i, k) {
  const number = data.shown[i][k];
  const p = percent(data.probabilities[i][k]);
  node.dataset.which = number;
  node.dataset.role = number === data.predicted[i] ? "predicted" : number === data.true[i] ? data.rival : "";
  node.style.setProperty("--p", data.probabilities[i][k]);
  node.title = `${classes[number]} ${p}`;
  return [classes[number], p, node.dataset.role];
}

// One error in full

function choose(i, reveal = true) {
  const before = chosen;
  point(null);
  chosen = i;
  panel.hidden = i === null;
  document.body.classList.toggle("split", i !== null);
  if ((before === null) !== (i === null)) lay();
  for (const other of [before, i]) if (cards.has(other)) cards.get(other).ariaSelected = other === i;
  grid.setAttribute("aria-activedescendant", i === null ? "" : `error-${i}`);
  remember();
  if (i === null) return;
  describe(i);
  if (reveal) bringIntoView(order.indexOf(i));
}

/** On a phone the panel covers the lower part of the window, and the controls scroll away while it is open. */
const narrow = () => getComputedStyle(panel).position === "fixed";

function bringIntoView(place) {
  const ceiling = (narrow() ? 0 : controls.offsetHeight) + 10; // pixels, that stay free above the card
  const floor = window.innerHeight - (narrow() ? panel.offsetHeight : 0);
  const top = grid.getBoundingClientRect().top + Math.floor(place / columns) * height;
  window.scrollBy(0, Math.min(top - ceiling, Math.max(0, top + height - floor)));
  show();
}

function step(by) {
  if (!order.length) return;
  const place = chosen === null ? 0 : order.indexOf(chosen) + by;
  choose(order[Math.max(0, Math.min(order.length - 1, place))]);
}

/** Writes all about error i into the panel. */
function describe(i) {
  const heading = panel.querySelector("h2 a");
  heading.textContent = title(i);
  if (data.links) heading.href = `file://${data.links[i]}`;
  panel.querySelector(".badge").hidden = !data.disputed[i];
  paint(panel.querySelector(".input"), i, null);
  panel.querySelectorAll(".row:has(.track)").forEach((row, k) => {
    const words = setClass(row, i, k);
    row.querySelectorAll(".name, .figure, .mark").forEach((part, at) => (part.textContent = words[at]));
  });
  const place = `${count(order.indexOf(i) + 1)} of ${count(order.length)} shown`;
  const rank = `${data.rival} class ranked ${data.rank[i]} of ${classes.length}`;
  const facts = data.loss ? [rank, `loss ${data.loss[i].toFixed(2)}`, place] : [place];
  panel.querySelector(".facts").textContent = facts.join(" · ");
  if (data.near) describeNeighbours(i);
  repaint(i);
}

const tiles = new Image(); // of the training images
if (data.near) tiles.src = data.near.sheet;

function describeNeighbours(i) {
  const { nearest, likeness, labels, names, columns, side } = data.near;
  panel.querySelector(".near").hidden = nearest[i][0] < 0;
  panel.querySelectorAll(".near figure").forEach((figure, k) => {
    const t = nearest[i][k];
    if (t < 0) return;
    const role = labels[t] === data.predicted[i] ? "predicted" : labels[t] === data.true[i] ? data.rival : "";
    const from = [(t % columns) * side, Math.floor(t / columns) * side, side, side];
    figure.querySelector("canvas").getContext("2d").drawImage(tiles, ...from, 0, 0, side, side);
    figure.querySelector("figcaption").textContent = classes[labels[t]];
    figure.title = `${names[t]}: ${classes[labels[t]]}, cosine ${likeness[i][k].toFixed(3)}`;
    figure.dataset.role = role;
  });
}

for (const [kind, table] of Object.entries(colours)) {
  const stops = Array.from({ length: 18 }, (_, k) => `rgb(${table.subarray(45 * k, 45 * k + 3)})`);
  panel.querySelector(`.${kind} i`).style.background = `linear-gradient(to right, ${stops})`;
}

// What the reader does

function setMap(which) {
  ask("map", which);
  pointed = null;
  remember();
  repaintAll();
}

function setOpacity(value) {
  byId("opacity").value = value; // between 0 and 1
  repaintAll();
}

const CLICKS = {
  reset,
  previous: () => step(-1),
  next: () => step(1),
  close: () => choose(null),
  keys: () => byId("help").showModal(),
  more: () => (byId("more").ariaExpanded = controls.classList.toggle("open")),
  theme: () => {
    const { style } = document.documentElement;
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    style.colorScheme = (style.colorScheme || system) === "dark" ? "light" : "dark";
  },
};
for (const [id, act] of Object.entries(CLICKS)) byId(id).addEventListener("click", act);

controls.addEventListener("input", ({ target }) => {
  if (target.id === "map") setMap(target.value);
  else if (target.id === "opacity") repaintAll();
  else refilter();
});

for (const pair of pairs) {
  pair.addEventListener("click", () => {
    const wanted = pair.ariaPressed === "true" ? {} : pair.dataset;
    ask("true", wanted.true ?? "");
    ask("pred", wanted.pred ?? "");
    refilter();
    const top = controls.offsetTop;
    if (window.scrollY + window.innerHeight < top + 300 || window.scrollY > top) window.scrollTo({ top });
  });
}

document.addEventListener("click", ({ target }) => {
  const which = target.closest("[data-which]")?.dataset.which;
  if (which !== undefined) setMap(which);
  const node = target.closest(".card");
  if (node) choose(Number(node.dataset.error), narrow());
});

/** The class under the pointer or with the focus, of a card or of the panel. */
function follow({ target, pointerType }) {
  if (pointerType === "touch") return;
  const mark = target.closest("[data-which]");
  const to = mark && { error: Number(mark.closest(".card")?.dataset.error ?? chosen), which: mark.dataset.which };
  if (pointed?.error !== to?.error || pointed?.which !== to?.which) point(to);
}
for (const type of ["pointerover", "focusin"]) document.addEventListener(type, follow);
document.documentElement.addEventListener("pointerleave", () => point(null));

const KEYS = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  ArrowUp: () => step(-columns),
  ArrowDown: () => step(columns),
  Home: () => step(-total),
  End: () => step(total),
  p: () => setMap("pred"),
  t: () => setMap("true"),
  m: () => setMap("margin"),
  o: () => {
    const before = byId("opacity").valueAsNumber;
    if (before > 0) opacity = before;
    setOpacity(before > 0 ? 0 : opacity);
  },
  "[": () => setOpacity(byId("opacity").valueAsNumber - 0.1),
  "]": () => setOpacity(byId("opacity").valueAsNumber + 0.1),
  r: reset,
  "?": CLICKS.keys,
  Escape: CLICKS.close,
};
for (const place of data.shown[0].keys()) KEYS[place] = () => setMap(data.shown[chosen ?? order[0] ?? 0][place]);

document.addEventListener("keydown", (event) => {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open || !Object.hasOwn(KEYS, key)) return;
  if (target.matches("select, input") && key !== "Escape") return;
  // Until something is chosen the arrows scroll, as everywhere.
  const moves = key.startsWith("Arrow") || key === "Home" || key === "End";
  if (moves && chosen === null && document.activeElement !== grid) return;
  event.preventDefault();
  KEYS[key]();
});
window.addEventListener("scroll", show);
window.addEventListener("resize", lay);

Promise.all([byId("sheet"), ...(data.near ? [tiles] : [])].map((image) => image.decode())).then(() => {
  if (window.innerWidth <= 860) {
    for (const folded of document.querySelectorAll(".bars, .calibration, .checks")) folded.open = false;
  }
  const start = recall();
  byId("opacity").value = opacity;
  refilter();
  if (order.includes(start)) choose(start);
  document.documentElement.dataset.ready = "yes";
});
