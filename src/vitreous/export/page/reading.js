"use strict";
// From a picture file to the network's input: the browser decodes, and the rest is computed as the model's own way does.

const LARGEST_PIXELS = 64e6, LARGEST_BYTES = 256 * 2 ** 20; // as data/decode.py
const STRIP_PIXELS = 2 ** 22; // read from a canvas at once; some browsers refuse large canvases

/** A reason why a picture cannot be used, as a sentence for people. */
class Unusable extends Error {}

/**
 * Reads a picture.
 * @param blob a File or Blob with the bytes of its file.
 * @param settings see `fitPixels`; also profiles ("applied" or "ignored") and valueRange (null or two numbers).
 * @returns pixels, uint8 [S, S, 3]; and bitmap, the upright picture, which the caller closes.
 */
async function readPicture(blob, settings) {
  if (blob.size === 0) throw new Unusable("The file is empty.");
  if (blob.size > LARGEST_BYTES) throw new Unusable("The file has more than 256 MiB.");
  const bytes = new Uint8Array(await blob.arrayBuffer()), kind = kindOf(bytes);
  if (!kind) throw new Unusable("This is not a picture, or a kind of picture that browsers do not know.");
  if (isCutShort(kind, bytes)) throw new Unusable(`The file is incomplete: its end as ${kind} is missing.`);
  if (settings.valueRange && kind === "PNG" && bytes[24] === 16) {
    throw new Unusable(
      "This picture has 16 bits a channel. The model reads such pictures on a scale of its own, but a browser does not " +
        "give their values; use vitreous predict.",
    );
  }
  const { turn, parts } = kind === "PNG" || kind === "WebP" ? withoutOrientation(bytes, kind) : { turn: 1, parts: [bytes] };
  const [width, height] = kind === "PNG" ? sizeOfPng(bytes) : await sizeOf(blob, kind);
  if (width * height > LARGEST_PIXELS) {
    throw new Unusable(`The picture has ${width} × ${height} pixels, more than 64 million.`);
  }
  const bitmap = await turned(await decode(new Blob(parts), kind, settings.profiles), turn);
  const box = keptBox(bitmap.width, bitmap.height, settings.fit);
  const rgb = readBox(bitmap, box, settings.ground);
  return { pixels: fitPixels(rgb, box[2] - box[0], box[3] - box[1], settings), bitmap };
}

/** The format by the first bytes; "" for what is no picture. */
function kindOf(bytes) {
  const text = String.fromCharCode(...bytes.subarray(0, 32));
  if (text.startsWith("\x89PNG\r\n\x1a\n")) return "PNG";
  if (text.startsWith("\xff\xd8\xff")) return "JPEG";
  if (text.startsWith("RIFF") && text.slice(8, 12) === "WEBP") return "WebP";
  if (text.startsWith("GIF8")) return "GIF";
  if (text.startsWith("BM")) return "BMP";
  if (text.slice(4, 8) === "ftyp") return /avi[fs]/.test(text) ? "AVIF" : "HEIC";
  if (/^(II\*\0|MM\0\*|II\+\0|MM\0\+)/.test(text)) return "TIFF";
  if (text.startsWith("\0\0\0\x0cjP  ") || text.startsWith("\xff\x4f\xff\x51")) return "JPEG 2000";
  if (/^P([1-6f]\s|F\n)/.test(text)) return "PPM";
  return "";
}

/** Whether the mark is missing that ends a complete file. Browsers would show the part that there is. */
function isCutShort(kind, bytes) {
  const text = String.fromCharCode(...bytes.subarray(-64)), view = new DataView(bytes.buffer), size = bytes.length;
  if (kind === "PNG") return !text.includes("IEND");
  if (kind === "JPEG") return !hasJpegEnd(bytes);
  if (kind === "GIF") return !/;\0*$/.test(text);
  if (kind === "WebP") return size < 8 + view.getUint32(4, true);
  if (kind === "BMP") return size < view.getUint32(2, true);
  return false;
}

/** Whether a JPEG's end follows its last scan; cameras append data to it, and a preview in front has an end too. */
function hasJpegEnd(bytes) {
  for (let i = bytes.length - 2, ended = false; i >= 0; i--) {
    if (bytes[i] !== 0xff) continue;
    if (bytes[i + 1] === 0xd9) ended = true;
    if (bytes[i + 1] === 0xda) return ended;
  }
  return false;
}

