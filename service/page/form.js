// The request as a form: which fields a model has, what is in them, and where an error stands.

import { $, el, kept } from "./dom.js";
import { stepOf } from "./models.js";
import { KARRAS_SAMPLERS } from "./request.js";

const form = $("request");
const field = (name) => form.querySelector(`[data-field="${name}"]`);
const WHOLE = ["seed", "steps", "batch", "width", "height", "clip_skip", "upscale_steps", "upscale_noise_level"];
const REAL = ["guidance_scale", "guidance_rescale", "refiner_start", "eta", "strength"];
/** The ends of one field. */
const INTERVAL = ["guidance_low", "guidance_high"];
/** As a choice, so that it can be left open. */
const YES_OR_NO = ["karras"];
const TEXT = ["model", "version", "prompt", "negative_prompt", "sampler", "spacing", "format"];
/** To which Karras' noise levels leave no choice of timesteps. */
const DPM_SOLVERS = ["dpmpp_2m", "dpmpp_2m_sde"];
const MOST_CHIPS = 60;
/** Of any model that was published without numbers of its own. */
const STEPS = 50;
const PROMPT_GUIDANCE = 3;
const FRAMES = 24;
/** Of all images of a request. */
const MOST_FRAMES = 384;
const MOST_SEED = 2 ** 32;
const SAMPLER_NAMES = {
  ddim: "DDIM", ddpm: "DDPM", ddpm_large: "DDPM, large variance", dpmpp_2m: "DPM-Solver++ 2M",
  dpmpp_2m_sde: "DPM-Solver++ 2M SDE", euler: "Euler", euler_ancestral: "Euler ancestral", plms: "PLMS", lcm: "LCM",
};

let models;
let isFilled = false;
/** Fields that others add to the form: name → { read, write }. */
const added = new Map();

/**
 * @param read gives the field's value for a model, or undefined.
 * @param write puts a request's value into the form, undefined for none.
 */
export const addField = (name, read, write = () => {}) => added.set(name, { read, write });
export const currentModel = () => models.get($("model").value);

export function start(modelList) {
  models = modelList;
  models.addEventListener("change", fillModels);
  $("model").addEventListener("change", () => (fillVersions(), adapt(), remember()));
  for (const [slide, number] of [["steps-slide", "steps"], ["guidance-slide", "guidance_scale"]]) pairUp($(slide), $(number));
  for (const button of form.querySelectorAll("[data-step]"))
    button.addEventListener("click", () => (stepBy(Number(button.dataset.step)), changed()));
  $("roll").addEventListener("click", roll);
  $("fix").addEventListener("click", () => fix($("fix").getAttribute("aria-pressed") !== "true"));
  $("seed").addEventListener("input", () => fix($("seed").value !== ""));
  $("sampler").addEventListener("change", adapt);
  form.addEventListener("input", (event) => (clearError(event.target), changed()));
  form.addEventListener("change", changed);
}

/** What the gateway will be asked for. */
export function read() {
  const request = {};
  for (const name of [...TEXT, ...WHOLE, ...REAL, ...YES_OR_NO]) {
    const input = form.elements[name];
    if (!input || !isOffered(input) || input.value === "") continue;
    request[name] = TEXT.includes(name) ? input.value : YES_OR_NO.includes(name) ? input.value === "true" : Number(input.value);
  }
  const label = form.querySelector("input[name=class_label]:checked, select[name=class_label]");
  if (label && isOffered(label) && label.value !== "") request.class_label = Number(label.value);
  if ($("frames").checked) request.frames = Math.max(1, Math.min(FRAMES, Math.floor(MOST_FRAMES / (request.batch || 1))));
  const [low, high] = INTERVAL.map((name) => form.elements[name]);
  if (isOffered(low) && (low.value || high.value)) request.guidance_interval = [Number(low.value), high.value === "" ? 1 : Number(high.value)];
  if ("prompt" in request && $("each-line").checked) {
    request.prompts = linesOf(request.prompt);
    request.batch = request.prompts.length;
    delete request.prompt;
  }
  const isPrompted = "prompt" in request || "prompts" in request;
  if (!isPrompted) for (const name of ["negative_prompt", "clip_skip"]) delete request[name];
  if (!(isPrompted || "class_label" in request)) delete request.guidance_scale;
  if ($("fast").checked && isOffered($("fast"))) request.fast = true;
  for (const [name, { read }] of added) {
    const found = read(currentModel());
    if (found !== undefined) request[name] = found;
  }
  return request;
}

