"use strict";
// The Vision Transformer of vitreous/model/vit.py, forward only, one picture at a time.
//
// Letters in the comments: S image side, P patch side, G tokens along a side, N tokens, D embed_dim, H heads,
// K = D / H width of a head, C channels. Arrays are flat, the last letter varies fastest: [N, D] holds x[n * D + d].

/**
 * A network that answers for pictures.
 * @param model what the page says about it: architecture, imageSize, classes, mean, std, temperature, tensors.
 * @param bytes its weights, as the tensors of `model` describe them.
 * @param simd whether to try WebAssembly; plain JavaScript gives the same answers, more slowly.
 * @returns
 *   probabilities(pixels, cover): from uint8 [S, S, 3] to one number a class. `cover`, if given, hides the pixels of
 *     [top, bottom, left, right] behind the mean colour.
 *   grid: G, and `simd`, whether WebAssembly is in use.
 */
function makeNetwork(model, bytes, simd = true) {
  const a = model.architecture, S = model.imageSize, P = a.patch_size, D = a.embed_dim;
  const conv = a.stem === "conv", classToken = a.pool === "cls" ? 1 : 0;
  const G = conv ? Math.floor((S - 1) / P) : Math.ceil(S / P), N = G * G + classToken;
  const H = a.num_heads, K = D / H, whitened = Math.floor((S - 1) / a.stem_stride);
  const tensors = Object.fromEntries(model.tensors.map((tensor) => [tensor.name, tensor]));
  const widths = conv ? stemWidths() : [];

  // All arrays lie in one memory, which the product in WebAssembly reads and writes. First their lengths are counted.
  const lengths = { zeros: Math.max(N, 3 * D), image: S * S * 3, x: N * D, normed: N * D, qkv: 3 * N * D };
  Object.assign(lengths, { query: N * K, keys: K * N, values: N * K, scores: N * N, head: N * K, mixed: N * D });
  Object.assign(lengths, { hidden: N * a.mlp_dim, pooled: D, headHidden: a.head_hidden, logits: model.classes.length });
  if (conv) {
    const layers = stemConvolutions(), largest = Math.max(...layers.map(([side, , outputs]) => side * side * outputs));
    lengths.columns = Math.max(...layers.map(([side, inputs]) => stripRows(side, inputs) * side * inputs));
    Object.assign(lengths, { before: largest, after: largest, zeros: Math.max(N, 3 * D, ...widths) });
  } else {
    lengths.columns = G * G * 3 * P * P;
  }
  for (const { name, shape } of model.tensors) lengths[name] = shape.reduce((product, side) => product * side, 1);
  const total = Object.values(lengths).reduce((sum, length) => sum + length, 0);
  const memory = simd ? sharedMemory(total) : null;
  const buffer = memory ? memory.buffer : new ArrayBuffer(4 * total), arrays = {};
  let place = 0;
  for (const [name, length] of Object.entries(lengths)) {
    arrays[name] = new Float32Array(buffer, 4 * place, length);
    place += length;
  }
  for (const tensor of model.tensors) readTensor(tensor, bytes, arrays[tensor.name]);
  const fast = memory && simdProduct(memory);

  /** out [rows, outputs] = x [rows, inputs] w [inputs, outputs] + bias [outputs] */
  function product(x, w, bias, out, rows, inputs, outputs) {
    const compute = fast && rows >= ROWS && outputs >= OUTPUTS ? fast : plainProduct;
    compute(x, w, bias, out, rows, inputs, outputs);
  }

  /** A linear layer by its name in the state dict. Its weight was transposed to [inputs, outputs] when it was read. */
  function linear(name, x, out, rows) {
    const [outputs, inputs] = tensors[`${name}.weight`].shape;
    product(x, arrays[`${name}.weight`], arrays[`${name}.bias`] || arrays.zeros, out, rows, inputs, outputs);
  }

  function norm(name, x, out, rows, width) {
    layerNorm(x, out, rows, width, arrays[`${name}.weight`], arrays[`${name}.bias`], a.norm_eps);
  }

  // ---- stems: from the normalised image [S, S, 3] to tokens, behind the class token if there is one

  function linearStem(tokens) {
    const { image, columns } = arrays;
    columns.fill(0); // what is beyond the right and lower edge stays zero
    for (let y = 0; y < S; y++) {
      for (let x = 0; x < S; x++) {
        const patch = Math.floor(y / P) * G + Math.floor(x / P), inside = (y % P) * P + (x % P);
        for (let c = 0; c < 3; c++) columns[(patch * 3 + c) * P * P + inside] = image[(y * S + x) * 3 + c];
      }
    }
    product(columns, arrays["patch_embed.proj.weight"], arrays["patch_embed.proj.bias"], tokens, G * G, 3 * P * P, D);
  }

  function convStem(tokens) {
    let { before, after } = arrays, side = whitened, width = widths[0];
    convolve("patch_embed.whiten", arrays.image, before, S, 3, 2, 0, a.stem_stride);
    gelu(before, side * side * width);
    for (let stage = 0; stage + 1 < widths.length; stage++) {
      const name = `patch_embed.stages.${stage}`;
      convolve(`${name}.conv`, before, after, side, width, 3, 1);
      width = widths[stage + 1];
      maxPool(after, before, side, width);
      side = Math.floor(side / 2);
      norm(`${name}.norm`, before, before, side * side, width);
      gelu(before, side * side * width);
    }
    convolve("patch_embed.mix.conv", before, after, side, width, 3, 1);
    norm("patch_embed.mix.norm", after, after, side * side, width);
    gelu(after, side * side * width);
    add(before, after, side * side * width);
    linear("patch_embed.proj", before, tokens, G * G);
  }

  /**
   * A convolution as products: [side, side, C] to [side', side', outputs], a strip of rows at a time. With a stride it
   * starts stride - 1 pixels from the top left, as the whitening does.
   */
  function convolve(name, x, out, side, channels, kernel, padding, stride = 1) {
    const weight = arrays[`${name}.weight`], outputs = tensors[`${name}.weight`].shape[0], columns = arrays.columns;
    const outSide = Math.floor((side + 2 * padding - kernel + 1) / stride), inputs = kernel * kernel * channels;
    const strip = stripRows(outSide, inputs), rowLength = outSide * outputs;
    for (let top = 0; top < outSide; top += strip) {
      const rows = Math.min(strip, outSide - top);
      for (let y = 0, p = 0; y < rows; y++) {
        for (let left = 0; left < outSide; left++) {
          for (let ky = 0; ky < kernel; ky++) {
            const row = (top + y) * stride + stride - 1 + ky - padding;
            for (let kx = 0; kx < kernel; kx++) {
              const column = left * stride + stride - 1 + kx - padding;
              if (row < 0 || row >= side || column < 0 || column >= side) {
                for (let c = 0; c < channels; c++) columns[p++] = 0;
              } else {
                for (let c = 0, q = (row * side + column) * channels; c < channels; c++) columns[p++] = x[q++];
              }
            }
          }
        }
      }
      const target = out.subarray(top * rowLength, (top + rows) * rowLength);
      product(columns, weight, arrays.zeros, target, rows * outSide, inputs, outputs);
    }
  }

  function stemWidths() {
    const found = [tensors["patch_embed.whiten.weight"].shape[0]];
    for (let stage = 0; tensors[`patch_embed.stages.${stage}.conv.weight`]; stage++) {
      found.push(tensors[`patch_embed.stages.${stage}.conv.weight`].shape[0]);
    }
    return found;
  }

  /** The side of the output, the inputs of one of its values, and its channels, for each convolution of the stem. */
  function stemConvolutions() {
    const found = [[whitened, 2 * 2 * 3, widths[0]]];
    let side = whitened;
    for (let stage = 0; stage + 1 < widths.length; stage++) {
      found.push([side, 9 * widths[stage], widths[stage + 1]]);
      side = Math.floor(side / 2);
    }
    const last = widths[widths.length - 1];
    return [...found, [side, 9 * last, last]];
  }

  /** How many rows of an output are computed at once, so that their inputs stay in the processor's cache. */
  function stripRows(outSide, inputs) {
    return Math.max(1, Math.min(outSide, Math.floor(65536 / (outSide * inputs))));
  }

  // ---- encoder and head

  function embed() {
    const { x } = arrays, tokens = x.subarray(classToken * D);
    if (conv) convStem(tokens);
    else linearStem(tokens);
    if (a.embed_activation === "relu") relu(tokens, G * G * D);
    if (classToken) x.set(arrays.cls_token);
    add(x, arrays.pos_embed, N * D);
  }

  function block(index) {
    const { x, normed, hidden } = arrays, name = `blocks.${index}`;
    norm(`${name}.norm1`, x, normed, N, D);
    attention(`${name}.attn`);
    add(x, normed, N * D);
    norm(`${name}.norm2`, x, normed, N, D);
    linear(`${name}.mlp.fc1`, normed, hidden, N);
    gelu(hidden, N * a.mlp_dim);
    linear(`${name}.mlp.fc2`, hidden, normed, N);
    add(x, normed, N * D);
  }

  /** Multi-head self-attention of `normed`, in place. */
  function attention(name) {
    const { normed, qkv, query, keys, values, scores, head, mixed } = arrays, scale = 1 / Math.sqrt(K);
    linear(`${name}.qkv`, normed, qkv, N);
    for (let h = 0; h < H; h++) {
      gather(qkv, h * K, query);
      gather(qkv, D + h * K, head);
      gather(qkv, 2 * D + h * K, values);
      if (a.qk_norm) {
        norm(`${name}.q_norm`, query, query, N, K);
        norm(`${name}.k_norm`, head, head, N, K);
      }
      for (let i = 0; i < N * K; i++) query[i] *= scale;
      for (let n = 0; n < N; n++) for (let k = 0; k < K; k++) keys[k * N + n] = head[n * K + k];
      product(query, keys, arrays.zeros, scores, N, K, N);
      for (let n = 0; n < N; n++) softmax(scores, n * N, N);
      product(scores, values, arrays.zeros, head, N, N, K);
      for (let n = 0; n < N; n++) for (let k = 0; k < K; k++) mixed[n * D + h * K + k] = head[n * K + k];
    }
    linear(`${name}.proj`, mixed, normed, N);
  }

  /** Copies K columns of [N, 3 D] to [N, K]. */
  function gather(qkv, from, out) {
    for (let n = 0; n < N; n++) for (let k = 0; k < K; k++) out[n * K + k] = qkv[n * 3 * D + from + k];
  }

  /** Tokens to one vector. */
  function pool(x) {
    const { pooled, scores } = arrays;
    if (classToken) {
      pooled.set(x.subarray(0, D));
      return;
    }
    if (a.pool === "attention") {
      plainProduct(x, arrays["attn_pool.weight"], arrays.zeros, scores, N, D, 1);
      softmax(scores, 0, N);
    } else {
      scores.fill(1 / N, 0, N);
    }
    plainProduct(scores, x, arrays.zeros, pooled, 1, N, D);
  }

  function probabilities(pixels, cover = [0, 0, 0, 0]) {
    const { image, x, normed, pooled, headHidden, logits } = arrays, [top, bottom, left, right] = cover;
    for (let i = 0; i < image.length; i++) image[i] = (pixels[i] / 255 - model.mean[i % 3]) / model.std[i % 3];
    for (let y = top; y < bottom; y++) image.fill(0, (y * S + left) * 3, (y * S + right) * 3);
    embed();
    for (let index = 0; index < a.depth; index++) block(index);
    if (a.final_norm) norm("norm", x, normed, N, D);
    pool(a.final_norm ? normed : x);
    if (a.head_hidden) {
      linear("head.0", pooled, headHidden, 1);
      relu(headHidden, a.head_hidden);
      linear("head.2", headHidden, logits, 1);
    } else {
      linear("head", pooled, logits, 1);
    }
    const result = Float64Array.from(logits, (logit) => logit / model.temperature);
    softmax(result, 0, result.length);
    return result;
  }

  return { probabilities, grid: G, simd: Boolean(fast) };
}

