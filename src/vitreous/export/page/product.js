"use strict";
// The matrix product, in which nearly all of the time goes: in JavaScript, and in WebAssembly with SIMD.
//
// Both compute out[r, o] = bias[o] + sum over i of x[r, i] * w[i, o] in blocks of rows and outputs. The last block of
// a row or column overlaps the one before, so that any size works without padding.

const ROWS = 4; // of a block
const OUTPUTS = 8;

/** The product in plain JavaScript: x [rows, inputs], w [inputs, outputs], bias [outputs], out [rows, outputs]. */
function plainProduct(x, w, bias, out, rows, inputs, outputs) {
  for (let r = 0; r < rows; r += 2) {
    const first = r * inputs, second = Math.min(r + 1, rows - 1) * inputs;
    for (let o = 0; o < outputs; o += 4) {
      // Outputs past the last one repeat it.
      const o1 = Math.min(o + 1, outputs - 1), o2 = Math.min(o + 2, outputs - 1), o3 = Math.min(o + 3, outputs - 1);
      let a0 = bias[o], a1 = bias[o1], a2 = bias[o2], a3 = bias[o3];
      let b0 = a0, b1 = a1, b2 = a2, b3 = a3;
      const d1 = o1 - o, d2 = o2 - o, d3 = o3 - o;
      for (let i = 0, p = o; i < inputs; i++, p += outputs) {
        const u = x[first + i], v = x[second + i];
        const w0 = w[p], w1 = w[p + d1], w2 = w[p + d2], w3 = w[p + d3];
        a0 += u * w0; a1 += u * w1; a2 += u * w2; a3 += u * w3;
        b0 += v * w0; b1 += v * w1; b2 += v * w2; b3 += v * w3;
      }
      const p = r * outputs, q = Math.min(r + 1, rows - 1) * outputs;
      out[p + o] = a0; out[p + o1] = a1; out[p + o2] = a2; out[p + o3] = a3;
      out[q + o] = b0; out[q + o1] = b1; out[q + o2] = b2; out[q + o3] = b3;
    }
  }
}

/**
 * A product in WebAssembly over arrays that lie in `memory`, or null where the browser has no SIMD.
 * It takes at least ROWS rows and OUTPUTS outputs.
 */
function simdProduct(memory) {
  try {
    const module = new WebAssembly.Module(productModule());
    const { product } = new WebAssembly.Instance(module, { page: { memory } }).exports;
    return (x, w, bias, out, rows, inputs, outputs) =>
      product(x.byteOffset, w.byteOffset, bias.byteOffset, out.byteOffset, rows, inputs, outputs);
  } catch {
    return null;
  }
}

