// Elements, numbers and times. Text that came from the server enters the page as text nodes alone.
const $ = (id) => document.getElementById(id);

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

const el = (tag, attributes = {}, ...children) =>
  make(document.createElement(tag), attributes, children);

const svg = (tag, attributes = {}, ...children) =>
  make(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function write(id, text) {
  const node = $(id);
  if (node.textContent !== text) node.textContent = text;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const list = (value) => (Array.isArray(value) ? value : []);
const counted = (n, one, many = one + "s") => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const percent = (value, digits = 1) =>
  isNumber(value) ? `${(100 * value).toFixed(digits)} %` : "–";

function short(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.00005 || size >= 1e5)) return value.toExponential(1);
  if (size < 0.001) return String(Number(value.toFixed(4)));
  return String(Number(value.toPrecision(3)));
}

/** A duration in words, as precise as it is short. */
function span(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 0.00005) return "< 0.1 ms";
  if (seconds < 0.9995) {
    const ms = 1000 * seconds;
    return `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms`;
  }
  return seconds < 9.95 ? `${Number(seconds.toFixed(1))} s` : clock(seconds).replace(/ 0 \w+$/, "");
}

/** A duration in whole seconds, for what ticks. */
function clock(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** A moment in local time; the date only if it is not today's. */
function moment(unix) {
  if (!isNumber(unix)) return el("span", {}, "–");
  const at = new Date(1000 * unix);
  const today = at.toDateString() === new Date().toDateString();
  const date = at.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  const time = at.toLocaleTimeString("en-GB");
  const text = today ? time : `${date}, ${time.slice(0, 5)}`;
  return el("time", { datetime: at.toISOString(), title: at.toLocaleString("en-GB") }, text);
}

/** A table; `head` are column titles, `rows` arrays of cells (text, nodes, or [cell, class]). */
function table(kind, caption, head, rows) {
  const cell = (value, i) => {
    const [content, name] = Array.isArray(value) ? value : [value, ""];
    const attributes = i === 0 ? { scope: "row" } : { "data-label": head[i] };
    if (name) attributes.class = name;
    return el(i === 0 ? "th" : "td", attributes, content);
  };
  return el("table", { class: kind },
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...head.map((title) => el("th", { scope: "col" }, title)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell)))));
}

const empty = (...text) => el("p", { class: "empty" }, ...text);
const mark = (passed) => el("span", { class: passed ? "pass" : "fail" }, passed ? "✓" : "✗",
  el("span", { class: "hidden" }, passed ? " passed" : " failed"));