/**
 * The parts of a PNG or WebP file without its EXIF data, and the orientation that they state, from 1 (upright) to 8.
 * Browsers turn JPEG files by it, but they do not agree about these.
 */
function withoutOrientation(bytes, kind) {
  const view = new DataView(bytes.buffer), png = kind === "PNG";
  for (let at = png ? 8 : 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(png ? at : at + 4, !png);
    const name = String.fromCharCode(...bytes.subarray(png ? at + 4 : at, png ? at + 8 : at + 4));
    const end = at + 8 + length + (png ? 4 : length % 2); // a checksum, or padding to an even length
    if (name === "eXIf" || name === "EXIF") {
      const turn = orientationOf(bytes.slice(at + 8, at + 8 + length));
      if (png) return { turn, parts: [bytes.subarray(0, at), bytes.subarray(end)] };
      bytes[at] = "X".charCodeAt(0); // readers of WebP pass over chunks that they do not know
      return { turn, parts: [bytes] };
    }
    at = end;
  }
  return { turn: 1, parts: [bytes] };
}

/** The orientation in EXIF data; 1 where they are damaged. */
function orientationOf(exif) {
  const start = String.fromCharCode(...exif.subarray(0, 4)) === "Exif" ? 6 : 0, view = new DataView(exif.buffer);
  try {
    const little = view.getUint16(start) === 0x4949, table = start + view.getUint32(start + 4, little);
    for (let i = 0; i < view.getUint16(table, little); i++) {
      const entry = table + 2 + 12 * i, value = view.getUint16(entry + 8, little);
      if (view.getUint16(entry, little) === 0x0112) return value >= 1 && value <= 8 ? value : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return 1;
}

/** A picture turned upright from its EXIF orientation. */
async function turned(bitmap, turn) {
  const { width: w, height: h } = bitmap;
  const matrix = [
    null, null, [-1, 0, 0, 1, w, 0], [-1, 0, 0, -1, w, h], [1, 0, 0, -1, 0, h],
    [0, 1, 1, 0, 0, 0], [0, 1, -1, 0, h, 0], [0, -1, -1, 0, h, w], [0, -1, 1, 0, 0, w],
  ][turn];
  if (!matrix) return bitmap;
  const canvas = turn > 4 ? new OffscreenCanvas(h, w) : new OffscreenCanvas(w, h);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new Unusable("The picture is too large for this browser.");
  context.imageSmoothingEnabled = false;
  context.setTransform(...matrix);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return createImageBitmap(canvas);
}

/** Width and height by the header alone, so that a huge picture is never decoded. */
function sizeOfPng(bytes) {
  const view = new DataView(bytes.buffer);
  return [view.getUint32(16), view.getUint32(20)];
}

/** The same for other formats, by an image element, which decodes no pixels until it is drawn. */
async function sizeOf(blob, kind) {
  const image = new Image(), url = URL.createObjectURL(blob);
  try {
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = () => reject(unreadable(kind));
      image.src = url;
    });
  } finally {
    URL.revokeObjectURL(url);
  }
  return [image.naturalWidth, image.naturalHeight];
}

function unreadable(kind) {
  return new Unusable(`This browser cannot read the file as ${kind}. Save it as PNG or JPEG, or repair it.`);
}

/** The picture as an ImageBitmap, upright if it is a JPEG. */
async function decode(blob, kind, profiles) {
  try {
    return await createImageBitmap(blob, {
      imageOrientation: "from-image",
      colorSpaceConversion: profiles === "ignored" ? "none" : "default",
    });
  } catch {
    throw unreadable(kind);
  }
}

/** The colours of a part of a picture on the ground that shows through it: uint8 [height, width, 3]. */
function readBox(bitmap, [left, top, right, bottom], ground) {
  const width = right - left, rows = Math.max(1, Math.min(bottom - top, Math.floor(STRIP_PIXELS / width)));
  const canvas = new OffscreenCanvas(width, rows), context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new Unusable("The picture is too large for this browser.");
  const rgb = new Uint8Array(width * (bottom - top) * 3);
  for (let y = top, p = 0; y < bottom; y += rows) {
    const height = Math.min(rows, bottom - y);
    context.fillStyle = `rgb(${ground.join(" ")})`;
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, left, y, width, height, 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    for (let q = 0; q < data.length; q += 4) {
      rgb[p++] = data[q];
      rgb[p++] = data[q + 1];
      rgb[p++] = data[q + 2];
    }
  }
  return rgb;
}
