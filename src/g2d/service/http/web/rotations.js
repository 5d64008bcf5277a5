// The timeline of rotations, and latencies around each swap as a chart.
const SPANS = ["before", "during", "after"];
const STEP = 10; // rotations shown at first, and by each press of "older"
let shown = STEP;
const drawn = new Map(); // generation -> { key, item }

const tookPart = (name, value) => (isNumber(value) ? [[name, span(value)]] : []);
const p99 = (record, when) => record.latency?.[when]?.p99;

/** Whether a gate's value must be at most, or at least, its limit: as its verdict shows. */
const sign = (gate) => (gate.passed === gate.value <= gate.limit ? "≤" : "≥");

/** A gate may bring its own title, and say that it measures a share; else its name will do. */
const gateTitle = (gate) => String(gate.title || gate.gate);
const gateNumber = (gate, value) => (gate.share ? percent(value) : short(value));

function gatesTable(record) {
  const gates = list(record.gates);
  if (!gates.length) {
    return el("div", {}, el("h4", {}, "Gates"), el("p", { class: "small" },
      record.origin === "base" ? "None: it was deployed first, not generated." : "Not known."));
  }
  return table("", "Gates", ["gate", "measured", "limit", "verdict"], gates.map((gate) => [
    gateTitle(gate), [gateNumber(gate, gate.value), "number"],
    [`${sign(gate)} ${gateNumber(gate, gate.limit)}`, "number"], mark(gate.passed)]));
}

function latencyTable({ latency, time }) {
  const found = SPANS.some((when) => latency?.[when]);
  if (!found) {
    return el("div", {}, el("h4", {}, "Latency around the swap"), el("p", { class: "small" },
      latency ? "Nobody asked at that time."
        : isNumber(time) ? "Known a second or two after the swap."
          : "Not known: it went live before this start."));
  }
  const row = (name, key, show) =>
    [name, ...SPANS.map((when) => [latency[when] ? show(latency[when][key]) : "–", "number"])];
  return table("", "Latency around the swap", ["quantile", ...SPANS], [
    row("median", "p50", span), row("p99", "p99", span),
    row("answers", "answers", (n) => n.toLocaleString("en"))]);
}

