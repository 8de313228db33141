// The page of `deit serve` and of `deit export --to web`. What classifies the images is backend.js: server.js or browser.js.

import * as backend from "./backend.js";
import { byId, element } from "./dom.js";
import { drawMap, scaleGradient } from "./map.js";

const TOP = 5;
const PARALLEL = 4; // images of a selection that are classified at a time
const HEAD_NAMES = { class: "Class head", distillation: "Distillation head", both: "Both heads, averaged" };

const percent = (share) => `${(100 * share).toFixed(1)}%`;

let started;
let models = [];
let explains = false;
let images = []; // {name, blob, url, row, result, explanation, error}
let current = null;

// Start

async function start() {
  showMessage("");
  try {
    const description = await backend.describe();
    ({ models, explains } = description);
    byId("note").textContent = description.note;
  } catch (error) {
    showError(error);
    return;
  }
  byId("token-form").hidden = true;
  byId("model").replaceChildren(...models.map(({ name }) => element("option", { value: name, textContent: name })));
  byId("model-choice").hidden = models.length < 2;
  showModel();
}

function model() {
  return models.find(({ name }) => name === byId("model").value) ?? models[0];
}

function showModel() {
  const { name, classes, height, width, facts } = model();
  const size = `${classes.length} classes, ${width} × ${height} pixels`;
  byId("model-facts").textContent = [models.length < 2 ? name : "", size, facts].filter(Boolean).join(" · ");
  showGallery();
}

async function showGallery() {
  const { name } = model();
  const samples = await (backend.samples?.(name) ?? Promise.resolve([])).catch(() => []);
  const entries = await Promise.all(
    samples.map(async (sample) => {
      const blob = await backend.sampleImage(name, sample);
      const picture = element("img", { src: URL.createObjectURL(blob), alt: "" });
      const button = element("button", { type: "button", title: sample.name }, picture, element("span", { textContent: sample.label }));
      button.setAttribute("aria-label", `Classify ${sample.name}, an image of ${sample.label}`);
      button.addEventListener("click", () => addImages([new File([blob], sample.name, { type: blob.type })]));
      return element("li", {}, button);
    }),
  ).catch(() => []);
  if (name !== model().name) return; // another one was chosen meanwhile
  byId("gallery").hidden = !entries.length;
  byId("gallery").querySelector("ul").replaceChildren(...entries);
}

// Images

async function addImages(files) {
  await started; // images may be dropped before the model is known
  if (!models.length || !files.length) return;
  showMessage("");
  const added = [...files].map((blob) => ({ name: blob.name || "pasted image", blob, url: URL.createObjectURL(blob) }));
  images.push(...added);
  for (const image of added) addRow(image);
  byId("table").hidden = images.length < 2;
  select(added[0]);
  await classify(added);
}

async function classify(added) {
  const { name } = model();
  const waiting = [...added];
  const work = async () => {
    for (let image = waiting.shift(); image; image = waiting.shift()) {
      await predict(image, name);
      const done = images.filter(({ result, error }) => result || error).length;
      byId("status").textContent = images.length > 1 ? `${done} of ${images.length} images classified` : "";
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, work));
}

async function predict(image, name) {
  const begin = performance.now();
  try {
    image.result = await backend.predict(image.blob, { model: name, top: TOP });
    image.result.elapsed = performance.now() - begin;
  } catch (error) {
    image.error = error.message;
    if (error.needsToken) showError(error);
  }
  fillRow(image);
  if (image === current) show(image);
}

function select(image) {
  current = image;
  for (const each of images) each.row.setAttribute("aria-current", String(each === image));
  show(image);
}

function clear() {
  for (const { url } of images) URL.revokeObjectURL(url);
  images = [];
  current = null;
  byId("table").querySelector("tbody").replaceChildren();
  for (const id of ["table", "result"]) byId(id).hidden = true;
  byId("status").textContent = "";
  showMessage("");
}

// The current image

function show(image) {
  const { result, error } = image;
  showMessage(error ? `${image.name}: ${error}` : "");
  byId("result").hidden = Boolean(error);
  if (error) return;
  byId("label").textContent = result ? result.predictions[0].label : "…";
  byId("facts").textContent = result ? facts(image) : `${image.name} is being classified`;
  byId("heads").replaceChildren(...(result ? headLists(result) : []));
  showPictures(image);
  if (result && explains && !image.explanation) explain(image);
}

function facts({ name, result }) {
  const { class: ofClass, distillation } = result.heads ?? {};
  const agree = ofClass?.[0].label === distillation?.[0].label;
  const agreement = ofClass && distillation ? `The heads ${agree ? "agree" : "disagree"}. ` : "";
  const inside = result.milliseconds == null ? "" : `, ${Math.round(result.milliseconds)} ms of them for the prediction`;
  return `${name}: ${percent(result.predictions[0].probability)}. ${agreement}${Math.round(result.elapsed)} ms${inside}.`;
}

