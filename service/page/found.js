// A picture that was found: its receipt fills the form, is drawn again, and the pixels' hashes are compared.

import { Away, Problem, getJson } from "./api.js";
import { $, el, icon, ICONS, isCoarse } from "./dom.js";
import { stepOf } from "./models.js";
import { isPicture, NoReceipt, receiptIn } from "./receipt_file.js";

const panel = $("found");
const verdict = el("p", { className: "verdict", role: "status" });
const differences = el("ul", { className: "differences" });
const COMPARED = ["request", "weights_sha256", "components", "plan_sha256", "computation"];
const ENDS = ["succeeded", "failed", "canceled"];

let act;
/** { receipt, jobId } of the picture that is shown. */
let current = null;

/** @param actions `model(name)`, `write(request)`, `submit(request)`, `job(id)`, `refused(error)`. */
export function start(jobs, actions) {
  act = actions;
  $("found-file").addEventListener("change", () => {
    const [file] = $("found-file").files;
    if (file) open(file);
    $("found-file").value = "";
  });
  for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, onDrag);
  jobs.addEventListener("change", ({ detail: job }) => judge(job));
}

/** Files anywhere but on the picture to begin at, which has a meaning of its own. */
function onDrag(event) {
  const isOurs = Boolean(event.dataTransfer?.types.includes("Files")) && !event.target.closest?.("#pictures");
  document.body.classList.toggle("dropping", isOurs && event.type === "dragover");
  if (!isOurs) return;
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (event.type === "drop" && file) open(file);
}

async function open(file) {
  $("viewer").close();
  const found = (current = { receipt: null, jobId: null });
  let receipt;
  try {
    receipt = await receiptIn(file);
  } catch (error) {
    if (!(error instanceof NoReceipt)) throw error;
    if (current === found) show(file, "It can't be drawn again", "", error.message);
    return;
  }
  if (current !== found) return; // another one was dropped meanwhile
  found.receipt = receipt;
  const { request } = receipt;
  const model = act.model(request.model);
  const info = model?.versions.find(({ version }) => version === request.version);
  const isDrawn = isPicture(file) ? "was drawn" : "is the receipt of what was drawn";
  const drawnBy = `${file.name} ${isDrawn} by ${request.model}, version ${request.version} (${stepOf(request.version)})`;
  if (!model) {
    show(file, "It can't be drawn again", `${drawnBy}.`, `${request.model} is not offered here.`);
    return;
  }
  show(file, "Drawn again", `${drawnBy}, ${whetherOffered(info, receipt)}.`, "Drawing it again");
  const { version: _, ...withoutVersion } = request;
  const again = info ? request : withoutVersion;
  act.write(again);
  try {
    found.jobId = (await act.submit(again)).id;
    judge(act.job(found.jobId));
  } catch (error) {
    if (!(error instanceof Away || error instanceof Problem)) throw error;
    if (current === found) verdict.textContent = `It was not drawn: ${error.message}`;
    act.refused(error);
  }
}

function whetherOffered(info, receipt) {
  if (!info) return "which is no longer offered: the current version draws it instead";
  return info.weights_sha256 === receipt.weights_sha256 ? "which is still offered" : "which is offered with other weights";
}

function show(file, title, about, said) {
  const picture = isPicture(file) && el("img", { alt: `The picture ${file.name}` });
  if (picture) showFile(picture, file);
  const close = el("button", { type: "button", className: "quiet", "aria-label": "Close the found picture", onclick: hide }, icon(ICONS.close));
  differences.replaceChildren();
  panel.hidden = false;
  panel.replaceChildren(
    ...(picture ? [picture] : []),
    el("div", { className: "found-text" }, el("h2", { id: "found-title" }, title), el("p", { className: "hint" }, about), verdict, differences),
    close,
  );
  panel.dataset.verdict = "";
  verdict.textContent = said;
  panel.scrollIntoView({ block: "nearest" });
}

function showFile(picture, file) {
  picture.addEventListener("load", () => (URL.revokeObjectURL(picture.src), picture.classList.toggle("coarse", isCoarse(picture.naturalWidth))), { once: true });
  picture.addEventListener("error", () => (URL.revokeObjectURL(picture.src), picture.remove()), { once: true });
  picture.src = URL.createObjectURL(file);
}

function hide() {
  current = null;
  panel.hidden = true;
  $("gallery-title").focus();
}

/** Says, once the job has ended, whether the pixels are those of the receipt. */
async function judge(job) {
  const found = current;
  if (!found?.jobId || job?.id !== found.jobId || !ENDS.includes(job.status)) return;
  if (job.status !== "succeeded") {
    verdict.textContent = `It was not drawn: ${job.error?.detail ?? job.status}`;
    return;
  }
  const now = new Map(job.images.map((image) => [image.index, image.sha256]));
  const isSame = found.receipt.images.every(({ index, sha256 }) => now.get(index) === sha256);
  panel.dataset.verdict = isSame ? "same" : "different";
  verdict.textContent = isSame ? "The same to the bit." : "Not the same pixels.";
  if (isSame) return;
  const lines = await reasons(found.receipt, job);
  if (current === found) differences.replaceChildren(...lines.map((line) => el("li", {}, line)));
}

async function reasons(receipt, job) {
  if (!job.links.receipt) return ["What differs can't be told: the worker that drew it writes no receipts."];
  try {
    const lines = differing(receipt, await getJson(job.links.receipt));
    return lines.length ? lines : ["Everything else is as the receipt says."];
  } catch (error) {
    if (!(error instanceof Away || error instanceof Problem)) throw error;
    return [`What differs can't be told: ${error.message}`];
  }
}

/** What was another thing when it was drawn again, which may be why the pixels are. */
function differing(then, now, at = "") {
  const names = at ? [...new Set([...Object.keys(then), ...Object.keys(now)])].sort() : COMPARED;
  return names.flatMap((name) => {
    const [before, after] = [then[name], now[name]];
    const path = at ? `${at}.${name}` : name;
    if (canonical(before) === canonical(after)) return [];
    if ([before, after].every((value) => typeof value === "object" && value !== null && !Array.isArray(value))) return differing(before, after, path);
    return [`${path}: ${shown(before)} then, ${shown(after)} now`];
  });
}

const canonical = (value) =>
  JSON.stringify(value, (_, inner) => (inner && typeof inner === "object" && !Array.isArray(inner) ? Object.fromEntries(Object.entries(inner).sort()) : inner));

const shown = (value) => (value === undefined ? "none" : typeof value === "string" ? value : JSON.stringify(value));