function factsList(record) {
  const { make, load, swap } = record.seconds ?? {};
  const facts = [
    ...tookPart("made and gated in", make), ...tookPart("loaded and verified in", load),
    ...tookPart("committed and swapped in", swap),
    ...(isNumber(record.attempt) ? [["candidates", String(record.attempt + 1)]] : []),
    ...(isNumber(record.cpu_seconds) ? [["CPU to make it", span(record.cpu_seconds)]] : []),
    ...(isNumber(record.created) ? [["made at", moment(record.created)]] : []),
  ];
  return el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

const NAMES = { schedule: "schedule", demand: "on demand", queries: "queries answered" };
function why(record) {
  const reasons = list(record.reasons).map((reason) => NAMES[reason] ?? String(reason));
  if (reasons.length) return reasons.join(", ");
  return record.origin === "base" ? "first deployment" : "–";
}

const none = () => el("span", { class: "none" }, "–");

/** Three durations in the unit of the longest one. */
function trio(times) {
  const seconds = times.some((value) => value >= 1);
  const shown = times.map((value) => {
    if (!isNumber(value)) return "–";
    return seconds ? value.toFixed(2) : (1000 * value).toPrecision(value < 0.1 ? 2 : 3);
  });
  return `${shown.join(" → ")} ${seconds ? "s" : "ms"}`;
}

function summaryLine(record, live) {
  const part = (label, ...content) =>
    el("span", { class: label.split(" ")[0] }, el("span", { class: "label" }, `${label} `), ...content);
  const gates = list(record.gates);
  const passed = gates.filter((gate) => gate.passed).length;
  const times = SPANS.map((when) => p99(record, when));
  return el("summary", {},
    part("generation", el("b", {}, String(record.generation)),
      live ? el("span", { class: "now" }, "live") : null),
    part("live since", isNumber(record.time) ? moment(record.time) : "before this start"),
    part("why", why(record) === "–" ? none() : why(record)),
    part("accuracy", isNumber(record.accuracy) ? percent(record.accuracy) : none()),
    part("distance", isNumber(record.distance) ? short(record.distance) : none()),
    part("gates", gates.length ? `${passed} of ${gates.length} ` : none(),
      gates.length ? mark(passed === gates.length) : null),
    part("p99", times.some(isNumber) ? trio(times) : none()));
}

function rotationItem(record, live, open, fresh) {
  const details = el("details", open ? { open: "" } : {}, summaryLine(record, live),
    el("div", { class: "inside" }, factsList(record), gatesTable(record),
      latencyTable(record)));
  return el("li", fresh ? { class: "fresh" } : {}, details);
}

/** Draw the newest rotations; what has not changed stays, and so does what was opened. */
function drawTimeline(history, live, first) {
  const rows = history.slice(-shown).reverse();
  const kept = new Set();
  const items = rows.map((record) => {
    const number = record.generation;
    const key = JSON.stringify([record, number === live]);
    const old = drawn.get(number);
    kept.add(number);
    if (old?.key === key) return old.item;
    const open = old ? old.item.firstChild.open : false;
    const item = rotationItem(record, number === live, open, !old && !first && number === live);
    drawn.set(number, { key, item });
    if (old && old.item.contains(document.activeElement)) {
      queueMicrotask(() => item.querySelector("summary").focus());
    }
    return item;
  });
  for (const number of drawn.keys()) if (!kept.has(number)) drawn.delete(number);
  const now = [...$("timeline").children];
  if (items.length !== now.length || items.some((item, i) => item !== now[i])) {
    place($("timeline"), items);
  }
  const more = history.length - rows.length;
  $("older").hidden = more <= 0;
  write("older", `Show ${Math.min(STEP, more)} older of ${more}`);
}

/** Put items in order and leave in place what is there, so that focus is not lost. */
function place(parent, items) {
  const wanted = new Set(items);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  items.forEach((item, i) => {
    if (parent.children[i] !== item) parent.insertBefore(item, parent.children[i] ?? null);
  });
}

/** Medians to 99th percentiles before, during and after each swap, on a logarithmic axis. */
function drawChart(history) {
  const width = $("chart").clientWidth - 32;
  const wide = Math.max(200, width);
  const most = Math.max(4, Math.floor((wide - 60) / 44));
  const swaps = history.filter((r) => SPANS.some((w) => isNumber(p99(r, w)))).slice(-most);
  $("chart").hidden = swaps.length === 0;
  if (!swaps.length) return;
  const values = swaps.flatMap((r) => SPANS.flatMap((w) =>
    r.latency[w] ? [r.latency[w].p50, r.latency[w].p99] : [])).filter((v) => v > 0);
  const low = Math.min(...values) / 1.25, high = Math.max(...values) * 1.25;
  const [left, top, bottom] = [56, 8, 164];
  const y = (v) => bottom - (bottom - top) * Math.log(Math.max(v, low) / low) / Math.log(high / low);
  const step = Math.min(110, (wide - left) / swaps.length);
  const marks = swaps.map((record, i) => {
    const x = left + step * (i + 0.5);
    const bars = SPANS.flatMap((when, j) => {
      const found = record.latency[when];
      if (!found) return [];
      const at = x + (j - 1) * Math.min(12, step / 4);
      return [svg("g", { class: when },
        svg("line", { class: "span", x1: at, x2: at, y1: y(found.p50), y2: y(found.p99) }),
        svg("circle", { cx: at, cy: y(found.p50), r: 4 }))];
    });
    const said = SPANS.map((w) => `${w} ${span(record.latency[w]?.p50)}, ${span(p99(record, w))}`);
    return svg("g", {}, svg("title", {}, `Generation ${record.generation}: ${said.join("; ")}`),
      ...bars, svg("text", { x, y: 184, "text-anchor": "middle" }, String(record.generation)));
  });
  const ticks = [];
  for (let power = -6; power < 3; power += 1) {
    for (const digit of [1, 2, 5]) {
      const value = digit * 10 ** power;
      if (value >= low && value <= high) ticks.push(value);
    }
  }
  const scale = ticks.map((value) => svg("g", {},
    svg("line", { class: "grid", x1: left, x2: wide, y1: y(value), y2: y(value) }),
    svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, span(value).replace(".0", ""))));
  const about = `Latency around the last ${swaps.length} swaps; each rotation below has the numbers.`;
  $("plot").replaceChildren(svg("svg",
    { viewBox: `0 0 ${wide} 190`, width: wide, height: 190, role: "img", "aria-label": about },
    ...scale, ...marks));
}
