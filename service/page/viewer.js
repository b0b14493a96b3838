// One image at its largest: how it was made, the same again, as code, as a file.

import { call, hasKey, showImage } from "./api.js";
import { $, el, icon, ICONS, isCoarse, kept, toast } from "./dom.js";
import { altOf, requestOfImage, titleOf } from "./request.js";
import { LANGUAGES } from "./snippets.js";

const dialog = $("viewer");
let job;
let index = 0;
let act;
let plays = false;

/** @param actions `reuse(request)`, `watch(request)`. */
export function start(actions) {
  act = actions;
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.target.closest("[role=tablist], pre")) return;
    if (event.key === "ArrowLeft") go(-1);
    else if (event.key === "ArrowRight") go(1);
  });
}

export function open(shown, at) {
  job = shown;
  index = at;
  plays = false;
  show();
  dialog.showModal();
}

function go(by) {
  const next = index + by;
  if (next < 0 || next >= job.images.length) return;
  const side = by < 0 ? "before" : "after";
  index = next;
  show();
  const button = dialog.querySelector(`.${side}`);
  (button.disabled ? dialog.querySelector(".step:not(:disabled)") : button).focus();
}

function show() {
  dialog.replaceChildren(stage(job.images[index]), panel(job.images[index]));
}

function stage(image) {
  const img = el("img", { alt: altOf(job, image.seed), className: isCoarse(image.width) ? "coarse" : "" });
  const url = plays ? `/jobs/${job.id}/animation?image=${image.index}` : image.url;
  showImage(img, url).catch((error) => toast(error.message));
  const step = (side, text, by, off) =>
    el("button", { type: "button", className: `step quiet ${side}`, "aria-label": text, disabled: off, onclick: () => go(by) }, icon(ICONS[side]));
  const several = job.images.length > 1;
  const play = el(
    "button",
    { type: "button", className: "soft play toggle", "aria-pressed": String(plays), onclick: () => ((plays = !plays), show(), dialog.querySelector(".play").focus()) },
    icon(ICONS.play), "Noise to image",
  );
  return el(
    "figure",
    { className: "stage" },
    img,
    several && step("before", "Image before", -1, index === 0),
    several && step("after", "Next image", 1, index === job.images.length - 1),
    Boolean(job.frames) && play,
  );
}

function panel(image) {
  const request = requestOfImage(job, image);
  const extension = job.format;
  const download = el("a", { className: "soft", href: image.url, download: `${job.model}-${image.seed}.${extension}` }, icon(ICONS.download), "Download");
  const about = el(
    "div",
    { className: "about" },
    el(
      "div",
      { className: "about-head" },
      el("h2", { id: "viewer-title" }, titleOf(job)),
      el("button", { type: "button", className: "quiet", "aria-label": "Close", onclick: () => dialog.close() }, icon(ICONS.close)),
    ),
    el(
      "div",
      { className: "actions" },
      el("button", { type: "button", className: "primary", onclick: () => (dialog.close(), act.reuse(request)) }, icon(ICONS.reuse), "Reuse settings"),
      download,
      el("button", { type: "button", className: "soft", onclick: () => (dialog.close(), act.watch(request)) }, icon(ICONS.eye), "Watch this seed"),
      job.images.length > 1 && el("a", { className: "soft", href: `/jobs/${job.id}/grid`, download: `${job.model}-${job.seed}-sheet.png` }, icon(ICONS.grid), "All on one sheet"),
      job.links.receipt && el("a", { className: "soft", href: job.links.receipt, download: `${job.model}-${job.seed}-receipt.json` }, icon(ICONS.receipt), "Receipt"),
    ),
    facts(image),
    code(request),
  );
  if (hasKey()) for (const link of about.querySelectorAll("a[download]")) link.addEventListener("click", downloadWithKey, { once: true });
  return about;
}

/** A link sends no key: the file is fetched with it, and the link then names what was fetched. */
async function downloadWithKey(event) {
  event.preventDefault();
  const link = event.currentTarget;
  try {
    link.href = URL.createObjectURL(await (await call(link.getAttribute("href"))).blob());
    link.click();
  } catch (error) {
    toast(error.message);
  }
}

function facts(image) {
  const made = [
    ["Negative", job.negative_prompt],
    ["Model", job.model],
    ["Version", job.version, "mono"],
    ["LoRAs", job.loras?.map(({ name, scale }) => `${name}, scale ${scale}`).join("; ")],
    ["Seed", image.seed],
    ["Steps", `${job.steps}, ${job.sampler}${job.eta ? `, eta ${job.eta}` : ""}${job.karras ? ", Karras' noise levels" : ""}${job.spacing ? `, ${job.spacing}` : ""}${refinedFrom(job)}${job.fast ? ", fast" : ""}`],
    ["Guidance", job.guidance_scale === 1 ? null : guidanceOf(job)],
    ["Size", `${image.width} × ${image.height}, ${job.format.toUpperCase()}`],
    ["Computed in", job.dtype && `${job.dtype}${job.exact === false ? ", last bits may vary with the batch" : ""}`],
    ["Answered", job.cached && "from the cache: an equal request had drawn it"],
    ["Kept until", job.expires_at && new Date(job.expires_at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })],
    ["SHA-256 of the pixels", image.sha256, "mono"],
  ];
  return el(
    "dl",
    { className: "facts" },
    ...made.filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false)
      .flatMap(([name, value, className]) => [el("dt", {}, name), el("dd", { className }, String(value))]),
  );
}

const refinedFrom = ({ refiner_start: start }) => (start ? (start < 1 ? `, refined from ${start}` : ", not refined") : "");

function guidanceOf({ guidance_scale, guidance_rescale, guidance_interval }) {
  const rescaled = guidance_rescale ? `, rescaled by ${guidance_rescale}` : "";
  return `${guidance_scale}${rescaled}${guidance_interval ? `, for t/T from ${guidance_interval.join(" to ")}` : ""}`;
}

function code(request) {
  const pre = el("pre", { tabIndex: 0, id: "code", role: "tabpanel" });
  const tabs = Object.keys(LANGUAGES).map((language) =>
    el("button", { type: "button", role: "tab", id: `tab-${language}`, "aria-controls": "code", onclick: () => choose(language) }, language),
  );
  function choose(language, focus = false) {
    for (const tab of tabs) {
      const chosen = tab.textContent === language;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      if (chosen && focus) tab.focus();
    }
    pre.textContent = LANGUAGES[language](request, location.origin, hasKey());
    pre.setAttribute("aria-labelledby", `tab-${language}`);
    kept.set("language", language);
  }
  const list = el("div", { role: "tablist", "aria-label": "The same request as" }, ...tabs);
  list.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(document.activeElement);
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) choose(tabs[(at + by + tabs.length) % tabs.length].textContent, true);
  });
  const chosen = kept.get("language", "curl");
  choose(chosen in LANGUAGES ? chosen : "curl");
  const copy = el("button", { type: "button", className: "copy", onclick: () => copyText(pre.textContent) }, "Copy");
  return el("div", { className: "code" }, el("div", { className: "tabs" }, list, copy), pre);
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Missing where a page came without TLS, or not allowed.
    const area = el("textarea", { value: text, className: "hidden-title" });
    dialog.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast("Copied");
}
