// The backend of the page that asks `deit serve`. browser.js is the other one.

const TOKEN = "deit-token";
const ATTEMPTS = 20; // of a request that a busy server refuses

export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

async function request(path, options = {}) {
  for (let attempt = 1; ; attempt++) {
    const headers = new Headers(options.headers);
    const token = sessionStorage.getItem(TOKEN);
    if (token) headers.set("Authorization", `Bearer ${token}`);
    const response = await fetch(path, { ...options, headers }).catch(() => {
      throw new Error("The server does not answer: it may have been stopped");
    });
    if (response.ok) return response;
    if (response.status === 429 && attempt < ATTEMPTS) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * Number(response.headers.get("Retry-After") ?? 1)));
      continue;
    }
    const problem = await response.json().catch(() => ({}));
    const error = new Error(problem.detail ?? `The server answered ${response.status} ${response.statusText}`);
    error.needsToken = response.status === 401;
    throw error;
  }
}

function post(path, blob, query) {
  // The decoder of the server looks at the content; a type is needed so that the body is taken for a file.
  const headers = { "Content-Type": "application/octet-stream" };
  return request(`${path}?${new URLSearchParams(query)}`, { method: "POST", body: blob, headers });
}

export async function describe() {
  const models = await (await request("v1/model")).json();
  return {
    models: models.map((model) => ({ ...model, facts: `${model.runtime} on ${model.device}` })),
    explains: true,
    note: "Images are sent to this server, and are not kept.",
  };
}

export async function samples(model) {
  const { samples: found } = await (await request(`v1/samples?${new URLSearchParams({ model })}`)).json();
  return found;
}

export async function sampleImage(model, sample) {
  return (await request(`v1/samples/${sample.number}?${new URLSearchParams({ model })}`)).blob();
}

export async function predict(blob, { model, top }) {
  const response = await post("v1/predict", blob, { model, top_k: top, heads: true });
  const [image] = (await response.json()).images;
  const timing = /dur=([\d.]+)/.exec(response.headers.get("Server-Timing") ?? "");
  return { predictions: image.predictions, heads: image.heads, milliseconds: timing && Number(timing[1]) };
}

export async function explain(blob, { model }) {
  return (await post("v1/explain", blob, { model, details: true })).json();
}