const linesOf = (text) => text.split("\n").filter((line) => line.trim());

const isOffered = (input) => !input.closest("[hidden]") && !input.disabled;

/** Puts a request into the form; fields that it lacks keep what they have, but for what it is of: those are emptied. */
export function write(request, { isFromStorage = false } = {}) {
  if (request.model && models.get(request.model)) {
    $("model").value = request.model;
    fillVersions();
  }
  if ($("version").querySelector(`option[value="${request.version ?? ""}"]`)) $("version").value = request.version ?? "";
  adapt();
  for (const name of [...TEXT.slice(2), ...WHOLE, ...REAL, ...YES_OR_NO]) {
    const input = form.elements[name];
    if (!input || (isFromStorage && request[name] === undefined)) continue;
    input.value = request[name] ?? (input.tagName === "SELECT" ? input.options[0]?.value ?? "" : "");
  }
  if (!isFromStorage || request.guidance_interval)
    INTERVAL.forEach((name, end) => (form.elements[name].value = request.guidance_interval?.[end] ?? ""));
  const label = request.class_label === undefined ? "" : String(request.class_label);
  const chip = form.querySelector(`input[name=class_label][value="${label}"]`);
  if (chip) chip.checked = true;
  const select = form.querySelector("select[name=class_label]");
  if (select) select.value = label;
  if (!isFromStorage || "prompt" in request || "prompts" in request) {
    $("each-line").checked = Boolean(request.prompts);
    if (request.prompts) $("prompt").value = request.prompts.join("\n");
  }
  for (const name of ["frames", "fast"]) if (!isFromStorage || name in request) $(name).checked = Boolean(request[name]);
  for (const [name, { write }] of added) if (!isFromStorage || name in request) write(request[name]);
  if (request.negative_prompt) $("negative").open = true;
  if (!isFromStorage) fix(request.seed !== undefined);
  else fix(Boolean(request.isFixed));
  clearErrors();
  changed();
}

export const isFixed = () => $("fix").getAttribute("aria-pressed") === "true";

function fix(on) {
  $("fix").setAttribute("aria-pressed", String(on));
  if (!on && document.activeElement !== $("seed")) $("seed").value = "";
  else if (on && $("seed").value === "") $("seed").value = newSeed();
  changed();
}

const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % MOST_SEED;

function roll() {
  $("seed").value = newSeed();
  fix(true);
}

function stepBy(by) {
  const input = $("batch");
  const most = Number(input.max) || 64;
  input.value = Math.min(most, Math.max(1, (Number(input.value) || 1) + by));
}

/** A slider for the hand and a number for what is exact; the number is the field. */
function pairUp(slide, number) {
  const show = () => {
    slide.value = number.value === "" ? number.placeholder : number.value;
    const share = (slide.value - slide.min) / (slide.max - slide.min);
    slide.style.setProperty("--filled", `${100 * share}%`);
  };
  slide.addEventListener("input", () => ((number.value = slide.value), clearError(number), show()));
  number.addEventListener("input", show);
  form.addEventListener("adapted", show);
  show();
}

