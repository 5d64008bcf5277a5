// Renders /openapi.json: every call, what it takes and what it answers.
const VERBS = ["get", "post", "put", "delete", "patch"];
const json = (value) => el("pre", { tabindex: "0" }, JSON.stringify(value, null, 2));

function parameters(found) {
  if (!found.length) return [];
  return [el("h4", {}, "Parameters"), table("cards", "In the address.", ["name", "type", "about"],
    found.map((p) => [p.name, p.schema?.type ?? "", p.description ?? (p.required ? "required" : "")]))];
}

function body(operation) {
  const content = Object.entries(operation.requestBody?.content ?? {});
  return content.flatMap(([type, { schema }]) =>
    [el("h4", {}, `Body, ${type}`), json(schema ?? {})]);
}

function answers(operation) {
  const rows = Object.entries(operation.responses ?? {}).map(([status, about]) =>
    [[status, "number"], about.description ?? "", Object.keys(about.content ?? {}).join(", ")]);
  const good = operation.responses?.["200"]?.content?.["application/json"]?.schema;
  const shape = good && Object.keys(good).length > 1
    ? [el("details", {}, el("summary", {}, "The good answer’s schema"), json(good))] : [];
  return [el("h4", {}, "Answers"),
    table("cards", "By HTTP status.", ["status", "meaning", "type"], rows), ...shape];
}

function show(verb, path, operation) {
  return el("details", { class: "call" },
    el("summary", {}, el("span", { class: `verb ${verb}` }, verb.toUpperCase()), el("code", {}, path),
      el("span", {}, operation.summary ?? "")),
    el("p", {}, operation.description ?? ""),
    operation.security ? el("p", { class: "note" }, "Needs the header ",
      el("code", {}, "Authorization: Bearer TOKEN"), ".") : null,
    ...parameters(list(operation.parameters)), ...body(operation), ...answers(operation));
}

async function render() {
  const schema = await (await fetch("openapi.json", { cache: "no-store" })).json();
  const groups = new Map();
  for (const [path, item] of Object.entries(schema.paths)) {
    for (const verb of VERBS.filter((name) => item[name])) {
      const tag = item[verb].tags?.[0] ?? "other";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(show(verb, path, item[verb]));
    }
  }
  $("about").textContent = `${schema.info.title} ${schema.info.version}. ${schema.info.description ?? ""}`;
  for (const [tag, calls] of groups) $("calls").append(el("section", {}, el("h2", {}, tag), ...calls));
}

render().catch((error) => { $("about").textContent = `The description cannot be read: ${error.message}`; });
