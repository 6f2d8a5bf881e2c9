"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const cells = new Int8Array(bytes(data.cells).buffer);
const scales = new Float32Array(bytes(data.scales).buffer);
const colours = { sequential: bytes(data.sequential), diverging: bytes(data.diverging) };
const { classes, side } = data;
const total = data.index.length;
const disputed = new Set(data.disputed);
const shuffled = new Map(data.shuffled.map((error, place) => [error, place]));
const every = [...classes.keys()];
const shown = (i) => (data.shown ? data.shown[i] : every); // classes whose maps and probabilities are here
const probability = (i, number) => data.probabilities[i][shown(i).indexOf(number)];
const confidence = data.index.map((_, i) => probability(i, data.predicted[i]));
const NUMBERS = ["confidence-from", "confidence-to", "loss-from", "loss-to"];
const CHOICES = ["true", "pred", "sort", "map"];
const GAP = 10;

let order = []; // errors that pass the filters, as sorted
let chosen = null; // an error, not a place in the order
let pointed = null; // {error, which}: the pointer is on a class of that card
let opacity = data.opacity;
let remembered = opacity;

// Words

function percent(p) {
  if (p < 1e-4) return "<0.01%";
  return p < 0.01 || p > 0.999 ? `${(100 * Math.min(p, 0.9999)).toFixed(2)}%` : `${(100 * p).toFixed(1)}%`;
}

const count = (number) => number.toLocaleString("en");

function title(i) {
  return data.files ? data.files[i] : `${data.split} image ${data.index[i]}`;
}

function classOf(i, which) {
  if (which === "pred") return data.predicted[i];
  return which === "true" ? data.true[i] : Number(which);
}

function nameOf(i, which) {
  const [pred, other] = [classes[data.predicted[i]], classes[data.true[i]]];
  return which === "margin" ? `${pred} \u2212 ${other}` : classes[classOf(i, which)];
}

// Pictures: the same steps as cam.display and gallery.overlay

function rawMap(i, number) {
  const size = data.grid[0] * data.grid[1];
  const place = i * shown(i).length + shown(i).indexOf(number);
  return Float64Array.from(cells.subarray(place * size, (place + 1) * size), (cell) => cell * scales[place]);
}

function overPeak(values) {
  const peak = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  return peak > 0 ? values.map((value) => value / peak) : values;
}

function enlarge(values) {
  const [rows, columns] = data.grid;
  const axis = (count) =>
    Array.from({ length: side }, (_, i) => {
      const at = Math.max(0, ((i + 0.5) * count) / side - 0.5);
      const low = Math.min(Math.floor(at), count - 1);
      return [low, Math.min(low + 1, count - 1), at - low];
    });
  const across = axis(columns);
  const large = new Float64Array(side * side);
  axis(rows).forEach(([top, bottom, down], y) => {
    across.forEach(([left, right, along], x) => {
      const upper = values[top * columns + left] * (1 - along) + values[top * columns + right] * along;
      const lower = values[bottom * columns + left] * (1 - along) + values[bottom * columns + right] * along;
      large[y * side + x] = upper * (1 - down) + lower * down;
    });
  });
  return large;
}

function heat(i, which) {
  if (which === "margin") {
    const other = rawMap(i, data.true[i]);
    return overPeak(enlarge(overPeak(rawMap(i, data.predicted[i]).map((value, k) => value - other[k]))));
  }
  return overPeak(enlarge(overPeak(rawMap(i, classOf(i, which)).map((value) => Math.max(value, 0)))));
}

const scratch = new OffscreenCanvas(side, side).getContext("2d");
const layer = scratch.createImageData(side, side);

/** Draws error i with its map over it; what there is to say instead, when there is no map or no evidence in it. */
function paint(canvas, i, which) {
  const context = canvas.getContext("2d");
  const sheet = byId("sheet");
  const [x, y] = [i % data.columns, Math.floor(i / data.columns)];
  context.drawImage(sheet, x * side, y * side, side, side, 0, 0, side, side);
  if (which === null) return "";
  if (which !== "margin" && !shown(i).includes(classOf(i, which))) return "none of its likeliest classes";
  const signed = which === "margin";
  if (signed && opacity > 0) {
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
    layer.data[4 * k + 3] = Math.round(255 * opacity * Math.abs(value));
  });
  scratch.putImageData(layer, 0, 0);
  context.drawImage(scratch.canvas, 0, 0);
  return values.some((value) => value !== 0) ? "" : "no positive evidence";
}

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function picture(className) {
  return element("canvas", { width: side, height: side, className });
}