/** The bytes of a WebAssembly module with one function, `product`, assembled here instruction by instruction. */
function productModule() {
  // Instructions, by their codes in the specification of WebAssembly.
  const get = (local) => [0x20, local], set = (local) => [0x21, local], i32 = (value) => [0x41, ...signed(value)];
  const ADD = [0x6a], SUB = [0x6b], MUL = [0x6c], LESS = [0x48], SHIFT_LEFT = [0x74], SELECT = [0x1b];
  const loop = (...body) => [0x03, 0x40, ...body.flat(), 0x0b], againIf = [0x0d, 0];
  const simd = (code, ...rest) => [0xfd, ...unsigned(code), ...rest];
  const load = (offset) => simd(0, 2, ...unsigned(offset)), store = (offset) => simd(11, 2, ...unsigned(offset));
  const loadSplat = simd(9, 2, 0), vectorAdd = simd(228), vectorMul = simd(230);
  const plus = (local, value) => [...get(local), ...value, ...ADD, ...set(local)];
  const smaller = (a, b, spare) => [...a, ...set(spare), ...get(spare), ...b, ...get(spare), ...b, ...LESS, ...SELECT];

  const names = [
    "x", "w", "bias", "out", "rows", "inputs", "outputs", // the arguments; addresses are in bytes
    "row", "output", "left", "place", "weights", "inputBytes", "outputBytes", "spare", "result",
    "skip1", "skip2", "skip3", // bytes from the first row of a block to the others
  ];
  const at = Object.fromEntries(names.map((name, index) => [name, index]));
  const sum = (r, half) => names.length + 2 * r + half; // vectors of four sums
  const weight = (half) => names.length + 2 * ROWS + half, value = weight(1) + 1;
  const each = (count, make) => Array.from({ length: count }, (_, index) => make(index)).flat();

  const addresses = [
    // row and output of this block; the last block ends with the last row or output.
    ...smaller(get(at.row), [...get(at.rows), ...i32(ROWS), ...SUB], at.spare), ...get(at.inputBytes), ...MUL,
    ...get(at.x), ...ADD, ...set(at.place),
    ...smaller(get(at.output), [...get(at.outputs), ...i32(OUTPUTS), ...SUB], at.spare), ...i32(2), ...SHIFT_LEFT,
    ...set(at.result), ...get(at.result), ...get(at.w), ...ADD, ...set(at.weights),
    ...each(ROWS, (r) => each(2, (half) => [...get(at.result), ...get(at.bias), ...ADD, ...load(16 * half), ...set(sum(r, half))])),
    ...smaller(get(at.row), [...get(at.rows), ...i32(ROWS), ...SUB], at.spare), ...get(at.outputBytes), ...MUL,
    ...get(at.result), ...ADD, ...get(at.out), ...ADD, ...set(at.result),
  ];
  const multiply = loop(
    each(2, (half) => [...get(at.weights), ...load(16 * half), ...set(weight(half))]),
    each(ROWS, (r) => [
      ...get(at.place), ...(r ? [...get(at[`skip${r}`]), ...ADD] : []), ...loadSplat, ...set(value),
      ...each(2, (half) => [
        ...get(sum(r, half)), ...get(value), ...get(weight(half)), ...vectorMul, ...vectorAdd, ...set(sum(r, half)),
      ]),
    ]),
    plus(at.place, i32(4)),
    plus(at.weights, get(at.outputBytes)),
    [...get(at.left), ...i32(1), ...SUB, ...set(at.left), ...get(at.left)], againIf,
  );
  const write = each(ROWS, (r) => [
    ...each(2, (half) => [...get(at.result), ...get(sum(r, half)), ...store(16 * half)]),
    ...plus(at.result, get(at.outputBytes)),
  ]);
  const body = [
    ...get(at.inputs), ...i32(2), ...SHIFT_LEFT, ...set(at.inputBytes),
    ...each(ROWS, (r) => (r ? [...get(at.inputBytes), ...i32(r), ...MUL, ...set(at[`skip${r}`])] : [])),
    ...get(at.outputs), ...i32(2), ...SHIFT_LEFT, ...set(at.outputBytes),
    ...loop(
      [...i32(0), ...set(at.output)],
      loop(
        addresses,
        [...get(at.inputs), ...set(at.left)], multiply,
        write,
        plus(at.output, i32(OUTPUTS)),
        [...get(at.output), ...get(at.outputs), ...LESS], againIf,
      ),
      plus(at.row, i32(ROWS)),
      [...get(at.row), ...get(at.rows), ...LESS], againIf,
    ),
    0x0b,
  ];

  const I32 = 0x7f, V128 = 0x7b, parameters = 7;
  const text = (word) => [word.length, ...[...word].map((letter) => letter.charCodeAt(0))];
  const section = (code, content) => [code, ...unsigned(content.length), ...content];
  const locals = [2, names.length - parameters, I32, value + 1 - names.length, V128];
  const code = [...locals, ...body];
  return new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, [1, 0x60, parameters, ...Array(parameters).fill(I32), 0]), // the function's type
    ...section(2, [1, ...text("page"), ...text("memory"), 2, 0, 1]), // imports a memory of at least one page
    ...section(3, [1, 0]), // one function of that type
    ...section(7, [1, ...text("product"), 0, 0]), // exported
    ...section(10, [1, ...unsigned(code.length), ...code]),
  ]);
}

/** A whole number in the variable-length code of WebAssembly. */
function unsigned(value) {
  const bytes = [];
  for (; value > 127; value >>>= 7) bytes.push((value & 127) | 128);
  return [...bytes, value];
}

/** The same for constants, whose highest bit is the sign; not negative here. */
function signed(value) {
  const bytes = [];
  for (; value > 63; value >>= 7) bytes.push((value & 127) | 128);
  return [...bytes, value];
}