function headLists({ predictions, heads }) {
  const entries = Object.entries(heads ?? {});
  if (entries.length < 2) return headList("Most likely classes", predictions);
  return entries.reverse().flatMap(([head, guesses]) => headList(HEAD_NAMES[head] ?? head, guesses));
}

function headList(title, guesses) {
  const items = guesses.map(({ label, probability }) => {
    const bar = element("div", { className: "bar" }, element("i"));
    bar.firstChild.style.width = percent(probability);
    return element("li", {}, element("span", { textContent: label }), element("span", { textContent: percent(probability) }), bar);
  });
  return [element("h3", { textContent: title }), element("ol", {}, ...items)];
}

async function explain(image) {
  image.explanation = { pending: true };
  try {
    image.explanation = await backend.explain(image.blob, { model: model().name });
  } catch {
    image.explanation = { heads: [] }; // not a transformer, or the original of a bundle is gone
  }
  if (image === current) showPictures(image);
}

function showPictures(image) {
  const { heads = [], layers = [], view } = image.explanation ?? {};
  const picture = element("img", { src: view ?? image.url, alt: view ? "The image as the model sees it" : image.name });
  picture.addEventListener("error", () => picture.replaceWith("The browser cannot show this image."), { once: true });
  const panels = [element("figure", {}, picture, element("figcaption", { textContent: view ? "the image" : "" }))];
  for (const head of heads) panels.push(element("figure", {}, element("canvas"), element("figcaption")));
  byId("panels").replaceChildren(...panels);
  byId("layers").hidden = !heads.length;
  if (!heads.length) return;
  byId("layer").max = layers.length;
  byId("layer").value = layers.length;
  drawMaps();
}

// Layer 1 is at the left end of the slider; its right end is the map of all layers.
async function drawMaps() {
  const { heads = [], layers = [], view } = current?.explanation ?? {};
  const position = Number(byId("layer").value);
  const all = position === layers.length;
  byId("layer-name").textContent = all
    ? `All ${layers.length} layers, their heads weighted by the gradient of “${heads[0]?.target}”`
    : `Layer ${position + 1} of ${layers.length}: attention, mean of its heads`;
  const figures = [...byId("panels").querySelectorAll("figure")].slice(1);
  await Promise.all(
    heads.map(async (head, index) => {
      const map = all ? head.relevance : layers[position][index];
      const [canvas, caption] = figures[index].children;
      const guess = `${head.predictions[0].label} ${percent(head.predictions[0].probability)}`;
      caption.textContent = `${head.head} token: ${guess}`;
      await drawMap(canvas, view, map);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${byId("layer-name").textContent}, of the ${head.head} token`);
    }),
  );
}

// All images

function addRow(image) {
  const button = element("button", { type: "button", textContent: image.name });
  button.addEventListener("click", () => select(image));
  image.row = element("tr", {}, element("td", {}, button), element("td", { textContent: "…" }), element("td"));
  byId("table").querySelector("tbody").append(image.row);
}

function fillRow({ row, result, error }) {
  const [, label, probability] = row.children;
  label.textContent = error ?? result.predictions[0].label;
  label.className = error ? "error" : "";
  probability.textContent = error ? "" : percent(result.predictions[0].probability);
}

function csv() {
  const quote = (value) => `"${String(value).replaceAll('"', '""')}"`;
  const rows = images.map(({ name, result, error }) => {
    const best = result?.predictions[0];
    return [name, best?.label ?? "", best?.probability ?? "", error ?? ""];
  });
  return [["image", "label", "probability", "error"], ...rows].map((row) => row.map(quote).join(",")).join("\r\n") + "\r\n";
}

function downloadCsv() {
  // The byte order mark tells spreadsheets that the file is UTF-8.
  const url = URL.createObjectURL(new Blob(["\ufeff", csv()], { type: "text/csv" }));
  element("a", { href: url, download: "predictions.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// Messages

function showMessage(text) {
  byId("message").textContent = text;
}

function showError(error) {
  showMessage(error.message);
  if (error.needsToken) {
    byId("token-form").hidden = false;
    byId("token").focus();
  }
}

// Events

byId("choose").addEventListener("click", () => byId("files").click());
byId("photograph").addEventListener("click", () => byId("camera").click());
for (const id of ["files", "camera"]) {
  byId(id).addEventListener("change", ({ target }) => {
    addImages([...target.files]);
    target.value = ""; // so that the same file can be chosen again
  });
}
byId("csv").addEventListener("click", downloadCsv);
byId("clear").addEventListener("click", clear);
byId("layer").addEventListener("input", drawMaps);
byId("model").addEventListener("change", () => {
  clear();
  showModel();
});
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  backend.setToken(byId("token").value);
  started = start();
});
document.addEventListener("paste", ({ clipboardData }) => addImages([...clipboardData.files]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") addImages([...event.dataTransfer.files]);
  });
}
byId("scale").querySelector("i").style.background = scaleGradient();
started = start();
