"use strict";
// Answers messages: in a Web Worker, or in the page itself where workers are not available.

const SLICE = 40; // milliseconds of a heat map between two looks at new messages

let network = null;
let latestMap = 0;

/** Does what a message asks for and calls `reply` with the result, and before it with the progress of a heat map. */
async function work(message, reply) {
  if (message.task === "load") {
    network = makeNetwork(message.model, message.bytes, message.simd);
    reply({ simd: network.simd });
  } else if (message.task === "predict") {
    reply({ probabilities: network.probabilities(message.pixels) });
  } else if (message.task === "heat") {
    const number = ++latestMap; // a later request, or none, ends this one
    let rested = performance.now();
    const map = await heatMap(network, message.size, message.pixels, message.chosen, async (done) => {
      if (performance.now() - rested < SLICE) return true;
      reply({ done: done / network.grid ** 2 });
      await new Promise((resolve) => setTimeout(resolve));
      rested = performance.now();
      return number === latestMap;
    });
    reply({ map });
  } else if (message.task === "stop") {
    latestMap++;
    reply({});
  }
}

if (typeof document === "undefined") {
  self.onmessage = async ({ data }) => {
    try {
      await work(data, (answer) => self.postMessage({ id: data.id, ...answer }));
    } catch (error) {
      self.postMessage({ id: data.id, problem: String(error) });
    }
  };
}
