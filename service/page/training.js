// The panel that draws one seed again whenever a new version goes live: a training, watched.

import { showImage } from "./api.js";
import { $, el, isCoarse, kept, toast } from "./dom.js";
import { Jobs } from "./jobs.js";
import { stepOf } from "./models.js";
import { altOf, titleOf } from "./request.js";

const panel = $("watch");
const toggle = $("watch-toggle");
const store = new Jobs("watch.jobs");
const strip = el("ol", { className: "strip", tabIndex: 0, "aria-label": "The same seed, newest version first" });
const said = el("p", { className: "hint" });
const tiles = new Map();

let models;
let current;
/** { isOn, request, drawn: versions that were drawn } */
let watched = kept.get("watch", { isOn: false, request: null, drawn: [] });

/**
 * @param list of models.
 * @param request what the form says now, with a seed.
 * @param open shows an image of a job.
 */
export function start(list, request, open) {
  models = list;
  current = request;
  const draw = el("button", { type: "button", className: "soft", onclick: () => watch(current()) }, "Use the settings above");
  const end = el("button", { type: "button", className: "quiet", onclick: () => turn(false) }, "Stop watching");
  panel.append(
    el(
      "div",
      { className: "watch-head" },
      el("div", {}, el("h2", { id: "watch-title" }, "One seed, every version"), said),
      el("div", { className: "row" }, draw, end),
    ),
    strip,
  );
  toggle.addEventListener("click", () => turn(!watched.isOn));
  models.addEventListener("change", drawNew);
  store.addEventListener("change", ({ detail: job }) => show(job, open));
  store.addEventListener("gone", ({ detail: id }) => (tiles.get(id)?.remove(), tiles.delete(id)));
  store.load();
  store.run();
  turn(watched.isOn);
}

/** Begins anew with this request. */
export function watch(request) {
  for (const id of store.ids) store.forget(id);
  watched = { isOn: true, request: { ...request, batch: 1, version: undefined }, drawn: [] };
  turn(true);
  panel.scrollIntoView({ block: "nearest" });
}

function turn(on) {
  watched.isOn = on;
  panel.hidden = !on;
  toggle.setAttribute("aria-expanded", String(on));
  if (on && !watched.request && models.list.length) watched = { isOn: true, request: current(), drawn: [] };
  kept.set("watch", watched);
  if (on) drawNew();
}

/** Draws with the version that is current now, if it was not drawn yet. */
async function drawNew() {
  if (!watched.isOn) return;
  watched.request ??= models.list.length ? current() : null;
  const model = models.get(watched.request?.model);
  say(model);
  if (!model?.version || watched.drawn.includes(model.version)) return;
  const version = model.version;
  watched.drawn = [...watched.drawn, version];
  kept.set("watch", watched);
  try {
    await store.submit({ ...watched.request, version });
  } catch (error) {
    watched.drawn = watched.drawn.filter((drawn) => drawn !== version);
    toast(`Step of the training not drawn: ${error.message}`);
  }
}

function say(model) {
  const request = watched.request;
  if (!request) return;
  const what = request.prompt ? `“${request.prompt}”` : "class_label" in request ? (model?.labels[request.class_label] ?? request.class_label) : "no condition";
  said.textContent = `${request.model}, ${what}, seed ${request.seed}: drawn again when a new version goes live. Now at ${stepOf(model?.version) || "no version"}.`;
}

function show(job, open) {
  let item = tiles.get(job.id);
  if (!item) {
    item = el("li", {});
    tiles.set(job.id, item);
    const after = store.ids.slice(store.ids.indexOf(job.id) + 1).find((id) => tiles.has(id));
    strip.insertBefore(item, after ? tiles.get(after) : null);
  }
  const [image] = job.images;
  const preview = job.previews?.[0];
  const tile = image
    ? el("button", { type: "button", className: "tile", onclick: () => open(job, 0) })
    : el("div", { className: `tile ${["queued", "running"].includes(job.status) ? "waits" : ""}` });
  if (image || preview) {
    const img = el("img", { alt: image ? `${altOf(job, job.seed)}, ${stepOf(job.version)}` : `${titleOf(job)} on its way` });
    img.classList.toggle("coarse", image ? isCoarse(image.width) : true);
    tile.append(img);
    showImage(img, image ? image.url : preview.url).catch((error) => toast(error.message));
  }
  item.replaceChildren(tile, el("p", { className: "hint" }, stepOf(job.version) || job.status));
}