/**
 * How much each cell of a picture speaks for a class: the mean drop of its probability when a square of 3 x 3 cells with
 * the cell in it is covered, as attribution.occlusion of vitreous computes it.
 * @param step is awaited before each cell with the number of cells that are done; false stops.
 * @returns map, Float32Array [G, G] of numbers from -1 to 1, and largest, the largest drop by a single square; map is
 *   null if it was stopped.
 */
async function heatMap(network, size, pixels, chosen, step) {
  const G = network.grid, drops = new Float32Array(G * G); // of the square around each cell
  const edge = (i) => Math.floor((2 * Math.min(Math.max(i, 0), G) * size + G) / (2 * G));
  const whole = network.probabilities(pixels)[chosen];
  for (let cell = 0; cell < G * G; cell++) {
    if ((await step(cell)) === false) return { map: null };
    const row = Math.floor(cell / G), column = cell % G;
    const cover = [edge(row - 1), edge(row + 2), edge(column - 1), edge(column + 2)];
    drops[cell] = whole - network.probabilities(pixels, cover)[chosen];
  }
  const map = drops.map((_, cell) => {
    const row = Math.floor(cell / G), column = cell % G;
    let sum = 0, squares = 0;
    for (let r = Math.max(row - 1, 0); r < Math.min(row + 2, G); r++) {
      for (let c = Math.max(column - 1, 0); c < Math.min(column + 2, G); c++, squares++) sum += drops[r * G + c];
    }
    return sum / squares;
  });
  return { map, largest: Math.max(...drops) };
}

