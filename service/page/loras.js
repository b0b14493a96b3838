// The LoRAs to draw with: those that the chosen model offers, each with its scale.

import { $, el, icon, ICONS } from "./dom.js";
import { addField } from "./form.js";

/** In one request. */
const MOST = 8;
const LARGEST_SCALE = 10;

const place = $("loras");
const list = $("loras-chosen");
const choice = $("loras-add");

/** name → { scale, sha256 }, in the order of choice. Those of other models stay, for when one of them is chosen again. */
let chosen = new Map();
let offered = [];

export function start() {
  choice.addEventListener("change", () => add(choice.value));
  $("request").addEventListener("adapted", ({ detail: model }) => offer(model?.loras ?? []));
  addField("loras", read, write);
}

const ofModel = () => [...chosen].filter(([name]) => offered.some((lora) => lora.name === name));

function read() {
  const loras = ofModel().map(([name, { scale, sha256 }]) => ({ name, ...(scale === "" ? {} : { scale: Number(scale) }), ...(sha256 ? { sha256 } : {}) }));
  return loras.length ? loras : undefined;
}

/** Those of an earlier request name their files, so that it draws the same after one was imported anew. */
function write(loras) {
  chosen = new Map((loras ?? []).map(({ name, scale, sha256 }) => [name, { scale: scale ?? 1, sha256 }]));
  show();
}

function offer(loras) {
  if (JSON.stringify(loras) === JSON.stringify(offered)) return;
  offered = loras;
  show();
}

function add(name) {
  if (!name) return;
  // At the end, also where it was chosen for another model before.
  chosen.delete(name);
  chosen.set(name, { scale: 1 });
  show();
  list.querySelector("li:last-child input").focus();
}

function remove(name) {
  chosen.delete(name);
  show();
  place.dispatchEvent(new Event("change", { bubbles: true }));
  choice.focus();
}

function show() {
  const shown = ofModel();
  place.hidden = !offered.length;
  list.replaceChildren(...shown.map(row));
  const others = offered.filter(({ name }) => !shown.some(([one]) => one === name));
  choice.replaceChildren(
    el("option", { value: "" }, shown.length ? "add another" : "none"),
    ...others.map(({ name }) => el("option", { value: name }, name)),
  );
  choice.hidden = !others.length || shown.length >= MOST;
}

function row([name, one], index) {
  const isEarlier = one.sha256 && offered.find((lora) => lora.name === name).sha256 !== one.sha256;
  return el(
    "li",
    { className: "lora", dataset: { field: `loras.${index}` } },
    el("span", { className: "lora-name" }, name, isEarlier && el("span", { className: "hint" }, " as it was before")),
    el("input", {
      type: "number", inputMode: "decimal", step: "any", min: -LARGEST_SCALE, max: LARGEST_SCALE, value: one.scale,
      placeholder: "1", "aria-label": `Scale of ${name}`, oninput: ({ target }) => (one.scale = target.value),
    }),
    el("button", { type: "button", className: "quiet", "aria-label": `Remove ${name}`, onclick: () => remove(name) }, icon(ICONS.close)),
  );
}