// Filters and order

const number = (id, fallback) => Number(byId(id)?.value || fallback); // the value is "" or a number

function refilter() {
  const [wantedTrue, wantedPred] = [byId("true")?.value ?? "any", byId("pred").value];
  const [low, high] = [number("confidence-from", 0) / 100, number("confidence-to", 100) / 100];
  const [least, most] = [number("loss-from", 0), number("loss-to", Infinity)];
  const onlyDisputed = byId("disputed")?.checked ?? false;
  const keys = {
    loss: (i) => -(data.loss?.[i] ?? 0),
    confidence: (i) => -confidence[i],
    unsure: (i) => confidence[i],
    index: (i) => i,
    random: (i) => shuffled.get(i),
  };
  const key = keys[byId("sort").value];
  order = data.index
    .map((_, i) => i)
    .filter(
      (i) =>
        (wantedTrue === "any" || data.true[i] === Number(wantedTrue)) &&
        (wantedPred === "any" || data.predicted[i] === Number(wantedPred)) &&
        confidence[i] >= low && confidence[i] <= high &&
        (!data.loss || (data.loss[i] >= least && data.loss[i] <= most)) &&
        (!onlyDisputed || disputed.has(i)),
    )
    .sort((a, b) => key(a) - key(b) || a - b);
  if (chosen !== null && !order.includes(chosen)) choose(null);
  byId("count").textContent =
    order.length === total ? `${count(total)} shown` : `${count(order.length)} of ${count(total)} shown`;
  byId("nothing").hidden = order.length > 0;
  for (const button of document.querySelectorAll("#matrix button, #bars button")) {
    const same = (button.dataset.true ?? "any") === wantedTrue && (button.dataset.pred ?? "any") === wantedPred;
    button.setAttribute("aria-pressed", same);
  }
  remember();
  lay();
}

function reset() {
  for (const id of NUMBERS) if (byId(id)) byId(id).value = "";
  if (byId("disputed")) byId("disputed").checked = false;
  if (byId("true")) byId("true").value = "any";
  byId("pred").value = "any";
  refilter();
}

// The address keeps what is shown, so that it can be bookmarked.

function remember() {
  const state = new URLSearchParams();
  for (const id of [...CHOICES, ...NUMBERS]) {
    const value = byId(id)?.value ?? "";
    if (value !== String(data.start[id] ?? "")) state.set(id, value);
  }
  if (byId("disputed")?.checked) state.set("disputed", "1");
  if (chosen !== null) state.set("chosen", data.index[chosen]);
  const hash = state.toString();
  if (hash !== location.hash.slice(1)) history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

function recall() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const id of [...CHOICES, ...NUMBERS]) {
    const input = byId(id);
    if (!input) continue;
    input.value = state.get(id) ?? data.start[id] ?? "";
    if (input.tagName === "SELECT" && input.selectedIndex < 0) input.value = data.start[id];
  }
  if (byId("disputed")) byId("disputed").checked = state.has("disputed");
  const place = data.index.indexOf(Number(state.get("chosen") ?? NaN));
  return place < 0 ? null : place;
}

// The grid: only cards in view exist

const grid = byId("grid");
const cards = new Map(); // error -> node
let columns = 1;
let width = 0;
let height = 0;

function lay() {
  const space = grid.clientWidth;
  columns = Math.max(2, Math.floor((space + GAP) / (152 + GAP)));
  width = Math.floor((space - GAP * (columns - 1)) / columns);
  grid.style.setProperty("--card", `${width}px`);
  for (const node of cards.values()) node.remove();
  cards.clear();
  if (!order.length) {
    grid.style.height = "0";
    return;
  }
  height = grid.appendChild(card(order[0], 0)).offsetHeight + GAP;
  grid.lastChild.remove();
  grid.style.height = `${Math.ceil(order.length / columns) * height}px`;
  show();
}