function sharedMemory(floats) {
  try {
    return new WebAssembly.Memory({ initial: Math.max(1, Math.ceil((4 * floats) / 65536)) });
  } catch {
    return null;
  }
}

/**
 * Reads a tensor: float32, or a float32 scale for each row and then whole numbers of 16 bits. Weights of products are
 * transposed on the way: a linear layer's [outputs, inputs] to [inputs, outputs], and a convolution's [outputs,
 * channels, row, column] to [row, column, channels, outputs], in which `convolve` gathers pixels.
 */
function readTensor({ name, shape, scaled, at }, bytes, out) {
  const data = new DataView(bytes.buffer, bytes.byteOffset);
  const transposed = name.endsWith(".weight") && shape.length > 1;
  const rows = name === "pos_embed" ? shape[1] : shape[0], width = out.length / rows;
  // The linear stem gathers patches in the weight's own order.
  const area = shape.length === 4 && name !== "patch_embed.proj.weight" ? shape[2] * shape[3] : 1;
  for (let row = 0, i = 0; row < rows; row++) {
    const scale = scaled ? data.getFloat32(at + 4 * row, true) : 1, values = scaled ? at + 4 * rows : at;
    for (let column = 0; column < width; column++, i++) {
      const value = scaled ? data.getInt16(values + 2 * i, true) : data.getFloat32(values + 4 * i, true);
      const place = (column % area) * (width / area) + Math.floor(column / area); // by pixel, then by channel
      out[transposed ? place * rows + row : i] = value * scale;
    }
  }
}

