// Classifies a picture with model.onnx in the browser, and paints which parts of it spoke for a class.

import * as ort from "./ort.wasm.bundle.min.mjs";

const $ = (id) => document.getElementById(id);
const SHOWN = 320; // pixels of the heatmap's side
const ONE = 2 ** 22; // Pillow's fixed point

// A protobuf is a row of fields, each with its number and bytes; those of ONNX's field 14 are pairs of texts, the facts
// that export.py put into the file.
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const length = { 0: () => varint() && 0, 1: () => 8, 2: varint, 5: () => 4 }[tag & 7]();
    yield [tag >>> 3, bytes.subarray(at, (at += length))];
  }
}

function factsOf(bytes) {
  const pairs = [...fields(bytes)].filter(([number]) => number === 14);
  const text = (bytes) => new TextDecoder().decode(bytes);
  return Object.fromEntries(pairs.map(([, pair]) => [...fields(pair)].map(([, bytes]) => text(bytes))));
}

// One axis of Pillow's bilinear resizing with antialiasing: rows of `count` RGB pixels become `size` columns. The result
// is turned, so that twice makes both axes. `from` and `to` bound what is taken of a row. The same to the last bit but
// for high pictures, where Pillow 13 begins with the other axis: one level.
function resized(pixels, count, rows, from, to, size) {
  const out = new Uint8ClampedArray(size * rows * 3), scale = (to - from) / size, reach = Math.max(scale, 1);
  for (let x = 0; x < size; x++) {
    const centre = from + (x + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5)), end = Math.min(count, Math.trunc(centre + reach + 0.5));
    const distances = Array.from({ length: end - first }, (_, i) => Math.abs(first + i + 0.5 - centre) / reach);
    const shares = distances.map((distance) => Math.max(0, 1 - distance));
    const total = shares.reduce((a, b) => a + b, 0), weights = shares.map((share) => Math.round((share / total) * ONE));
    for (let y = 0; y < rows; y++)
      for (let c = 0; c < 3; c++) {
        let sum = ONE / 2;
        weights.forEach((weight, i) => (sum += weight * pixels[(y * count + first + i) * 3 + c]));
        out[(x * rows + y) * 3 + c] = Math.floor(sum / ONE);
      }
  }
  return out;
}

// A picture as size x size x RGB, as the training pictures were made: see `fitted` in pipeline/pictures.py.
function squared({ pixels, width, height }, size, fit) {
  const even = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x)); // as Python rounds
  const short = Math.min(width, height);
  const [left, top] = fit === "crop" ? [(width - short) / 2, (height - short) / 2] : [0, 0];
  let [w, h] = [size, size];
  if (fit === "pad") [w, h] = width > height ? [size, even((height / width) * size)] : [even((width / height) * size), size];
  const turned = resized(pixels, width, height, left, width - left, w);
  const small = resized(turned, height, w, top, height - top, h);
  if (fit !== "pad") return small;
  const padded = new Uint8ClampedArray(size * size * 3).fill(255);
  const [x, y] = [even((size - w) / 2), even((size - h) / 2)];
  for (let row = 0; row < h; row++) padded.set(small.subarray(row * w * 3, (row + 1) * w * 3), ((y + row) * size + x) * 3);
  return padded;
}

async function pixelsOf(file) {
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const { width, height } = image, canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white";
  pen.fillRect(0, 0, width, height);
  pen.drawImage(image, 0, 0);
  const rgba = pen.getImageData(0, 0, width, height).data;
  return { pixels: rgba.filter((_, i) => i % 4 < 3), width, height };
}

// What is positive of a raw map, enlarged (bilinear) and over its own maximum: see `display` in explain/cam.py.
function enlarged(map, cells, size) {
  const out = new Float32Array(size * size);
  const place = (x) => Math.min(cells - 1, Math.max(0, ((x + 0.5) * cells) / size - 0.5));
  const at = (y, x) => Math.max(0, map[Math.min(y, cells - 1) * cells + Math.min(x, cells - 1)]);
  for (let i = 0; i < out.length; i++) {
    const y = place(Math.floor(i / size)), x = place(i % size), top = Math.floor(y), left = Math.floor(x);
    const [down, right] = [y - top, x - left];
    out[i] = (1 - down) * ((1 - right) * at(top, left) + right * at(top, left + 1))
      + down * ((1 - right) * at(top + 1, left) + right * at(top + 1, left + 1));
  }
  const peak = out.reduce((a, b) => Math.max(a, b), 0) || 1;
  return out.map((value) => value / peak);
}

function draw(canvas, side, colour) {
  canvas.width = canvas.height = side;
  const image = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) image.data.set(colour(i), 4 * i);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function show(pixels, size, classes, probabilities, maps, known) {
  $("unknown").hidden = !known || known.data[0]; // a file without a promise has no such output
  for (const id of ["picture", "under"]) draw($(id), size, (i) => [...pixels.subarray(3 * i, 3 * i + 3), 255]);
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  const rows = order.slice(0, 5).map((index) => {
    const row = document.createElement("button");
    const bar = row.appendChild(document.createElement("i"));
    bar.style.width = `${100 * probabilities[index]}%`;
    const name = document.createElement("span");
    name.textContent = classes[index];
    row.append(name, `${(100 * probabilities[index]).toFixed(2)}%`);
    row.onclick = () => choose(row, index);
    return row;
  });
  function choose(chosen, index) {
    for (const row of rows) row.setAttribute("aria-pressed", row === chosen);
    if (!maps) return;
    const cells = maps.dims[2], map = maps.data.subarray(index * cells * cells, (index + 1) * cells * cells);
    const heat = enlarged(map, cells, SHOWN);
    draw($("map"), SHOWN, (i) => [255, 96, 0, Math.round(178.5 * heat[i])]);
  }
  $("answer").replaceChildren(...rows);
  $("result").hidden = false;
  choose(rows[0], order[0]);
}

async function start() {
  ort.env.wasm.numThreads = 1;
  const reply = await fetch("model.onnx");
  if (!reply.ok) throw new Error(`model.onnx cannot be read: ${reply.status}`);
  const bytes = new Uint8Array(await reply.arrayBuffer()), facts = factsOf(bytes);
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const size = Number(facts.size), classes = JSON.parse(facts.classes), ready = "Drop a picture here, or choose one";
  $("file").onchange = async ({ target }) => {
    const [file] = target.files;
    if (!file) return;
    try {
      const pixels = squared(await pixelsOf(file), size, facts.fit);
      const images = new ort.Tensor("uint8", new Uint8Array(pixels), [1, size, size, 3]);
      const { probabilities, maps, known } = await session.run({ images });
      show(pixels, size, classes, probabilities.data, maps, known);
      $("state").textContent = ready;
    } catch (error) {
      $("state").textContent = `${file.name} cannot be read as a picture: ${error.message}`;
    }
  };
  $("state").textContent = ready;
  $("file").disabled = false;
}

start().catch((error) => ($("state").textContent = error.message));