function fillModels() {
  const chosen = $("model").value || kept.get("form", {}).model;
  $("model").replaceChildren(...models.list.map((model) => el("option", { value: model.name }, model.name)));
  const named = [chosen, models.default, models.list[0]?.name].find((name) => name && models.get(name));
  if (named) $("model").value = named;
  fillVersions();
  adapt();
  if (!isFilled && models.list.length) {
    isFilled = true;
    write(kept.get("form", {}), { isFromStorage: true });
  }
  $("draw").disabled = !models.list.length;
}

function fillVersions() {
  const model = currentModel();
  const before = $("version").value;
  const current = model?.version ? `current, ${stepOf(model.version).replace("step ", "")}` : "current";
  const older = [...(model?.versions ?? [])].reverse();
  $("version").replaceChildren(
    el("option", { value: "" }, current),
    ...older.map((info) => el("option", { value: info.version }, versionText(info))),
  );
  if (older.some((info) => info.version === before)) $("version").value = before;
}

function versionText(info) {
  const [metric] = Object.entries(info.metrics ?? {});
  return `${stepOf(info.version)}${metric ? `, ${metric[0].replaceAll("_", " ")} ${metric[1].toPrecision(3)}` : ""}`;
}

/** Shows the fields that the chosen model has. */
function adapt() {
  const model = currentModel();
  if (!model) return;
  const takes = model.takes;
  field("prompt").hidden = takes !== "prompt";
  $("negative").hidden = takes !== "prompt";
  field("clip_skip").hidden = takes !== "prompt";
  field("class_label").hidden = takes !== "class_label";
  field("guidance_scale").hidden = takes === "nothing";
  if (takes === "class_label") fillLabels(model);
  const sampler = $("sampler").value;
  $("sampler").replaceChildren(
    el("option", { value: "" }),
    ...model.samplers.map((name) => el("option", { value: name }, SAMPLER_NAMES[name] ?? name)),
  );
  if (model.samplers.includes(sampler)) $("sampler").value = sampler;
  showShipped(model);
  showApplicable(model);
  $("size").hidden = !model.size_multiple;
  $("upscale").hidden = !model.upscale;
  if (model.upscale) {
    $("upscale_steps").placeholder = model.upscale.steps;
    $("upscale_steps").max = Math.min(1000, model.upscale.max_steps);
    $("upscale_noise_level").placeholder = model.upscale.noise_level;
    $("upscale_noise_level").max = model.upscale.max_noise_level;
  }
  field("fast").hidden = !model.fast;
  for (const side of ["width", "height"]) {
    $(side).placeholder = model[side];
    $(side).step = $(side).min = model.size_multiple ?? 1;
  }
  $("steps").max = Math.min(1000, model.num_train_timesteps);
  $("steps-slide").max = Math.min(150, model.num_train_timesteps);
  const note = model.reload_error ? `The newest version can't be served: ${model.reload_error}` : "";
  $("model-note").textContent = note;
  $("model-note").hidden = !note;
  form.dispatchEvent(new CustomEvent("adapted", { detail: model }));
}

/** What the chosen version was published with; a request that names no version is drawn by the current one. */
const shippedWith = (model) => model.versions.find((info) => info.version === ($("version").value || model.version)) ?? { sampler: "ddim" };

/** Shows what a field that is left empty stands for. */
function showShipped(model) {
  const { sampler, steps, guidance_scale } = shippedWith(model);
  $("sampler").options[0].textContent = `${SAMPLER_NAMES[sampler] ?? sampler} (default)`;
  $("steps").placeholder = steps ?? Math.min(STEPS, model.num_train_timesteps);
  $("guidance_scale").placeholder = guidance_scale ?? (model.takes === "prompt" ? PROMPT_GUIDANCE : 1);
}

