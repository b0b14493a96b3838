// Puts the page together.

import { Away, Problem, gateway, getJson, hasKey, useKey } from "./api.js";
import { $, toast } from "./dom.js";
import * as examples from "./examples.js";
import * as form from "./form.js";
import * as found from "./found.js";
import * as gallery from "./gallery.js";
import { Jobs } from "./jobs.js";
import * as loras from "./loras.js";
import { Models } from "./models.js";
import * as pictures from "./pictures.js";
import { requestOf, titleOf } from "./request.js";
import * as theme from "./theme.js";
import * as training from "./training.js";
import * as viewer from "./viewer.js";

const STATES = {
  ready: "Ready", waiting: "Waiting for a worker", loading: "Loading a model", away: "Reconnecting", locked: "Needs a key",
};

const models = new Models();
const jobs = new Jobs("jobs");

function reuse(request) {
  form.write(request);
  pictures.use(request);
  $("request").scrollIntoView({ block: "start" });
  $("draw").focus({ preventScroll: true });
  toast("Settings are in the form");
}

async function attempt(work) {
  try {
    await work();
  } catch (error) {
    toast(error.message);
  }
}

async function draw(event) {
  event.preventDefault();
  if ($("draw").getAttribute("aria-busy") === "true" || $("draw").disabled) return;
  form.clearErrors();
  $("draw").setAttribute("aria-busy", "true");
  try {
    await pictures.ready();
    const job = await jobs.submit(form.read());
    toast(job.cached ? "From the cache" : job.position ? `Queued, ${job.position} ahead` : "Queued");
    if (matchMedia("(max-width: 56rem)").matches) $(`job-${job.id}`)?.scrollIntoView({ block: "start" });
  } catch (error) {
    form.showProblem(error instanceof Away ? new Error("The gateway does not answer. Nothing was drawn; try again in a moment.") : error);
  } finally {
    $("draw").removeAttribute("aria-busy");
  }
}

function announceEnds() {
  const told = new Set();
  jobs.addEventListener("change", ({ detail: job }) => {
    if (["queued", "running"].includes(job.status)) told.add(job.id);
    else if (told.delete(job.id)) toast(job.status === "succeeded" ? `Done: ${titleOf(job)}` : `${titleOf(job)}: ${job.status}`);
  });
}

/** Whether requests of this gateway may begin at pictures. */
async function offerPictures() {
  try {
    const { components } = await getJson("/openapi.json");
    pictures.offer("init_image" in components.schemas.GenerateRequest.properties);
  } catch (error) {
    if (!(error instanceof Away || error instanceof Problem)) throw error;
  }
}

function showGateway() {
  models.addEventListener("state", ({ detail: state }) => {
    $("status").dataset.state = state === "loading" ? "waiting" : state;
    $("status-text").textContent = STATES[state];
  });
  gateway.addEventListener("state", ({ detail: state }) => {
    $("away").hidden = state !== "away";
    $("away").textContent = state === "away" ? "The gateway does not answer. What was queued is kept; this page goes on when it is back." : "";
    if (state === "here") models.look();
  });
}

function askForKey() {
  $("key-open").hidden = !hasKey();
  gateway.addEventListener("key", () => {
    $("key-open").hidden = false;
    if (!$("key").open && !hasKey()) $("key").showModal();
  });
  $("key-open").addEventListener("click", () => $("key").showModal());
  $("key").addEventListener("close", () => {
    if ($("key").returnValue !== "save") return;
    useKey($("key-value").value.trim());
    location.reload();
  });
}

theme.start();
showGateway();
askForKey();
examples.start();
form.start(models);
loras.start();
pictures.start();
offerPictures();
viewer.start({ reuse, watch: training.watch });
gallery.start(jobs, {
  open: viewer.open,
  reuse: (job) => reuse(requestOf(job)),
  cancel: (job) => attempt(() => jobs.cancel(job.id)),
  forget: (job) => jobs.forget(job.id),
});
found.start(jobs, {
  model: (name) => models.get(name),
  write: (request) => (form.write(request), pictures.use(request)),
  submit: (request) => jobs.submit(request, { isAnew: true }),
  job: (id) => jobs.get(id),
  refused: form.showProblem,
});
announceEnds();
training.start(
  models,
  () => {
    const request = form.read();
    return { ...request, seed: request.seed ?? 7, batch: 1, version: undefined };
  },
  viewer.open,
);

$("request").addEventListener("submit", draw);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]")) draw(event);
});

models.run();
jobs.load().finally(() => jobs.run());
