// Light, dark, or as the system has it.

import { $ } from "./dom.js";

const NEXT = { "": "dark", dark: "light", light: "" };
const NAMES = { "": "as the system", dark: "dark", light: "light" };

export function start() {
  show();
  $("theme").addEventListener("click", () => {
    const next = NEXT[document.documentElement.dataset.theme ?? ""];
    if (next) document.documentElement.dataset.theme = next;
    else delete document.documentElement.dataset.theme;
    try {
      localStorage.setItem("reverie.theme", next);
    } catch {
      // Blocked: until the next reload.
    }
    show();
  });
}

function show() {
  const name = `Colours: ${NAMES[document.documentElement.dataset.theme ?? ""]}`;
  $("theme").setAttribute("aria-label", name);
  $("theme").title = name;
}