/** Shows those fields that the chosen sampler, or the guidance, has a use for. */
function showApplicable(model) {
  const sampler = $("sampler").value || shippedWith(model).sampler;
  field("eta").hidden = sampler !== "ddim";
  field("karras").hidden = !KARRAS_SAMPLERS.includes(sampler);
  field("spacing").hidden = sampler === "lcm" || (DPM_SOLVERS.includes(sampler) && walksKarras(model));
  field("refiner_start").hidden = !shippedWith(model).refiner || sampler === "plms";
  const { prompt, prompts, class_label, guidance_scale = Number($("guidance_scale").placeholder) } = read();
  const isUnguided = (prompt ?? prompts ?? class_label) === undefined || [0, 1].includes(guidance_scale);
  for (const name of ["guidance_rescale", "guidance_interval"]) field(name).hidden = isUnguided;
}

/** As asked, else as the version is configured. */
function walksKarras(model) {
  return $("karras").value ? $("karras").value === "true" : Boolean(shippedWith(model).karras);
}

function fillLabels(model) {
  const key = JSON.stringify(model.labels);
  if ($("labels").dataset.key === key) return;
  $("labels").dataset.key = key;
  const all = [["any", ""], ...model.labels.map((label, index) => [label, String(index)])];
  if (model.labels.length > MOST_CHIPS) {
    const options = all.map(([text, value]) => el("option", { value }, text));
    $("labels").replaceChildren(el("select", { name: "class_label", "aria-label": "Label" }, ...options));
    return;
  }
  $("labels").replaceChildren(
    ...all.map(([text, value]) =>
      el("label", {}, el("input", { type: "radio", name: "class_label", value, checked: value === "" }), text),
    ),
  );
}

function changed() {
  const hasLines = isOffered($("prompt")) && $("each-line").checked;
  if (hasLines) $("batch").value = Math.max(1, linesOf($("prompt").value).length);
  $("batch").readOnly = hasLines;
  for (const button of form.querySelectorAll("[data-step]")) button.disabled = hasLines;
  const count = Number($("batch").value) || 1;
  $("draw").textContent = count === 1 ? "Draw" : `Draw ${count} images`;
  const model = currentModel();
  if (model) {
    showShipped(model);
    showApplicable(model);
  }
  form.dispatchEvent(new CustomEvent("adapted", { detail: model }));
  remember();
}

function remember() {
  if (models.list.length) kept.set("form", { ...read(), isFixed: isFixed() });
}

/** Puts each of a problem's errors at its field, the rest above the button; the first field gets the focus. */
export function showProblem(error) {
  clearErrors();
  const rest = [];
  let first;
  for (const { field: name, rule } of error.document?.errors ?? []) {
    // Of one item of a list, "loras.0.scale", or of a field inside another, "condition.prompt".
    const place = field(name.replace(/\.[^.]*$/, "")) ?? field(name.split(".").pop());
    if (!place || place.hidden || place.closest("[hidden]")) {
      rest.push(`${name}: ${rule}`);
      continue;
    }
    const id = `error-${place.dataset.field}`;
    place.append(el("p", { className: "field-error", id }, sentence(rule)));
    for (const input of place.querySelectorAll("input:not([type=range]), select, textarea")) {
      input.setAttribute("aria-invalid", "true");
      input.setAttribute("aria-describedby", id);
    }
    for (let box = place.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    first ??= place.querySelector("input:not([type=range]), select, textarea");
  }
  if (!first && !rest.length) rest.push(error.message);
  if (error.retryAfterS) rest.push(`Try again in ${error.retryAfterS} s.`);
  $("problem").textContent = rest.join(" ");
  $("problem").hidden = !rest.length;
  first?.focus();
}

const sentence = (rule) => rule.charAt(0).toUpperCase() + rule.slice(1);

function clearError(input) {
  const place = input.closest?.("[data-field]");
  place?.querySelector(".field-error")?.remove();
  place?.querySelectorAll("[aria-invalid]").forEach((one) => {
    one.removeAttribute("aria-invalid");
    one.removeAttribute("aria-describedby");
  });
}

export function clearErrors() {
  form.querySelectorAll("[data-field]").forEach(clearError);
  $("problem").hidden = true;
}