function show() {
  if (!order.length) return;
  const top = -grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(top / height) - 1) * columns;
  const last = Math.max(first, Math.min(order.length, Math.ceil((top + window.innerHeight) / height + 1) * columns));
  const wanted = new Set(order.slice(first, last));
  for (const [i, node] of cards) {
    if (!wanted.has(i)) {
      node.remove();
      cards.delete(i);
    }
  }
  for (let place = first; place < last; place++) {
    const i = order[place];
    if (!cards.has(i)) {
      const node = card(i, place);
      cards.set(i, node);
      grid.append(node);
      repaint(i);
    }
  }
}

function card(i, place) {
  const [pred, other] = [data.predicted[i], data.true[i]];
  const strip = element("div", { className: "strip" });
  shown(i).forEach((number, place) => {
    const p = data.probabilities[i][place];
    const bar = element("i", { className: number === pred ? "pred" : number === other ? "true" : "" });
    bar.dataset.which = number;
    bar.title = `${classes[number]} ${percent(p)}`;
    bar.style.setProperty("--p", Math.sqrt(p).toFixed(3));
    strip.append(bar);
  });
  // Of a line that is too long the name is cut, never the number.
  const [cut, word] = ["em", "span"].map((tag) => (text) => element(tag, {}, text));
  const name = data.files ? data.files[i].split("/").pop() : `#${data.index[i]}`;
  const lines = [
    element("b", {}, cut(classes[pred]), word(percent(confidence[i]))),
    element("span", {}, word(data.rival), cut(classes[other]), word(percent(probability(i, other)))),
    element("small", {}, cut(name), ...(data.loss ? [word(`· loss ${data.loss[i].toFixed(2)}`)] : [])),
  ];
  const words = element("div", { className: "words" }, ...lines);
  const frame = element("div", { className: "frame" }, picture("tile"), element("span", { className: "tag" }));
  if (disputed.has(i)) frame.append(element("span", { className: "badge", textContent: "label disputed" }));
  const node = element("div", { className: "card", id: `error-${i}` }, frame, strip, words);
  node.dataset.error = i;
  node.setAttribute("role", "option");
  node.setAttribute("aria-setsize", order.length);
  node.setAttribute("aria-posinset", place + 1);
  node.setAttribute("aria-selected", i === chosen);
  const said = `predicted ${classes[pred]} ${percent(confidence[i])}, ${data.rival} ${classes[other]}`;
  node.setAttribute("aria-label", `${title(i)}: ${said}${disputed.has(i) ? ", label disputed" : ""}`);
  node.style.transform = `translate(${(place % columns) * (width + GAP)}px, ${Math.floor(place / columns) * height}px)`;
  return node;
}

function repaint(i) {
  const node = cards.get(i);
  if (!node) return;
  const own = pointed?.error === i;
  const which = own ? pointed.which : byId("map").value;
  const lack = paint(node.querySelector("canvas"), i, which);
  const p = which === "margin" || lack ? "" : ` ${percent(probability(i, classOf(i, which)))}`;
  node.querySelector(".tag").textContent = [...(own ? [nameOf(i, which) + p] : []), ...(lack ? [lack] : [])].join(": ");
  for (const bar of node.querySelectorAll(".strip i")) {
    bar.classList.toggle("now", which !== "margin" && Number(bar.dataset.which) === classOf(i, which));
  }
}

function repaintAll() {
  for (const i of cards.keys()) repaint(i);
  detail();
}

// One error in full

const panel = byId("detail");
let previewed = null; // class whose row in the panel is pointed at

function choose(i, reveal = true) {
  const before = chosen;
  chosen = i;
  previewed = null;
  for (const other of [before, i]) cards.get(other)?.setAttribute("aria-selected", other === i);
  if (i === null) {
    grid.removeAttribute("aria-activedescendant");
    build();
  } else {
    if (panel.hidden) {
      panel.hidden = false;
      document.body.classList.add("split");
      lay();
    }
    grid.setAttribute("aria-activedescendant", `error-${i}`);
    build();
    if (reveal) bringIntoView(order.indexOf(i));
  }
  remember();
}

