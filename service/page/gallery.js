// The jobs of this browser as cards, newest first: waiting, becoming an image, or done.

import { showImage } from "./api.js";
import { $, about, el, icon, ICONS, isCoarse } from "./dom.js";
import { altOf, titleOf } from "./request.js";

const list = $("gallery");
const cards = new Map();

/**
 * @param jobs the store.
 * @param act what the buttons do: `open(job, index)`, `reuse(job)`, `cancel(job)`, `forget(job)`.
 */
export function start(jobs, act) {
  jobs.addEventListener("change", ({ detail: job }) => {
    if (!cards.has(job.id)) place(job.id, new Card(job, act), jobs.ids);
    cards.get(job.id).show(job);
    count();
  });
  jobs.addEventListener("gone", ({ detail: id }) => {
    cards.get(id)?.node.remove();
    cards.delete(id);
    count();
  });
  if (!jobs.ids.length) count();
}

/** In the order of the ids, whichever was read first. */
function place(id, card, ids) {
  cards.set(id, card);
  const after = ids.slice(ids.indexOf(id) + 1).find((other) => cards.has(other));
  list.insertBefore(card.node, after ? cards.get(after).node : null);
}

function count() {
  $("empty").hidden = cards.size > 0;
  $("gallery-count").textContent = cards.size ? `${cards.size} ${cards.size === 1 ? "request" : "requests"}` : "";
}

class Card {
  #tiles = [];
  #status = "";
  #act;

  constructor(job, act) {
    this.#act = act;
    this.chip = el("span", { className: "chip" });
    this.buttons = el("div", { className: "row" });
    this.meta = el("p", { className: "meta" });
    this.progress = el("progress", { max: job.progress.steps, "aria-label": "Steps behind it" });
    this.tiles = el("div", { className: "tiles", dataset: { count: job.batch } });
    this.foot = el("div", { className: "notes" });
    const head = el("hgroup", {}, el("h3", { title: titleOf(job) }, titleOf(job)), this.meta);
    const header = el("header", {}, head, el("div", { className: "row" }, this.chip, this.buttons));
    this.node = el("li", { className: "job panel", id: `job-${job.id}` }, header, this.progress, this.tiles, this.foot);
  }

  show(job) {
    this.node.dataset.status = job.status;
    this.chip.textContent = chipText(job);
    this.#showMeta(job);
    this.progress.hidden = job.status !== "running";
    this.progress.value = job.progress.step;
    if (job.status !== this.#status) this.#changeStatus(job);
    if (job.status === "running") this.#showPreviews(job);
  }

  #showMeta(job) {
    const version = job.version ? ` ${job.version.split("-")[1]}` : "";
    const parts = [`${job.model}${version}`, `seed ${job.seed}`, `${job.steps} steps`, job.sampler];
    this.meta.replaceChildren(...parts.map((part) => el("span", {}, part)));
  }

  #changeStatus(job) {
    this.#status = job.status;
    this.#showButtons(job);
    this.foot.replaceChildren(...notes(job));
    if (job.status === "succeeded") this.#showImages(job);
    else if (job.status === "queued" || job.status === "running") this.#showWaiting(job);
    else this.tiles.replaceChildren();
  }

  #showButtons(job) {
    const name = titleOf(job);
    const button = (text, what, className) =>
      el("button", { type: "button", className, onclick: () => this.#act[what](job), "aria-label": `${text}: ${name}` }, text);
    const open = job.status === "queued" || job.status === "running";
    this.buttons.replaceChildren(
      open ? button("Cancel", "cancel", "danger") : button("Reuse", "reuse", "quiet"),
      open
        ? ""
        : el(
            "button",
            { type: "button", className: "quiet", onclick: () => this.#act.forget(job), "aria-label": `Remove from the list: ${name}` },
            icon(ICONS.close),
          ),
    );
  }

  #showWaiting(job) {
    if (this.#tiles.length) return;
    this.#tiles = Array.from({ length: job.batch }, () => el("div", { className: "tile waits" }));
    this.tiles.replaceChildren(...this.#tiles);
  }

  #showPreviews(job) {
    for (const { index, step, url } of job.previews ?? []) {
      const tile = this.#tiles[index];
      if (!tile) continue;
      let img = tile.querySelector("img");
      if (!img) {
        img = el("img", { alt: `Image ${index + 1} on its way`, className: "preview" });
        img.addEventListener("load", () => img.classList.toggle("coarse", isCoarse(img.naturalWidth)), { once: true });
        tile.append(img);
        tile.classList.add("previewed");
      }
      img.src = url;
      img.style.setProperty("--left", String(1 - step / job.progress.steps));
    }
  }

  #showImages(job) {
    this.tiles.replaceChildren(
      ...job.images.map((image) => {
        const alt = altOf(job, image.seed);
        const img = el("img", { alt, className: "image", loading: "lazy", decoding: "async" });
        img.classList.toggle("coarse", isCoarse(image.width));
        const tile = el("button", { type: "button", className: "tile", onclick: () => this.#act.open(job, image.index) }, img);
        tile.style.setProperty("--ratio", `${image.width} / ${image.height}`);
        img.addEventListener("error", () => tile.replaceChildren(el("span", { className: "hint" }, "expired")));
        showImage(img, image.url).catch(() => img.dispatchEvent(new Event("error")));
        return tile;
      }),
    );
    this.#tiles = [];
  }
}

function chipText(job) {
  switch (job.status) {
    case "queued": {
      const ahead = job.position ? `${job.position} ahead` : "next";
      const wait = job.estimated_wait_s === null || job.estimated_wait_s === undefined ? "" : ` · about ${about(job.estimated_wait_s)}`;
      return `${ahead}${wait}`;
    }
    case "running":
      return job.version ? `${job.progress.step} / ${job.progress.steps}` : "loading the model";
    case "succeeded": {
      if (job.cached) return "from the cache";
      const took = (new Date(job.finished_at) - new Date(job.started_at)) / 1000;
      return Number.isFinite(took) && took >= 0 ? `${took < 10 ? took.toFixed(1) : Math.round(took)} s` : "done";
    }
    default:
      return job.status;
  }
}

function notes(job) {
  const said = job.warnings.map((warning) => el("p", { className: "job-warning" }, warning));
  if (job.error) {
    said.push(el("p", { className: "job-error", role: "alert" }, el("strong", {}, job.error.code.replaceAll("_", " ")), `: ${job.error.detail}`));
  }
  return said;
}
