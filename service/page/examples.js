// Prompts to try the chosen model with, under its field; the first visit finds the first of them in it.

import { $, el, kept } from "./dom.js";

const MOST = 8;
const form = $("request");
const prompt = $("prompt");
const row = $("examples");

let isFirstVisit;

/** Before the form has kept anything of this visit. */
export function start() {
  isFirstVisit = kept.get("form", null) === null;
  form.addEventListener("adapted", ({ detail: model }) => model && show(model.example_prompts ?? []));
}

function show(examples) {
  const key = JSON.stringify(examples);
  if (row.dataset.key === key) return;
  row.dataset.key = key;
  row.hidden = !examples.length;
  row.replaceChildren(...examples.slice(0, MOST).map((text) => el("button", { type: "button", className: "example", onclick: () => use(text) }, text)));
  if (isFirstVisit && examples.length && !prompt.value) prompt.value = examples[0];
}

function use(text) {
  prompt.value = text;
  prompt.dispatchEvent(new Event("input", { bubbles: true }));
}
