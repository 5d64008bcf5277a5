// Alarms and rotations on one axis of time, from what `alarms` told: for whoever has the token.
const LANES = 10; // kinds and clients that have a lane of their own, the worst and the latest
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
  86400, 172800, 604800, 2592000];
let range = Infinity; // seconds that are shown

const levelOf = (alarm) => (LEVELS.includes(alarm.level) ? alarm.level : "warning");

/** Lanes of alarms, the worst first, then the last to alarm; for which there is no room share one. */
function lanesOf(alarms) {
  const found = new Map();
  for (const alarm of alarms) {
    const [kind, client] = [title(alarm), String(alarm.client ?? "")];
    const key = JSON.stringify([kind, client]);
    const lane = found.get(key) ?? { kind, client, alarms: [], worst: Infinity, last: 0 };
    lane.alarms.push(alarm);
    lane.worst = Math.min(lane.worst, LEVELS.indexOf(levelOf(alarm)));
    lane.last = Math.max(lane.last, alarm.time);
    found.set(key, lane);
  }
  const lanes = [...found.values()].sort((a, b) => a.worst - b.worst || b.last - a.last);
  const rest = lanes.splice(lanes.length > LANES + 1 ? LANES : Infinity);
  if (rest.length) lanes.push({ kind: `${rest.length} others`, client: "", alarms: rest.flatMap((lane) => lane.alarms) });
  return lanes;
}

function tickText(at, step) {
  const date = new Date(1000 * at);
  const [day, time] = [date.toLocaleDateString("en-GB", { day: "numeric", month: "short" }),
    date.toLocaleTimeString("en-GB")];
  if (step > STEPS.at(-1)) return date.toLocaleDateString("en-GB", { month: "short", year: "numeric" });
  if (step >= 86400) return day;
  if (step < 60) return time;
  return time === "00:00:00" ? day : time.slice(0, 5);
}

function drawTicks(from, to, x, height) {
  const fits = (each) => x(from + each) - x(from) >= 76;
  let step = STEPS.find(fits) ?? 2 * STEPS.at(-1);
  while (!fits(step)) step *= 2; // a clock that began in 1970 leaves decades between alarms
  const zone = 60 * new Date(1000 * to).getTimezoneOffset();
  const ticks = [];
  for (let at = Math.ceil((from - zone) / step) * step + zone; at <= to; at += step) {
    ticks.push(svg("line", { class: "grid", x1: x(at), x2: x(at), y1: 0, y2: height - 18 }));
    if (x(at) - x(from) > 18 && x(to) - x(at) > 18) {
      ticks.push(svg("text", { x: x(at), y: height - 4, "text-anchor": "middle" }, tickText(at, step)));
    }
  }
  return ticks;
}

function drawRotations(rotations, x, height) {
  let free = -Infinity;
  return rotations.map((one) => {
    const at = x(one.time), told = at >= free;
    if (told) free = at + 9 * String(one.generation).length + 12;
    return svg("g", { class: "swap" },
      svg("title", {}, `Generation ${one.generation}, ${new Date(1000 * one.time).toLocaleString("en-GB")}: ${why(one)}`),
      svg("line", { x1: at, x2: at, y1: 20, y2: height - 18 }),
      svg("circle", { cx: at, cy: 24, r: 3.5 }),
      told ? svg("text", { x: at, y: 13, "text-anchor": "middle" }, String(one.generation)) : null);
  });
}

const SHAPES = {
  critical: (x, y, r) => svg("path", { d: `M${x} ${y - r - 1}l${r + 1} ${r + 1}l${-r - 1} ${r + 1}l${-r - 1} ${-r - 1}z` }),
  warning: (x, y, r) => svg("circle", { cx: x, cy: y, r }),
  notice: (x, y, r) => svg("circle", { cx: x, cy: y, r: r - 1 }),
};

/** The alarms of a lane; those of a level that would lie on each other are one mark. */
function drawLane({ kind, client, alarms }, y, x, wide) {
  const marks = new Map();
  for (const alarm of alarms) {
    const level = levelOf(alarm);
    const key = `${level} ${Math.round(x(alarm.time) / 6)}`;
    marks.set(key, [...(marks.get(key) ?? []), { ...alarm, level }]);
  }
  const most = Math.floor((wide - 16) / 7.5) - kind.length;
  const name = client.length > most ? `${client.slice(0, Math.max(1, most - 1))}…` : client;
  const drawn = [...marks.values()].sort((a, b) => LEVELS.indexOf(b[0].level) - LEVELS.indexOf(a[0].level));
  return svg("g", {},
    svg("text", { x: 0, y }, svg("tspan", { class: "kind" }, kind), name ? `  ${name}` : ""),
    svg("line", { class: "lane", x1: 0, x2: wide, y1: y + 15, y2: y + 15 }),
    ...drawn.map((same) => {
      const [one] = same, many = same.length > 1;
      const said = `${one.level}: ${many ? `${same.length} alarms until ` : ""}${new Date(1000 * one.time).toLocaleString("en-GB")}`;
      return svg("g", { class: `at ${one.level}` },
        svg("title", {}, [said, title(one), one.client, one.text].filter(Boolean).join(" · ")),
        SHAPES[one.level](x(one.time), y + 15, many ? 6.5 : 5));
    }));
}

/** Draw what `alarms` told; null: nothing is, and nothing was kept. */
function drawAlarmLine(told) {
  const alarms = list(told?.alarms).filter((one) => isNumber(one.time));
  $("alarm-line").hidden = !alarms.length;
  if (!alarms.length) {
    write("alarm-about", "");
    return $("alarm-plot").replaceChildren();
  }
  const swaps = list(told.rotations).filter((one) => isNumber(one.time));
  const now = state.now + since();
  const first = Math.min(now - 60, ...[...alarms, ...swaps].map((one) => one.time));
  const from = Math.max(now - range, first - 0.02 * (now - first));
  const seen = (one) => one.time >= from;
  const wide = Math.max(200, $("alarm-line").clientWidth - 32);
  // What a clock that was set back has left in the future lies at the end: the present stays seen.
  const x = (time) => 8 + (wide - 16) * (Math.min(time, now) - from) / (now - from);
  const [shown, rotations] = [alarms.filter(seen), swaps.filter(seen)];
  const lanes = lanesOf(shown), height = 48 + 36 * lanes.length + 20;
  const about = `${counted(shown.length, "alarm")} and ${counted(rotations.length, "rotation")} in ${clock(now - from)}; the lists below have the alarms.`;
  $("alarm-plot").replaceChildren(svg("svg",
    { viewBox: `0 0 ${wide} ${height}`, width: wide, height, role: "img", "aria-label": about },
    ...drawTicks(from, now, x, height), ...drawRotations(rotations, x, height),
    ...lanes.map((lane, i) => drawLane(lane, 48 + 36 * i, x, wide))));
  write("alarm-about", about);
}

for (const button of $("alarm-ranges").children) {
  button.addEventListener("click", () => {
    range = Number(button.dataset.seconds) || Infinity;
    for (const each of $("alarm-ranges").children) each.setAttribute("aria-pressed", String(each === button));
    drawAlarmLine(watched);
  });
}
new ResizeObserver(() => watched && drawAlarmLine(watched)).observe($("watched"));