// ---- layers without products

function layerNorm(x, out, rows, width, weight, bias, epsilon) {
  for (let row = 0; row < rows; row++) {
    const start = row * width;
    let mean = 0, variance = 0;
    for (let i = start; i < start + width; i++) mean += x[i];
    mean /= width;
    for (let i = start; i < start + width; i++) variance += (x[i] - mean) * (x[i] - mean);
    const scale = 1 / Math.sqrt(variance / width + epsilon);
    for (let i = 0; i < width; i++) out[start + i] = (x[start + i] - mean) * scale * weight[i] + bias[i];
  }
}

function softmax(x, start, length) {
  let largest = -Infinity, sum = 0;
  for (let i = start; i < start + length; i++) largest = Math.max(largest, x[i]);
  for (let i = start; i < start + length; i++) sum += x[i] = Math.exp(x[i] - largest);
  for (let i = start; i < start + length; i++) x[i] /= sum;
}

function maxPool(x, out, side, channels) {
  const half = Math.floor(side / 2), row = side * channels;
  for (let y = 0, p = 0; y < half; y++) {
    for (let column = 0; column < half; column++) {
      for (let c = 0, q = (2 * y * side + 2 * column) * channels; c < channels; c++, q++) {
        out[p++] = Math.max(x[q], x[q + channels], x[q + row], x[q + row + channels]);
      }
    }
  }
}

function add(x, y, length) {
  for (let i = 0; i < length; i++) x[i] += y[i];
}

function relu(x, length) {
  for (let i = 0; i < length; i++) x[i] = Math.max(x[i], 0);
}

/** x Φ(x) with Φ the normal distribution function, as torch's GELU. */
function gelu(x, length) {
  for (let i = 0; i < length; i++) x[i] *= 0.5 * complementaryError(-x[i] * Math.SQRT1_2);
}

/**
 * erfc(x) = 1 - erf(x), to 3e-9: exp(-x²) times a polynomial in 1 / (1 + 0.45 |x|), fitted to erfc by least squares.
 */
function complementaryError(x) {
  const t = 1 / (1 + 0.45 * Math.abs(x));
  const tail = Math.exp(-x * x) * t * (0.2590978806 + t * (0.2001726019 + t * (0.4628483442 + t * (-0.3803418164 + t * (0.8614673895 + t * (-0.4962627675 + t * 0.09301837071))))));
  return x < 0 ? 2 - tail : tail;
}
