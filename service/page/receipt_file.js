// The receipt that a picture carries: a PNG in a text chunk, a WebP in its EXIF. The pixels are not decoded. Or a
// receipt's own file.

const FORMAT = "reverie-receipt/1";
const PNG_KEYWORD = "reverie";
const IMAGE_DESCRIPTION = 0x010e;
const LARGEST_BYTES = 256 * 2 ** 20;
const LONGEST_TEXT = 2 ** 20;
const MOST_IMAGES = 4096;

/** The file carries no receipt that can be used; the message says why. */
export class NoReceipt extends Error {}

export const isPicture = (file) => !/\.json$/i.test(file.name) && file.type !== "application/json";

/** @returns the receipt's document; throws NoReceipt. */
export async function receiptIn(file) {
  if (file.size > LARGEST_BYTES) throw new NoReceipt(`${file.name} is larger than ${LARGEST_BYTES / 2 ** 20} MiB.`);
  let text;
  try {
    const bytes = await file.arrayBuffer();
    text = isPicture(file) ? await textIn(new DataView(bytes)) : utf8(bounded(new Uint8Array(bytes))).trim();
  } catch {
    // Each read is checked against the end of the file, or of the part that it is in.
    throw new NoReceipt(`${file.name} is no ${isPicture(file) ? "PNG or WebP" : "receipt"} that can be read: it is damaged.`);
  }
  if (text === undefined) throw new NoReceipt(`${file.name} is no PNG, no WebP and no receipt.`);
  const none = new NoReceipt(`${file.name} ${isPicture(file) ? "carries" : "is"} no receipt of Reverie.`);
  if (!text?.startsWith("{")) throw none;
  let receipt;
  try {
    receipt = JSON.parse(text);
  } catch {
    throw new NoReceipt(`The receipt in ${file.name} is damaged.`);
  }
  if (!String(receipt.format).startsWith("reverie-receipt/")) throw none;
  if (receipt.format !== FORMAT) throw new NoReceipt(`The receipt in ${file.name} is of another release: ${String(receipt.format).slice(0, 40)}.`);
  if (!isWhole(receipt)) throw new NoReceipt(`The receipt in ${file.name} is damaged.`);
  return receipt;
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function isWhole({ request, components, computation, images, weights_sha256, plan_sha256 }) {
  return (
    [request, components, computation].every(isObject) &&
    [request.model, weights_sha256, plan_sha256].every((value) => typeof value === "string") &&
    ["string", "undefined"].includes(typeof request.version) &&
    Array.isArray(images) && images.length > 0 && images.length <= MOST_IMAGES &&
    images.every((image) => isObject(image) && Number.isInteger(image.index) && /^[0-9a-f]{64}$/.test(image.sha256))
  );
}

/** undefined: it is no picture of these kinds. null: it says nothing. */
async function textIn(view) {
  if (view.byteLength < 12) return undefined;
  if (view.getUint32(0) === 0x89504e47 && view.getUint32(4) === 0x0d0a1a0a) return pngText(view);
  if (latin1(part(view, 0, 4)) === "RIFF" && latin1(part(view, 8, 4)) === "WEBP") return webpText(view);
  return undefined;
}

/** PNG, 3rd edition, 11.3.3: tEXt, zTXt and iTXt. */
async function pngText(view) {
  for (let at = 8; ; ) {
    const length = view.getUint32(at);
    const type = latin1(part(view, at + 4, 4));
    const body = part(view, at + 8, length);
    const [keyword, rest] = cut(body);
    if (["tEXt", "zTXt", "iTXt"].includes(type) && latin1(keyword) === PNG_KEYWORD) {
      if (crc32(part(view, at + 4, 4 + length)) !== view.getUint32(at + 8 + length)) throw new RangeError("checksum");
      if (type === "tEXt") return latin1(bounded(rest));
      if (type === "zTXt") return latin1(await inflated(rest.subarray(1)));
      const [, text] = cut(cut(rest.subarray(2))[1]); // after the language and the keyword's translation
      return utf8(rest[0] ? await inflated(text) : bounded(text));
    }
    if (type === "IEND") return null;
    at += 12 + length;
  }
}

/** WebP container specification: chunks of a RIFF file, padded to an even length. */
function webpText(view) {
  const end = 8 + view.getUint32(4, true);
  for (let at = 12; at < end; ) {
    const length = view.getUint32(at + 4, true);
    if (latin1(part(view, at, 4)) === "EXIF") return imageDescription(part(view, at + 8, length));
    at += 8 + length + (length % 2);
  }
  return null;
}

/** TIFF 6.0: the first directory's ImageDescription. */
function imageDescription(exif) {
  const start = latin1(exif.subarray(0, 6)) === "Exif\0\0" ? 6 : 0; // JPEG's marker, which some tools leave there
  const view = new DataView(exif.buffer, exif.byteOffset + start, exif.byteLength - start);
  const isLittle = { II: true, MM: false }[latin1(part(view, 0, 2))];
  if (isLittle === undefined) throw new RangeError("byte order");
  const directory = view.getUint32(4, isLittle);
  const count = view.getUint16(directory, isLittle);
  for (let entry = directory + 2; entry < directory + 2 + 12 * count; entry += 12) {
    if (view.getUint16(entry, isLittle) !== IMAGE_DESCRIPTION) continue;
    const length = view.getUint32(entry + 4, isLittle);
    const text = part(view, length > 4 ? view.getUint32(entry + 8, isLittle) : entry + 8, length);
    return latin1(bounded(cut(text)[0]));
  }
  return null;
}

/** Throws RangeError where the file is shorter than that. */
const part = (view, at, length) => {
  if (at + length > view.byteLength) throw new RangeError("the end");
  return new Uint8Array(view.buffer, view.byteOffset + at, length);
};

/** What stands before the first zero byte, and after it. */
function cut(bytes) {
  const at = bytes.indexOf(0);
  return at < 0 ? [bytes, new Uint8Array()] : [bytes.subarray(0, at), bytes.subarray(at + 1)];
}

function bounded(bytes) {
  if (bytes.length > LONGEST_TEXT) throw new RangeError("too long");
  return bytes;
}

const utf8 = (bytes) => new TextDecoder("utf-8", { fatal: true }).decode(bytes);
const latin1 = (bytes) => new TextDecoder("latin1").decode(bytes);

/** zlib, to no more than the longest text. */
async function inflated(bytes) {
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const text = new Uint8Array(LONGEST_TEXT);
  for (let size = 0; ; ) {
    const { value, done } = await reader.read();
    if (done) return text.subarray(0, size);
    text.set(value, size); // RangeError where it does not fit
    size += value.length;
  }
}

/** PNG, 3rd edition, annex D. */
function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return (crc ^ 0xffffffff) >>> 0;
}