function close() {
  if (chosen === null) return;
  choose(null);
  panel.hidden = true;
  document.body.classList.remove("split");
  lay();
}

/** On a phone the panel covers the lower part of the window, and the controls scroll away while it is open. */
const narrow = () => getComputedStyle(panel).position === "fixed";

function bringIntoView(place) {
  const bar = narrow() ? 0 : byId("controls").offsetHeight;
  const top = grid.getBoundingClientRect().top + Math.floor(place / columns) * height;
  const bottom = window.innerHeight - (narrow() ? panel.offsetHeight : 0);
  if (top < bar + GAP) window.scrollBy(0, top - bar - GAP);
  else if (top + height > bottom) window.scrollBy(0, Math.min(top + height - bottom, top - bar - GAP));
  show();
}

function step(by) {
  if (!order.length) return;
  const place = chosen === null ? 0 : order.indexOf(chosen) + by;
  choose(order[Math.max(0, Math.min(order.length - 1, place))]);
}

function button(text, label, act) {
  const node = element("button", { type: "button", textContent: text, onclick: act });
  node.setAttribute("aria-label", label);
  return node;
}

function build() {
  if (chosen === null) {
    panel.replaceChildren(element("p", { className: "hint", textContent: "Nothing chosen." }));
    return;
  }
  const i = chosen;
  const place = order.indexOf(i);
  const heading = element("h2", {}, data.links ? element("a", { href: `file://${data.links[i]}` }, title(i)) : title(i));
  const move = [
    button("\u2039", "previous", () => step(-1)),
    button("\u203a", "next", () => step(1)),
    button("\u00d7", "close", close),
  ];
  const pictures = element(
    "div",
    { className: "pair" },
    element("figure", {}, picture("input"), element("figcaption", {}, "input")),
    element("figure", {}, picture("map"), element("figcaption", { className: "caption" })),
  );
  const rows = [...shown(i), "margin"].map((which, place) => row(i, which, place));
  const facts = data.loss
    ? `${data.rival} class ranked ${data.rank[i]} of ${classes.length} · loss ${data.loss[i].toFixed(2)} · ${count(place + 1)} of ${count(order.length)} shown`
    : `${count(place + 1)} of ${count(order.length)}`;
  panel.replaceChildren(
    element("div", { className: "top" }, heading, element("span", { className: "move" }, ...move)),
    ...(disputed.has(i) ? [element("p", { className: "badge", textContent: "label disputed" })] : []),
    pictures,
    element("div", { className: "legend" }, element("canvas", { width: 256, height: 1 }), element("span"), element("span"), element("span")),
    element("div", { className: "rows" }, ...rows),
    element("p", { className: "facts" }, facts),
  );
  detail();
}

function row(i, which, place) {
  const marks = [];
  if (which === data.predicted[i]) marks.push("predicted");
  if (which === data.true[i]) marks.push(data.rival);
  const margin = which === "margin";
  const node = element("button", { type: "button", className: "row" });
  node.dataset.which = which;
  const key = element("kbd", {}, margin ? "m" : place < 10 ? String(place) : "");
  const name = element("span", { className: "name", title: margin ? "" : classes[which] }, margin ? `margin: predicted \u2212 ${data.rival}` : classes[which]);
  node.append(key, name);
  if (!margin) {
    const track = element("span", { className: "track" }, element("span"));
    track.firstChild.style.width = `${100 * probability(i, which)}%`;
    node.append(track, element("span", { className: "figure" }, percent(probability(i, which))));
  }
  node.append(element("span", { className: "mark" }, marks.join(", ")));
  return node;
}

