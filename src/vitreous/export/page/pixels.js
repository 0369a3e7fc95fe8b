"use strict";
// From the pixels of a picture to the network's input, bit for bit as vitreous/preprocess.py and Pillow compute it.

const PRECISION = 22; // bits behind the point of a filter's weights

/** The part of a picture that is kept: left, top, right and bottom, as preprocess.cut_off. */
function keptBox(width, height, fit) {
  if (fit !== "crop") return [0, 0, width, height];
  const side = Math.min(width, height), left = Math.floor((width - side) / 2), top = Math.floor((height - side) / 2);
  return [left, top, left + side, top + side];
}

/**
 * Makes the kept part of a picture square: uint8 [S, S, 3].
 * @param rgb its pixels, uint8 [height, width, 3].
 * @param settings size, fit ("crop", "pad" or "stretch"), ground (three numbers, the colour of the bars of `pad`) and
 *   heightFirst, see `resize`.
 */
function fitPixels(rgb, width, height, { size, fit, ground, heightFirst }) {
  let newWidth = size, newHeight = size;
  if (fit === "pad") {
    const longer = Math.max(width, height);
    newWidth = Math.max(1, roundToEven((width * size) / longer));
    newHeight = Math.max(1, roundToEven((height * size) / longer));
  }
  const resized = resize(rgb, width, height, newWidth, newHeight, heightFirst);
  if (newWidth === size && newHeight === size) return resized;
  const square = new Uint8Array(size * size * 3).map((_, i) => ground[i % 3]);
  const offset = (Math.floor((size - newHeight) / 2) * size + Math.floor((size - newWidth) / 2)) * 3;
  for (let y = 0; y < newHeight; y++) {
    square.set(resized.subarray(y * newWidth * 3, (y + 1) * newWidth * 3), offset + y * size * 3);
  }
  return square;
}

/** As Python rounds: a half goes to the even neighbour. */
function roundToEven(value) {
  const below = Math.floor(value);
  if (value - below === 0.5) return below + (below % 2);
  return Math.round(value);
}

/**
 * Resizes uint8 [height, width, 3] by Pillow's bicubic filter with antialiasing, in two passes with bytes between them.
 * A side that stays is not filtered. The second pass rounds the result of the first, so their order shows in the last
 * bit: since version 13, Pillow does the height first where that loses many more pixels than the width.
 */
function resize(rgb, width, height, newWidth, newHeight, heightFirst) {
  const across = () => {
    if (newWidth !== width) rgb = resample(rgb, height, width, newWidth, width * 3, 3, newWidth * 3, 3);
    width = newWidth;
  };
  const down = () => {
    if (newHeight !== height) rgb = resample(rgb, width, height, newHeight, 3, width * 3, 3, width * 3);
    height = newHeight;
  };
  const lost = height - newHeight;
  for (const pass of heightFirst && lost > 0 && lost > 2 * (width - newWidth) ? [down, across] : [across, down]) pass();
  return rgb;
}

/**
 * Filters lines of pixels in one direction.
 * @param lines how many there are, each of `length` pixels, which become `newLength`.
 * @param line, pixel the distances from one line and one pixel to the next, in bytes; newLine, newPixel in the result.
 */
function resample(from, lines, length, newLength, line, pixel, newLine, newPixel) {
  const out = new Uint8ClampedArray(lines * newLength * 3); // clamps to 0 … 255
  const filters = filterWeights(length, newLength), half = 1 << (PRECISION - 1); // so that the shift below rounds
  for (let l = 0; l < lines; l++) {
    for (let position = 0; position < newLength; position++) {
      const { start, weights } = filters[position];
      let p = l * line + start * pixel, red = half, green = half, blue = half;
      for (let i = 0; i < weights.length; i++, p += pixel) {
        red += from[p] * weights[i];
        green += from[p + 1] * weights[i];
        blue += from[p + 2] * weights[i];
      }
      const q = l * newLine + position * newPixel;
      out[q] = red >> PRECISION;
      out[q + 1] = green >> PRECISION;
      out[q + 2] = blue >> PRECISION;
    }
  }
  return new Uint8Array(out.buffer);
}

/** For each new pixel, the first old pixel that it is made of, and the weights of it and its successors. */
function filterWeights(length, newLength) {
  const scale = length / newLength, stretch = Math.max(scale, 1), support = 2 * stretch;
  return Array.from({ length: newLength }, (_, position) => {
    const centre = (position + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(length, Math.trunc(centre + support + 0.5));
    const weights = Array.from({ length: end - start }, (_, i) => bicubic((i + start - centre + 0.5) * (1 / stretch)));
    let sum = 0;
    for (const weight of weights) sum += weight;
    const fixed = weights.map((weight) => (weight / sum) * 2 ** PRECISION);
    return { start, weights: Int32Array.from(fixed, (weight) => Math.trunc(weight + (weight < 0 ? -0.5 : 0.5))) };
  });
}

/** The cubic convolution kernel with a = -0.5. */
function bicubic(x) {
  const a = -0.5, d = Math.abs(x);
  if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
}
