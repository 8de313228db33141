// Shows the HTTP interface of `deit serve` as its OpenAPI description says it.

import { byId, element } from "./dom.js";

function operationSection(path, method, { summary, description, parameters = [], requestBody, responses }) {
  const bodies = Object.keys(requestBody?.content ?? {});
  return element(
    "section",
    { className: "operation" },
    element("h2", {}, element("code", { textContent: `${method.toUpperCase()} ${path}` })),
    element("p", { textContent: description ?? summary }),
    ...(bodies.length ? [element("p", { textContent: `Body: ${bodies.join(", ")}` })] : []),
    ...(parameters.length ? [parameterTable(parameters)] : []),
    responseList(responses),
  );
}

function parameterTable(parameters) {
  const rows = parameters.map(({ name, in: place, schema, description = "" }) => {
    const standard = schema.default == null ? "" : `, ${schema.default} by default`;
    const cells = [element("code", { textContent: name }), `${place}, ${typeName(schema)}${standard}`, description];
    return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
  });
  const names = ["Parameter", "Type", "Meaning"].map((name) => element("th", { scope: "col", textContent: name }));
  return element("table", {}, element("thead", {}, element("tr", {}, ...names)), element("tbody", {}, ...rows));
}

function typeName({ type, anyOf, enum: choices }) {
  if (choices) return choices.join(" or ");
  const types = anyOf?.map(typeName).filter((name) => name !== "null");
  return type ?? (types?.join(" or ") || "any");
}

function responseList(responses) {
  const items = Object.entries(responses).map(([status, { description, content = {} }]) => {
    const types = Object.keys(content).join(", ");
    return element("li", { textContent: `${status}: ${description}${types ? ` (${types})` : ""}` });
  });
  return element("details", {}, element("summary", { textContent: "Responses" }), element("ul", {}, ...items));
}

async function start() {
  const { paths } = await (await fetch("openapi.json")).json();
  const sections = Object.entries(paths).flatMap(([path, operations]) =>
    Object.entries(operations).map(([method, operation]) => operationSection(path, method, operation)),
  );
  byId("operations").replaceChildren(...sections);
}

start().catch(() => {
  byId("operations").textContent = "The server does not answer: it may have been stopped.";
});