function detail() {
  if (chosen === null || panel.hidden) return;
  const which = previewed ?? byId("map").value;
  const signed = which === "margin";
  paint(panel.querySelector("canvas.input"), chosen, null);
  const lack = paint(panel.querySelector("canvas.map"), chosen, which);
  panel.querySelector(".caption").textContent = nameOf(chosen, which) + (lack ? `: ${lack}` : "");
  const current = signed ? "margin" : String(classOf(chosen, which));
  for (const node of panel.querySelectorAll(".row")) node.classList.toggle("now", node.dataset.which === current);
  const [ramp, ...ticks] = panel.querySelector(".legend").children;
  const context = ramp.getContext("2d");
  for (let level = 0; level < 256; level++) {
    const table = signed ? colours.diverging : colours.sequential;
    context.fillStyle = `rgb(${table.subarray(3 * level, 3 * level + 3).join()})`;
    context.fillRect(level, 0, 1, 1);
  }
  const words = signed ? [data.rival, "neither", "predicted"] : ["no evidence", "", "strongest"];
  ticks.forEach((tick, k) => (tick.textContent = words[k]));
}

// What the reader does

function setMap(which) {
  byId("map").value = which;
  previewed = null;
  remember();
  repaintAll();
}

function setOpacity(value) {
  opacity = Math.max(0, Math.min(1, value));
  byId("opacity").value = opacity;
  repaintAll();
}

for (const id of ["true", "pred", "sort", "disputed", ...NUMBERS]) byId(id)?.addEventListener("input", refilter);
byId("map").addEventListener("input", () => setMap(byId("map").value));
byId("opacity").addEventListener("input", () => setOpacity(byId("opacity").valueAsNumber));
byId("reset").addEventListener("click", reset);
byId("more").addEventListener("click", () => {
  const open = byId("controls").classList.toggle("open");
  byId("more").setAttribute("aria-expanded", open);
});
for (const id of ["matrix", "bars"]) {
  byId(id)?.addEventListener("click", (event) => {
    const pressed = event.target.closest("button");
    if (!pressed) return;
    const wanted = pressed.getAttribute("aria-pressed") === "true" ? {} : pressed.dataset;
    byId("true").value = wanted.true ?? "any";
    byId("pred").value = wanted.pred ?? "any";
    refilter();
    const top = byId("controls").offsetTop;
    if (window.scrollY + window.innerHeight < top + 300 || window.scrollY > top) window.scrollTo({ top });
  });
}

grid.addEventListener("click", (event) => {
  const node = event.target.closest(".card");
  if (!node) return;
  const { which } = event.target.dataset;
  if (which !== undefined) setMap(which);
  choose(Number(node.dataset.error), narrow());
});
grid.addEventListener("pointerover", (event) => {
  if (event.pointerType === "touch") return;
  const before = pointed;
  const { which } = event.target.dataset;
  const node = event.target.closest(".card");
  pointed = which === undefined || !node ? null : { error: Number(node.dataset.error), which };
  for (const i of new Set([before?.error, pointed?.error])) if (i !== undefined) repaint(i);
});
grid.addEventListener("pointerleave", () => {
  const before = pointed;
  pointed = null;
  if (before) repaint(before.error);
});

function preview(event) {
  const which = event.type === "pointerleave" ? null : (event.target.closest(".row")?.dataset.which ?? null);
  if (event.pointerType === "touch" || which === previewed) return;
  previewed = which;
  detail();
}
for (const type of ["pointerover", "pointerleave", "focusin"]) panel.addEventListener(type, preview);
panel.addEventListener("click", (event) => {
  const node = event.target.closest(".row");
  if (node) setMap(node.dataset.which);
});

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
    if (opacity > 0) remembered = opacity;
    setOpacity(opacity > 0 ? 0 : remembered);
  },
  "[": () => setOpacity(opacity - 0.1),
  "]": () => setOpacity(opacity + 0.1),
  r: reset,
  "?": () => byId("help").showModal(),
  Escape: close,
};
for (const place of every.slice(0, 10)) {
  KEYS[place] = () => {
    const which = shown(chosen ?? order[0] ?? 0)?.[place];
    if (which !== undefined) setMap(String(which));
  };
}

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

byId("keys").addEventListener("click", () => byId("help").showModal());
byId("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
window.addEventListener("scroll", show);
window.addEventListener("resize", lay);

byId("sheet").decode().then(() => {
  if (window.innerWidth <= 860) for (const folded of document.querySelectorAll(".bars, .calibration, .checks")) folded.open = false;
  const start = recall();
  byId("opacity").value = opacity;
  refilter();
  if (start !== null && order.includes(start)) choose(start);
  document.documentElement.dataset.ready = "yes";
});
