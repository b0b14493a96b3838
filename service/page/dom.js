// Small things that every part of the page needs of the document.

export const $ = (id) => document.getElementById(id);

/** An element with properties (`dataset`, `aria-…` and `on…` included) and children. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "dataset") Object.assign(node.dataset, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && !name.includes("-")) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

/** A line icon of one path. */
export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

export const ICONS = {
  close: "M6 6l12 12M18 6 6 18",
  before: "m14.5 5.5-6.500 6.500 6.500 6.500",
  after: "m9.500 5.500 6.500 6.500-6.500 6.500",
  download: "M12 4v11m0 0 4.500-4.500M12 15l-4.500-4.500M4.500 19.500h15",
  reuse: "M4.500 12a7.500 7.500 0 0 1 13-5.100L19.500 9M19.500 4.500V9H15M19.500 12a7.500 7.500 0 0 1-13 5.100L4.500 15M4.500 19.500V15H9",
  eye: "M2.500 12S6 5.500 12 5.500 21.500 12 21.500 12 18 18.500 12 18.500 2.500 12 2.500 12ZM15 12a3 3 0 1 1-6 0 3 3 0 0 1 6 0Z",
  picture: "M5.500 4.500h13a1 1 0 0 1 1 1v13a1 1 0 0 1-1 1h-13a1 1 0 0 1-1-1v-13a1 1 0 0 1 1-1ZM4.500 16l4.500-4.500 4 4 2.500-2.500 4 4M15.500 9.500h.01",
  play: "M8 5.500v13l10.500-6.500Z",
  receipt: "M6 4h12v16l-3-1.800-3 1.800-3-1.800L6 20ZM9 8.500h6M9 12.500h6",
  grid: "M4.500 4.500h6.500v6.500H4.500zM13 4.500h6.500v6.500H13zM4.500 13h6.500v6.500H4.500zM13 13h6.500v6.500H13z",
};

/** Storage that a browser may refuse or that another release may have filled. */
export const kept = {
  get(name, otherwise) {
    try {
      const text = localStorage.getItem(`reverie.${name}`);
      return text === null ? otherwise : JSON.parse(text);
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`reverie.${name}`, JSON.stringify(value));
    } catch {
      // Full or blocked: the page works on and forgets at a reload.
    }
  },
};

let hiding;

/** Says it for a moment at the bottom, and to a screen reader. */
export function toast(text) {
  const line = $("toast");
  line.textContent = text;
  line.classList.add("shown");
  clearTimeout(hiding);
  hiding = setTimeout(() => line.classList.remove("shown"), 3200);
}

/** "3 s", "2 min": a wait, rounded as people say it. */
export function about(seconds) {
  if (seconds < 1.5) return "a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

/** Images of few pixels are shown as such: enlarging would smear them. */
export const isCoarse = (width) => width <= 96;
