// The backend of the page that classifies in the browser, in the folder of `deit export --to web`. server.js is the other one.

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map(); // requests to the worker by number
let requests = 0;
let failure = null;

worker.addEventListener("message", ({ data: { number, result, problem } }) => {
  const { resolve, reject } = waiting.get(number);
  waiting.delete(number);
  if (problem === undefined) resolve(result);
  else reject(new Error(problem));
});
// The worker itself could not be loaded.
worker.addEventListener("error", ({ message }) => {
  failure = new Error(`The model cannot run in this browser${message ? ` (${message})` : ""}`);
  for (const { reject } of waiting.values()) reject(failure);
});

function request(task, values) {
  if (failure) return Promise.reject(failure);
  return new Promise((resolve, reject) => {
    requests += 1;
    waiting.set(requests, { resolve, reject });
    worker.postMessage({ number: requests, task, values });
  });
}

export async function describe() {
  const { name, facts, classes, heads, input } = await request("describe");
  const [, height, width] = input.shape;
  return {
    models: [{ name, facts, classes, heads, height, width }],
    explains: false,
    note: "This page runs in the browser: images stay on this machine.",
  };
}

export function predict(blob, { top }) {
  return request("predict", { blob, top });
}

export async function explain() {
  throw new Error("Explanations need `deit serve`");
}
