// Runs the model of `deit export --to web` in ONNX Runtime, beside the page, which stays responsive meanwhile.

import * as ort from "../onnxruntime/onnxruntime.js";
import { decode } from "./decoding.js";
import { preprocess } from "./preprocessing.js";

const GZIP = [0x1f, 0x8b]; // the first bytes of compressed files

const description = read("../model.json").then((response) => response.json());
const session = openSession();
session.catch(() => {}); // the error belongs to the first image
let queue = Promise.resolve(); // images are classified one after the other

async function read(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`The file ${name} of this page is missing (${response.status})`);
  return response;
}

// A server may decompress the file by itself, for its name.
async function readDecompressed(name) {
  const bytes = new Uint8Array(await (await read(name)).arrayBuffer());
  if (GZIP.some((byte, index) => bytes[index] !== byte)) return bytes.buffer;
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function openSession() {
  const [runtime, graph] = await Promise.all([
    readDecompressed("../onnxruntime/ort-wasm-simd-threaded.wasm.gz"),
    read("../model.onnx").then((response) => response.arrayBuffer()),
  ]);
  ort.env.wasm.wasmBinary = runtime;
  return ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
}

async function predict(blob, top) {
  const { input, heads, classes, preprocessing } = await description;
  const opened = await session;
  const begin = performance.now();
  const values = preprocess(await decode(blob), preprocessing);
  const preprocessed = performance.now();
  const outputs = await opened.run({ [input.name]: new ort.Tensor(input.dtype, values, [1, ...input.shape]) });
  const end = performance.now();
  const guesses = Object.fromEntries(heads.map((head) => [head, topClasses(outputs[head].data, classes, top)]));
  return {
    predictions: guesses[heads.at(-1)],
    heads: guesses,
    milliseconds: end - begin,
    steps: { preprocessing: preprocessed - begin, model: end - preprocessed },
  };
}

function topClasses(logits, classes, count) {
  const largest = logits.reduce((one, other) => Math.max(one, other));
  if (!Number.isFinite(largest)) throw new Error("The model predicts NaN or infinite values");
  const exponentials = Float64Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  const order = [...logits.keys()].sort((one, other) => logits[other] - logits[one]).slice(0, count);
  return order.map((index) => ({ label: classes[index], probability: exponentials[index] / total }));
}

const tasks = {
  describe: () => description,
  predict: ({ blob, top }) => {
    const prediction = queue.then(() => predict(blob, top));
    queue = prediction.catch(() => {});
    return prediction;
  },
};

addEventListener("message", async ({ data: { number, task, values } }) => {
  try {
    postMessage({ number, result: await tasks[task](values) });
  } catch (error) {
    postMessage({ number, problem: error.message });
  }
});
