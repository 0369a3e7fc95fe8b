"use strict";
// The page itself. Names of classes and files come from strangers: they are only ever set as text.

const data = JSON.parse(document.getElementById("data").textContent);
const classes = data.model.classes;
const element = (id) => document.getElementById(id);
const MOST_ROWS = 500; // shown; the CSV has all
const MOST_BARS = 5;
const SHOWN_SIDE = 640; // pixels of a shown picture
const FAINT = 0.05; // a map whose strongest part changes the probability by less is drawn fainter
const TINY = 128; // pictures of fewer pixels are enlarged without smoothing

// ---- the network, in a Web Worker where there are any

/** Starts the network. Its `ask` takes a message for `work` and promises the answer; `place` says where it runs. */
async function startNetwork() {
  const load = { task: "load", model: data.model, bytes: fromBase64(element("weights").textContent), simd: true };
  try {
    const ask = await askWorker();
    const { simd } = await ask(load);
    return { ask, simd, place: "worker" };
  } catch {
    const ask = (message, progress = () => {}) =>
      new Promise((resolve, reject) => {
        work(message, (answer) => ("done" in answer ? progress(answer.done) : resolve(answer))).catch(reject);
      });
    const { simd } = await ask(load);
    return { ask, simd, place: "page" };
  }
}

