// A picture to begin at, and a mask painted over it: made as large as the model draws, uploaded, named by its hash.

import { call } from "./api.js";
import { $, el, icon, ICONS, toast } from "./dom.js";
import { addField, currentModel } from "./form.js";

/** An upload expires; one that is older is sent again before it is used. */
const FRESH_MS = 10 * 60 * 1000;
const MASK_COLOUR = "#fff";

const place = $("pictures");
const shown = el("canvas", { className: "shown" });
const mask = el("canvas", { className: "mask", "aria-hidden": "true" });
const file = el("input", { type: "file", accept: "image/png, image/jpeg, image/webp", id: "init-file", className: "hidden-title" });
const strength = el("input", { type: "range", id: "strength", min: 0.05, max: 1, step: 0.05, value: 0.6 });
const brush = el("input", { type: "range", id: "brush", min: 1, max: 100, value: 25 });
const drop = el(
  "label",
  { className: "drop", htmlFor: "init-file" },
  icon(ICONS.picture), el("span", {}, "Begin at a picture: ", el("b", {}, "choose one"), " or drop it here"),
);
const editor = el("div", { className: "editor" });

let original = null;
let uploads = { picture: null, mask: null };
let isMasked = false;
let restoring = Promise.resolve();

export function start() {
  const button = (text, act) => el("button", { type: "button", className: "quiet", onclick: act }, text);
  editor.append(
    el("div", { className: "canvas" }, shown, mask),
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
      brush,
    ),
    el("div", { className: "row" }, button("Invert mask", invert), button("Clear mask", clearMask), button("Remove picture", remove)),
  );
  editor.hidden = true;
  place.className = "field";
  place.dataset.field = "init_image";
  place.append(file, drop, editor);
  file.addEventListener("change", () => file.files[0] && open(file.files[0]));
  for (const name of ["dragover", "dragleave", "drop"]) place.addEventListener(name, onDrag);
  mask.addEventListener("pointerdown", paint);
  mask.addEventListener("pointermove", (event) => event.buttons && paint(event));
  $("request").addEventListener("adapted", fit);
  addField("init_image", () => (original ? uploads.picture?.sha256 : undefined));
  addField("strength", () => (original ? Number(strength.value) : undefined));
  addField("mask", () => (original && isMasked ? uploads.mask?.sha256 : undefined));
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
  if (isMasked) uploads.mask = await send(maskPicture(), uploads.mask);
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
    if (request.mask) {
      const painted = await fetched(request.mask);
      const context = mask.getContext("2d");
      context.drawImage(painted, 0, 0, mask.width, mask.height);
      keepBright(context);
      isMasked = true;
    }
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
  for (const canvas of [shown, mask]) [canvas.width, canvas.height] = [width, height];
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
  isMasked = false;
}

function fit() {
  const [width, height] = target();
  if (original && (shown.width !== width || shown.height !== height)) show();
}

function paint(event) {
  const box = mask.getBoundingClientRect();
  const context = mask.getContext("2d");
  const radius = Math.max(0.5, (brush.value / 200) * Math.max(mask.width, mask.height));
  context.fillStyle = MASK_COLOUR;
  context.beginPath();
  context.arc(
    ((event.clientX - box.left) / box.width) * mask.width,
    ((event.clientY - box.top) / box.height) * mask.height,
    radius, 0, 2 * Math.PI,
  );
  context.fill();
  masked();
}

function masked() {
  isMasked = true;
  uploads.mask = null;
}

function invert() {
  const context = mask.getContext("2d");
  context.globalCompositeOperation = "xor";
  context.fillStyle = MASK_COLOUR;
  context.fillRect(0, 0, mask.width, mask.height);
  context.globalCompositeOperation = "source-over";
  masked();
}

function clearMask() {
  mask.getContext("2d").clearRect(0, 0, mask.width, mask.height);
  isMasked = false;
}

function remove() {
  original = null;
  file.value = "";
  isMasked = false;
  editor.hidden = true;
  drop.hidden = file.hidden = false;
}

/** What is painted in white, the rest black. */
function maskPicture() {
  const picture = el("canvas", { width: mask.width, height: mask.height });
  const context = picture.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, mask.width, mask.height);
  context.drawImage(mask, 0, 0);
  // The edge of a brush is half painted: it is one or the other, so that a mask that is used again is the same.
  eachPixel(context, picture, (isBright) => (isBright ? [255, 255, 255, 255] : [0, 0, 0, 255]));
  return picture;
}

/** What is dark becomes transparent again. */
function keepBright(context) {
  eachPixel(context, mask, (isBright) => [255, 255, 255, isBright ? 255 : 0]);
}

function eachPixel(context, { width, height }, colour) {
  const pixels = context.getImageData(0, 0, width, height);
  for (let at = 0; at < pixels.data.length; at += 4) pixels.data.set(colour(pixels.data[at] >= 128), at);
  context.putImageData(pixels, 0, 0);
}

async function send(canvas, known) {
  if (known && Date.now() - known.at < FRESH_MS) return known;
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const answer = await call("/uploads", { method: "POST", body: blob, headers: { "Content-Type": "image/png" } });
  return { sha256: (await answer.json()).sha256, at: Date.now() };
}
