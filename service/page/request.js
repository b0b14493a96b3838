// What a job was asked for, as a request that asks for it again; and in a few words.

/** Fields of a request that a job shows under the same name. */
const FIELDS = [
  "prompt", "prompts", "negative_prompt", "clip_skip", "class_label", "model", "version", "seed", "steps", "batch", "sampler", "eta", "spacing",
  "karras", "guidance_scale", "guidance_rescale", "guidance_interval", "refiner_start", "fast", "width", "height", "init_image", "strength", "mask", "paste_back",
  "upscale_steps", "upscale_noise_level", "loras", "frames", "format",
];
/** Those that can walk Karras' noise levels. */
export const KARRAS_SAMPLERS = ["euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde"];
const HAS_CONDITION = ["prompt", "prompts", "class_label"];

/** The request that draws the same pixels again. */
export function requestOf(job) {
  const request = {};
  for (const field of FIELDS) {
    const value = job[field];
    // Karras' noise levels left out would be those of the version, which may have them.
    const isChosen = field === "karras" && KARRAS_SAMPLERS.includes(job.sampler);
    if (value === null || value === undefined || (value === false && !isChosen) || value === "") continue;
    if (Array.isArray(value) && !value.length) continue;
    if (["eta", "frames", "guidance_rescale", "clip_skip"].includes(field) && value === 0) continue;
    request[field] = value;
  }
  if (!HAS_CONDITION.some((field) => field in request)) delete request.guidance_scale;
  return request;
}

/** The request for one of its images alone. */
export function requestOfImage(job, image) {
  const { frames: _, prompts, ...request } = requestOf(job);
  const own = prompts ? { prompt: prompts[image.index] } : {};
  return { ...request, ...own, seed: image.seed, batch: 1 };
}

export function titleOf(job) {
  if (job.prompt) return job.prompt;
  if (job.prompts) return job.prompts.join(" · ");
  if (job.label) return job.label;
  if (job.class_label !== null && job.class_label !== undefined) return `Label ${job.class_label}`;
  return job.model;
}

export function altOf(job, seed) {
  const what = job.prompt || job.prompts?.[seed - job.seed] || (job.label ? `“${job.label}”` : "an image");
  return `${what}, drawn by ${job.model} with seed ${seed}`;
}
