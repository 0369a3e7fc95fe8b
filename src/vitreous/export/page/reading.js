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
  const [head, tail] = await Promise.all([bytesOf(blob.slice(0, 64)), bytesOf(blob.slice(-64))]);
  const kind = kindOf(head);
  if (!kind) throw new Unusable("This is not a picture, or a kind of picture that browsers do not know.");
  if (isCutShort(kind, head, tail, blob.size)) throw new Unusable(`The file is incomplete: its end as ${kind} is missing.`);
  if (settings.valueRange && kind === "PNG" && head[24] === 16) {
    throw new Unusable(
      "This picture has 16 bits a channel. The model reads such pictures on a scale of its own, but a browser does not " +
        "give their values; use vitreous predict.",
    );
  }
  const bitmap = await decode(blob, kind, settings.profiles);
  const box = keptBox(bitmap.width, bitmap.height, settings.fit);
  const rgb = readBox(bitmap, box, settings.ground);
  return { pixels: fitPixels(rgb, box[2] - box[0], box[3] - box[1], settings), bitmap };
}

async function bytesOf(blob) {
  return new Uint8Array(await blob.arrayBuffer());
}

/** The format by the first bytes; "" for what is no picture. */
function kindOf(head) {
  const text = String.fromCharCode(...head.subarray(0, 32));
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
function isCutShort(kind, head, tail, size) {
  const text = String.fromCharCode(...tail), length = new DataView(head.buffer);
  if (kind === "PNG") return !text.includes("IEND");
  if (kind === "JPEG") return !text.includes("\xff\xd9");
  if (kind === "GIF") return !/;\0*$/.test(text);
  if (kind === "WebP") return size < 8 + length.getUint32(4, true);
  if (kind === "BMP") return size < length.getUint32(2, true);
  return false;
}

/** The upright picture as an ImageBitmap. Its size is checked before its pixels are decoded. */
async function decode(blob, kind, profiles) {
  const unreadable = () => new Unusable(`This browser cannot read the file as ${kind}. Save it as PNG or JPEG, or repair it.`);
  const image = new Image(), url = URL.createObjectURL(blob);
  try {
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = () => reject(unreadable());
      image.src = url;
    });
  } finally {
    URL.revokeObjectURL(url);
  }
  if (image.naturalWidth * image.naturalHeight > LARGEST_PIXELS) {
    throw new Unusable(`The picture has ${image.naturalWidth} × ${image.naturalHeight} pixels, more than 64 million.`);
  }
  try {
    return await createImageBitmap(blob, {
      imageOrientation: "from-image",
      colorSpaceConversion: profiles === "ignored" ? "none" : "default",
    });
  } catch {
    throw unreadable();
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
