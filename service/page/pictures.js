// A picture to begin at, and a mask painted over it: made as large as the model draws, uploaded, named by its hash.

import { call } from "./api.js";
import { $, el, icon, ICONS, isCoarse, toast } from "./dom.js";
import { addField, currentModel } from "./form.js";
import { Mask } from "./mask.js";

/** An upload expires; one that is older is sent again before it is used. */
const FRESH_MS = 10 * 60 * 1000;

const place = $("pictures");
const shown = el("canvas", { className: "shown" });
const file = el("input", { type: "file", accept: "image/png, image/jpeg, image/webp", id: "init-file", className: "hidden-title" });
const strength = el("input", { type: "range", id: "strength", min: 0.05, max: 1, step: 0.05, value: 0.6 });
const pasteBack = el("input", { type: "checkbox", id: "paste_back" });
const drop = el(
  "label",
  { className: "drop", htmlFor: "init-file" },
  icon(ICONS.picture), el("span", {}, "Begin at a picture: ", el("b", {}, "choose one"), " or drop it here"),
);
const editor = el("div", { className: "editor" });

let original = null;
let uploads = { picture: null, mask: null };
let restoring = Promise.resolve();
const mask = new Mask(() => (uploads.mask = null));

export function start() {
  const button = (text, act) => el("button", { type: "button", className: "quiet", onclick: act }, text);
  editor.append(
    el("div", { className: "canvas" }, shown, mask.canvas, mask.brush),
    mask.said,
    el(
      "div",
      { className: "field", dataset: { field: "strength" } },
      el("label", { htmlFor: "strength" }, "How much of it changes"),
      strength,
    ),
    el(
      "div",
      { className: "field", dataset: { field: "mask" } },
      el("label", { htmlFor: "brush" }, "Paint over what is to be drawn anew; brush"),
      mask.size,
    ),
    el(
      "div",
      { className: "field", dataset: { field: "paste_back" } },
      el("label", { className: "check" }, pasteBack, " Keep the other pixels exactly"),
    ),
    el(
      "div",
      { className: "row" },
      mask.erase, button("Invert mask", () => mask.invert()), button("Clear mask", () => mask.clear()), button("Remove picture", remove),
    ),
  );
  editor.hidden = true;
  place.className = "field";
  place.dataset.field = "init_image";
  place.append(file, drop, editor);
  file.addEventListener("change", () => file.files[0] && open(file.files[0]));
  for (const name of ["dragover", "dragleave", "drop"]) place.addEventListener(name, onDrag);
  $("request").addEventListener("adapted", fit);
  addField("init_image", () => (original ? uploads.picture?.sha256 : undefined));
  addField("strength", () => (original ? Number(strength.value) : undefined));
  addField("paste_back", () => (original && mask.isPainted && pasteBack.checked ? true : undefined));
  addField("mask", () => (original && mask.isPainted ? uploads.mask?.sha256 : undefined));
}

/** Shows the fields, once the gateway is known to have them. */
export function offer(isOffered) {
  place.hidden = !isOffered;
}

/** Sends what is to be sent before the request that names it. */
export async function ready() {
  await restoring;
  if (!original) return;
  uploads.picture = await send(shown, uploads.picture);
  if (mask.isPainted) uploads.mask = await send(mask.picture(), uploads.mask);
}

/** Begins where an earlier request began; `ready` waits for it. */
export function use(request) {
  restoring = restore(request);
}

async function restore(request) {
  remove();
  if (!request.init_image) return;
  try {
    original = await fetched(request.init_image);
    show();
    strength.value = request.strength ?? strength.value;
    pasteBack.checked = Boolean(request.paste_back);
    if (request.mask) mask.load(await fetched(request.mask));
  } catch {
    remove();
    toast("The picture that it began at has expired");
  }
}

async function fetched(sha256) {
  return createImageBitmap(await (await call(`/uploads/${sha256}`)).blob());
}

function onDrag(event) {
  event.preventDefault();
  drop.classList.toggle("over", event.type === "dragover");
  const [dropped] = event.dataTransfer?.files ?? [];
  if (event.type === "drop" && dropped) open(dropped);
}

async function open(chosen) {
  try {
    original = await createImageBitmap(chosen);
    show();
  } catch {
    toast(`${chosen.name} is no picture that this browser reads`);
  }
}

function target() {
  const model = currentModel();
  return [Number($("width").value) || model?.width || 0, Number($("height").value) || model?.height || 0];
}

/** The picture's middle, as large as the model draws. */
function show() {
  const [width, height] = target();
  [shown.width, shown.height] = [width, height];
  mask.resize(width, height);
  for (const canvas of [shown, mask.canvas]) canvas.classList.toggle("coarse", isCoarse(width));
  const scale = Math.max(width / original.width, height / original.height);
  const [across, down] = [original.width * scale, original.height * scale];
  const context = shown.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(original, (width - across) / 2, (height - down) / 2, across, down);
  shown.setAttribute("role", "img");
  shown.setAttribute("aria-label", "The picture to begin at");
  editor.style.setProperty("--ratio", `${width} / ${height}`);
  editor.hidden = false;
  drop.hidden = file.hidden = true;
  uploads = { picture: null, mask: null };
}

function fit() {
  const [width, height] = target();
  if (original && (shown.width !== width || shown.height !== height)) show();
}

function remove() {
  original = null;
  file.value = "";
  editor.hidden = true;
  drop.hidden = file.hidden = false;
}

async function send(canvas, known) {
  if (known && Date.now() - known.at < FRESH_MS) return known;
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const answer = await call("/uploads", { method: "POST", body: blob, headers: { "Content-Type": "image/png" } });
  return { sha256: (await answer.json()).sha256, at: Date.now() };
}