function askWorker() {
  const script = new Blob([element("network").textContent], { type: "text/javascript" });
  const worker = new Worker(URL.createObjectURL(script)), waiting = new Map();
  let last = 0;
  worker.onmessage = ({ data: answer }) => {
    const { resolve, reject, progress } = waiting.get(answer.id);
    if ("done" in answer) return progress(answer.done);
    waiting.delete(answer.id);
    if ("problem" in answer) reject(new Error(answer.problem));
    else resolve(answer);
  };
  worker.onerror = () => {
    for (const { reject } of waiting.values()) reject(new Error("The worker could not run."));
    waiting.clear();
  };
  return (message, progress = () => {}) =>
    new Promise((resolve, reject) => {
      waiting.set(++last, { resolve, reject, progress });
      worker.postMessage({ id: last, ...message });
    });
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

const starting = startNetwork();

/** Reads and classifies a picture file: { probabilities, pixels, bitmap }; throws `Unusable` with a sentence. */
async function classify(blob) {
  const network = await starting;
  const { pixels, bitmap } = await readPicture(blob, data.settings);
  try {
    const { probabilities } = await network.ask({ task: "predict", pixels });
    return { probabilities, pixels, bitmap };
  } catch (error) {
    bitmap.close();
    throw error;
  }
}

// ---- the check on opening

/** Classifies the pictures in the page whose answers are known, and says whether this device gives the same. */
async function check() {
  let agree = 0, largest = 0, problem = "";
  const started = performance.now();
  try {
    for (const { image, probabilities: expected } of data.checks) {
      const answer = await classify(new Blob([fromBase64(image)], { type: "image/png" }));
      answer.bitmap.close();
      const apart = Math.max(...expected.map((value, i) => Math.abs(value - answer.probabilities[i])));
      if (apart <= data.bound) agree++;
      largest = Math.max(largest, Number.isNaN(apart) ? 1 : apart);
    }
  } catch (error) {
    problem = ` (${error.message})`;
  }
  const milliseconds = (performance.now() - started) / data.checks.length;
  const { simd, place } = await starting.catch(() => ({}));
  const passed = agree === data.checks.length, where = element("check");
  where.className = `check ${passed ? "passed" : "failed"}`;
  where.setAttribute("role", passed ? "status" : "alert");
  where.textContent = passed
    ? `Checked on this device: ${agree} of ${agree} answers agree, largest difference ${largest.toPrecision(1)}; ` +
      `${Math.max(1, Math.round(milliseconds))} ms a picture` +
      (place === "page" ? ". No Web Worker is available, so the page may pause while it computes." : ".")
    : `Do not trust this page on this device: only ${agree} of ${data.checks.length} answers agree with the model, ` +
      `largest difference ${largest.toPrecision(1)}${problem}. Try another browser.`;
  return { passed, agree, largest, milliseconds, simd, place, text: where.textContent };
}

// ---- one picture

let shown = null; // { probabilities, pixels, name, truth }

function show(answer, name, truth) {
  shown = { probabilities: answer.probabilities, pixels: answer.pixels, name, truth };
  drawPicture(answer.bitmap);
  element("picture").setAttribute("aria-label", `The picture ${name}`);
  element("name").textContent = name;
  element("result").hidden = false;
  hideMap();
  tell();
}

/** Writes the answer for the shown picture, by the threshold of now. */
function tell() {
  if (!shown) return;
  const order = ranking(shown.probabilities), best = order[0], sure = isSure(shown.probabilities[best]);
  const answer = element("answer");
  answer.classList.toggle("unsure", !sure);
  const share = percent(shown.probabilities[best]);
  answer.textContent = sure ? `${classes[best]}, ${share}` : `Not sure: perhaps ${classes[best]}, ${share}`;
  const truth = element("truth");
  truth.textContent = "";
  if (shown.truth !== undefined) {
    truth.textContent =
      shown.truth === best ? "Right: the data says the same." : `Wrong: the data says ${classes[shown.truth]}.`;
  }
  element("bars").replaceChildren(
    ...order.slice(0, MOST_BARS).map((index) => {
      const item = make("li"), name = make("bdi", classes[index]), bar = make("span"), value = make("span");
      name.title = classes[index];
      bar.className = "bar";
      bar.style.setProperty("--share", shown.probabilities[index].toFixed(4));
      value.className = "num";
      value.textContent = percent(shown.probabilities[index]);
      item.append(name, bar, value);
      return item;
    }),
  );
}

function drawPicture(bitmap) {
  const canvas = element("picture"), { width, height } = bitmap, scale = Math.min(1, SHOWN_SIDE / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.classList.toggle("tiny", Math.max(width, height) <= TINY);
  const context = canvas.getContext("2d");
  context.fillStyle = `rgb(${data.settings.ground.join(" ")})`;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const [left, top, right, bottom] = keptBox(width, height, data.settings.fit).map((edge) => edge * scale);
  context.fillStyle = "rgb(0 0 0 / 0.55)"; // over what the model does not see
  context.fillRect(0, 0, left, canvas.height);
  context.fillRect(right, 0, canvas.width - right, canvas.height);
  context.fillRect(left, 0, right - left, top);
  context.fillRect(left, bottom, right - left, canvas.height - bottom);
  const size = data.settings.size, seen = element("seen");
  if (data.settings.fit === "crop" && width !== height) {
    seen.textContent = `The model sees the bright square, at ${size} × ${size} pixels.`;
  } else {
    seen.textContent = `The model sees it at ${size} × ${size} pixels.`;
  }
}

async function toggleMap() {
  if (element("map").getAttribute("aria-pressed") === "true") return hideMap();
  const { probabilities, pixels } = shown, chosen = ranking(probabilities)[0], explained = element("explained");
  const current = shown, network = await starting;
  element("map").setAttribute("aria-pressed", "true");
  element("map").textContent = "Hide what mattered";
  explained.textContent = "Covering one part after another …";
  const { map, largest } = await network.ask(
    { task: "heat", pixels, chosen, size: data.settings.size },
    (done) => (explained.textContent = `Covering one part after another … ${percent(done)}`),
  );
  if (!map || shown !== current || element("map").getAttribute("aria-pressed") !== "true") return;
  drawMap(map);
  const before = probabilities[chosen];
  explained.textContent =
    largest > 0.005
      ? `Orange parts speak for “${classes[chosen]}”, blue parts against it. With the strongest part covered, its ` +
        `probability falls from ${percent(before)} to ${percent(Math.max(0, before - largest))}.`
      : `No single part decides: whatever is covered, “${classes[chosen]}” loses less than 1 %.`;
  element("heat").setAttribute("aria-label", explained.textContent);
}

/** Draws the map over the part of the picture that it is about, smoothed. */
function drawMap(map) {
  const heat = element("heat"), picture = element("picture"), side = Math.sqrt(map.length);
  const largest = Math.max(FAINT, ...map.map(Math.abs));
  const small = new OffscreenCanvas(side, side), colours = new ImageData(side, side);
  map.forEach((value, i) => {
    const colour = value > 0 ? [255, 112, 20] : [40, 110, 255], strength = Math.abs(value) / largest;
    colours.data.set([...colour, 200 * strength], 4 * i);
  });
  small.getContext("2d").putImageData(colours, 0, 0);
  heat.width = picture.width;
  heat.height = picture.height;
  const { width, height } = picture, context = heat.getContext("2d");
  context.imageSmoothingQuality = "high";
  if (data.settings.fit === "stretch") {
    context.drawImage(small, 0, 0, width, height);
  } else {
    const square = data.settings.fit === "crop" ? Math.min(width, height) : Math.max(width, height);
    context.drawImage(small, (width - square) / 2, (height - square) / 2, square, square);
  }
  heat.hidden = false;
}

function hideMap() {
  element("heat").hidden = true;
  element("map").setAttribute("aria-pressed", "false");
  element("map").textContent = "Show what mattered";
  element("explained").textContent = "";
  starting.then((network) => network.ask({ task: "stop" }));
}

// ---- several pictures

let table = []; // { name, blob, probabilities, problem }
let expected = 0; // pictures that were chosen for the table
let busy = 0; // number of the work at hand; another number stops it

/** Begins other work; a table that is being made ends where it is, and says so. */
function begin() {
  busy++;
  if (!element("stop").hidden) finishTable();
  return busy;
}

/** Classifies files one after the other: one is shown, several become a table. */
async function take(blobs) {
  if (!blobs.length) return;
  const mine = begin(), several = blobs.length > 1;
  complain("");
  if (several) {
    expected = table.length + blobs.length;
    element("many").hidden = false;
    element("stop").hidden = false;
  }
  const first = table.length;
  for (const [index, blob] of blobs.entries()) {
    const row = { name: blob.name || "picture", blob, probabilities: null, problem: "" };
    try {
      const answer = await classify(blob);
      if (mine !== busy) return answer.bitmap.close();
      row.probabilities = answer.probabilities;
      if (!several) show(answer, row.name);
      answer.bitmap.close();
    } catch (error) {
      if (mine !== busy) return;
      row.problem = error instanceof Unusable ? error.message : `It could not be used (${error.message}).`;
      if (!several) complain(`${row.name}: ${row.problem}`);
    }
    if (several) {
      table.push(row);
      addRow(row);
      element("progress").textContent = `${index + 1} of ${blobs.length} pictures`;
      if (index % 20 === 19) await new Promise((resolve) => setTimeout(resolve));
    }
  }
  if (several) {
    finishTable(table.slice(first));
    element("many").scrollIntoView({ block: "nearest" });
  } else if (!element("result").hidden) {
    element("result").scrollIntoView({ block: "nearest" });
  }
}

function finishTable() {
  element("stop").hidden = true;
  const failed = table.filter((row) => row.problem).length;
  const left = expected > table.length ? `, ${expected - table.length} more were stopped` : "";
  const hidden = table.length > MOST_ROWS ? ` The table shows the first ${MOST_ROWS}; the CSV has all.` : "";
  element("progress").textContent =
    `${table.length} pictures${failed ? `, ${failed} of them could not be read` : ""}${left}.${hidden}`;
}

function addRow(row) {
  if (element("rows").children.length >= MOST_ROWS) return;
  const line = make("tr"), [name, answer, share] = [make("td"), make("td"), make("td")];
  const button = make("button", row.name);
  button.type = "button";
  button.addEventListener("click", () => showAgain(row));
  name.append(button);
  share.className = "num";
  line.append(name, answer, share);
  row.cells = [answer, share];
  writeRow(row);
  element("rows").append(line);
}

/** Writes the cells of a row, by the threshold of now. */
function writeRow({ cells, probabilities, problem }) {
  if (!cells) return;
  const [answer, share] = cells;
  if (problem) {
    answer.textContent = problem;
    answer.className = "unsure";
    return;
  }
  const best = ranking(probabilities)[0], sure = isSure(probabilities[best]);
  answer.textContent = sure ? classes[best] : `not sure (${classes[best]})`;
  answer.className = sure ? "" : "unsure";
  share.textContent = percent(probabilities[best]);
}

async function showAgain(row) {
  try {
    const answer = await classify(row.blob);
    show(answer, row.name);
    answer.bitmap.close();
    element("result").scrollIntoView({ block: "nearest" });
    element("result").focus({ preventScroll: true });
  } catch (error) {
    complain(`${row.name}: ${error.message}`);
  }
}

/** A cell of a CSV. Spreadsheets would compute what begins like a formula, so that gets an apostrophe. */
function cell(value) {
  const text = typeof value === "number" ? String(value) : String(value).replace(/^ *[=+\-@\t\r\n]/, "'$&");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv() {
  const lines = [["file", "class", "confidence", ...(data.coverage ? ["sure"] : []), "problem", ...classes]];
  for (const { name, probabilities, problem } of table) {
    const best = probabilities && ranking(probabilities)[0];
    const answer = probabilities ? [classes[best], rounded(probabilities[best])] : ["", ""];
    const sure = !data.coverage ? [] : [probabilities ? (isSure(probabilities[best]) ? "yes" : "no") : ""];
    lines.push([name, ...answer, ...sure, problem, ...classes.map((_, i) => (probabilities ? rounded(probabilities[i]) : ""))]);
  }
  return "\ufeff" + lines.map((line) => line.map(cell).join(",") + "\r\n").join("");
}

const rounded = (value) => Number(value.toFixed(6));

function save() {
  const link = make("a"), url = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.href = url;
  link.download = "predictions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

// ---- when it is not sure

let threshold = data.threshold; // in thousandths; null if nobody knows what one accepts

function isSure(confidence) {
  return threshold === null || confidence >= threshold / 1000;
}

function setThreshold(value) {
  threshold = value;
  const { accepted, correct } = data.coverage, images = accepted[0], taken = accepted[value];
  element("level").textContent = `${(value / 10).toFixed(1)} %`;
  const right = taken ? `${percent(correct[value] / taken)} of those are right` : "so it is never sure";
  element("accepted").textContent =
    `On ${images.toLocaleString("en")} validation images it is sure of ${taken.toLocaleString("en")} ` +
    `(${percent(taken / images)}), and ${right}. Without a threshold, ${percent(correct[0] / images)} are right.`;
  tell();
  table.forEach(writeRow);
}

// ---- small things

function ranking(probabilities) {
  return Array.from(probabilities, (_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
}

/** A share in percent. It is never rounded to certainty. */
function percent(share) {
  if (share > 0.995 && share < 1) return "over 99 %";
  if (share < 0.005 && share > 0) return "under 1 %";
  return `${Math.round(100 * share)} %`;
}

function make(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function complain(sentence) {
  element("trouble").hidden = !sentence;
  element("trouble").textContent = sentence;
}

// ---- where pictures come from

element("files").addEventListener("change", ({ target }) => {
  take([...target.files]);
  target.value = "";
});
document.addEventListener("paste", ({ clipboardData }) => take([...clipboardData.files]));
for (const kind of ["dragover", "dragenter"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    element("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) element("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  const { files } = event.dataTransfer;
  if (files.length) take([...files]);
  else complain("That was not a file. Save the picture first, then drop the file.");
});
element("map").addEventListener("click", toggleMap);
element("save").addEventListener("click", save);
element("stop").addEventListener("click", () => {
  begin();
});
element("clear").addEventListener("click", () => {
  busy++;
  table = [];
  expected = 0;
  element("stop").hidden = true;
  element("rows").replaceChildren();
  element("many").hidden = true;
});
if (data.coverage) {
  element("threshold").addEventListener("input", ({ target }) => setThreshold(Number(target.value)));
  setThreshold(data.threshold);
}

data.samples.forEach(({ image, label }, index) => {
  const button = make("button"), picture = make("img"), item = make("li");
  button.type = "button";
  picture.src = image;
  picture.alt = `Sample ${index + 1}`;
  picture.addEventListener("load", () => picture.classList.toggle("tiny", picture.naturalWidth <= TINY));
  button.append(picture);
  button.addEventListener("click", async () => {
    const [header, content] = image.split(",");
    const mine = begin();
    complain("");
    const answer = await classify(new Blob([fromBase64(content)], { type: header.slice(5, -7) }));
    if (mine === busy) show(answer, `Sample ${index + 1}`, label);
    answer.bitmap.close();
  });
  item.append(button);
  element("samples").append(item);
});

let stream = null;

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  element("viewfinder").hidden = true;
  element("camera").focus();
}

if (navigator.mediaDevices?.getUserMedia) {
  element("camera").hidden = false;
  element("camera").addEventListener("click", async () => {
    complain("");
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      complain(`The camera cannot be used (${error.message || error.name}). Allow it for this page, or choose a picture.`);
      return;
    }
    element("viewfinder").hidden = false;
    element("video").srcObject = stream;
    await element("video").play();
    element("shoot").focus();
  });
  element("shoot").addEventListener("click", () => {
    const video = element("video"), canvas = make("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => take([new File([blob], "camera.png", { type: "image/png" })]));
  });
  element("leave").addEventListener("click", closeCamera);
}

// What a program needs that drives the page: the proof of the export, and tests.
window.vitreous = { classify, check: check(), csv, take, data, starting };
