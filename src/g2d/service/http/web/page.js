// State of the page: one stream of events, read anew whenever it was interrupted.
const PATIENCE = 12; // seconds of silence after which a stream counts as dead; it beats every 2 s
const KEPT = 200;
let state = null, source = null, heard = 0, waits = 1, token = "", redteam = null, redteamSeen;
let announced = -Infinity, speaking = 0, reread = 0;

const since = () => performance.now() / 1000 - state.at; // seconds since the last tick

function take(fresh) {
  state = { ...(state ?? {}), ...fresh, at: performance.now() / 1000 };
  heard = state.at;
  if (state.redteam !== redteamSeen) readRedteam();
}

// --- what is drawn ------------------------------------------------------------------------------

/** Under a serving policy only who may observe is told of rotations: see docs/serving.md. */
function drawHidden() {
  const serving = watched?.serving; // with the token; the stream comes without it
  for (const id of ["generation", "countdown", "spare"]) write(id, "not told");
  for (const id of ["countdown", "spare"]) $(id).classList.add("words");
  if (serving) write("generation", String(serving.live.at(-1)));
  write("schedule", serving ? answering(serving)
    : "a policy says whom which generation answers; who may observe is told which");
  write("spare-more", "");
  for (const id of ["bar", "live-for"]) $(id).hidden = true;
}

function drawClocks() {
  if (!state) return;
  if (heard && performance.now() / 1000 - heard > PATIENCE) lost();
  if (state.hidden) return;
  const r = state.rotation, gone = linked() ? since() : 0;
  write("age", clock(r.age + gone));
  const left = r.countdown === null ? null : Math.max(0, r.countdown - gone);
  const late = r.late > 0 ? r.late + gone : 0;
  let text = "on demand", words = true;
  if (r.paused) text = "paused";
  else if (left !== null && left > 0) [text, words] = [clock(Math.ceil(left)), false];
  else if (late > 1 || r.due.length) text = late > 1 ? `overdue ${clock(late)}` : "due";
  else if (left !== null) text = "any moment";
  else if (r.queries) [text, words] = [(r.queries - r.answered).toLocaleString("en"), false];
  write("countdown", text);
  $("countdown").classList.toggle("words", words);
  $("bar").hidden = left === null || r.paused;
  if (left !== null) $("done").style.transform = `scaleX(${Math.min(1, 1 - left / r.every)})`;
}

function drawNow() {
  const r = state.rotation, t = state.traffic;
  write("model", state.model);
  drawAnswers(t);
  write("pause", r.paused ? "Resume" : "Pause");
  document.title = state.hidden ? `G2D ${state.model}` : `${r.generation} live – G2D ${state.model}`;
  if (state.hidden) return drawHidden();
  write("generation", String(r.generation));
  const plan = [];
  if (r.every) plan.push(`every ${span(r.every)} on average; the moment is secret`);
  if (r.queries) plan.push(`${r.every ? "or " : ""}after ${counted(r.queries, "input")}, ${r.answered.toLocaleString("en")} so far`);
  if (!plan.length) plan.push("no schedule: by this button, the admin call or an alarm");
  if (state.serving) plan.push(answering(state.serving));
  if (r.due.length) plan.unshift(`due: ${r.due.map((reason) => NAMES[reason] ?? reason).join(", ")}`);
  write("schedule", plan.join("; "));
  drawSpare(r);
  $("countdown").closest(".tile").classList.toggle("warn", r.paused || r.late > 30);
}

/** Which generations answer under a policy, and how many clients are kept where they are. */
function answering({ policy, live, held, pinned }) {
  const kept = held.length ? `, ${held.join(", ")} for suspects` : "";
  const most = pinned.length < KEPT ? "" : "at least ";
  const pins = pinned.length ? `; ${most}${counted(pinned.length, "client")} pinned` : "";
  return `${policy}: ${live.join(", ")} answer${kept}${pins}`;
}

function drawAnswers(t) {
  write("rate", `${t.per_second < 10 ? short(t.per_second) : Math.round(t.per_second).toLocaleString("en")} / s`);
  const parts = [`${counted(t.answers, "answer")} since the start`];
  if (isNumber(t.p50)) parts.push(`now p50 ${span(t.p50)}, p99 ${span(t.p99)}`);
  if (t.wrong_tokens) parts.push(counted(t.wrong_tokens, "wrong admin token"));
  write("traffic", parts.join("; "));
}

function drawSpare(r) {
  const warm = r.spare !== null;
  const last = state.alarms.findLast((alarm) => isNumber(alarm.retry));
  write("spare", warm ? `${r.spare} is warm` : r.failures ? "none" : "being made");
  $("spare").classList.add("words");
  let more = warm ? "made, gated, verified and loaded" : "the live one stays until it is ready";
  if (r.failures) {
    more = `${counted(r.failures, "failure")} in a row`;
    const wait = last ? last.time + last.retry - (state.now + since()) : 0;
    if (!warm) more += wait > 0 ? `; next try in ${clock(Math.ceil(wait))}` : "; trying again";
  }
  if (r.late > 1) more += `; a rotation is late by ${clock(r.late)}`;
  write("spare-more", more);
  $("spare").closest(".tile").classList.toggle("alert", r.failures > 0);
}

function drawAlarms() {
  const alarms = state.alarms.slice().reverse();
  const item = (alarm) => el("li", { class: alarm.kind === "late" ? "" : "strong" },
    moment(alarm.time), el("span", { class: "kind" }, title(alarm)), String(alarm.text ?? ""));
  const few = el("ul", { class: "list" }, ...alarms.slice(0, 4).map(item));
  const opened = $("alarm-list").querySelector("details")?.open;
  const focused = $("alarm-list").contains(document.activeElement);
  const more = alarms.length > 4
    ? el("details", opened ? { class: "more", open: "" } : { class: "more" },
      el("summary", {}, `${alarms.length - 4} earlier`),
      el("ul", { class: "list" }, ...alarms.slice(4).map(item)))
    : null;
  $("alarm-list").replaceChildren(...(alarms.length ? [few, more].filter(Boolean)
    : [empty("None since this service started.")]));
  if (focused) $("alarm-list").querySelector("summary")?.focus();
}

function title(alarm) {
  if (alarm.kind === "refused") return `refused: ${alarm.reason}`;
  if (alarm.kind === "generator") return "no spare";
  return String(alarm.kind);
}

function drawRejected() {
  const rows = state.rejected.slice(-50).reverse().map((candidate) => [
    [String(candidate.generation), "number"], moment(candidate.time),
    el("ul", { class: "checks" }, ...list(candidate.gates).map((gate) => el("li", {},
      el("b", {}, gateTitle(gate)), ": ", String(gate.reason || "failed"),
      isNumber(gate.value) && isNumber(gate.limit)
        ? ` (${gateNumber(gate, gate.value)}, limit ${gateNumber(gate, gate.limit)})` : "")))]);
  $("rejected-list").replaceChildren(rows.length
    ? table("cards", "A rejection costs a retry, never an outage. Newest first.",
      ["for generation", "when", "gates that it failed"], rows)
    : empty("None since this service started."));
}

function drawHistory(first = false) {
  const swaps = state.history.length > 1 || state.history.some((r) => r.reasons);
  $("no-rotations").hidden = swaps;
  const planned = state.rotation.every || state.rotation.queries;
  write("no-rotations", "No rotation yet. The next generation goes live "
    + (planned ? "when it is due, or when you press “Rotate now”." : "when you press “Rotate now”."));
  document.querySelector(".labels").hidden = $("timeline-note").hidden = !state.history.length;
  drawTimeline(state.history, state.rotation.generation, first);
  drawChart(state.history);
}

function drawAll(first) {
  for (const id of ["now", "watched", "redteam"]) $(id).hidden = false;
  for (const id of ["alarms", "rotations", "rejected"]) $(id).hidden = Boolean(state.hidden);
  drawNow();
  drawClocks();
  drawAlarms();
  drawHistory(first);
  drawRejected();
  drawWatchedNote();
}

/** Tell a screen reader, but not more often than it can speak: then the latest is told. */
function announce(text, urgent = false) {
  const wait = urgent ? 0 : announced + 10000 - performance.now();
  clearTimeout(speaking);
  if (wait > 0) {
    speaking = setTimeout(announce, wait, text, true);
    return;
  }
  announced = performance.now();
  $("news").replaceChildren(el("span", {}, text));
}

async function readRedteam() {
  redteamSeen = state.redteam;
  try {
    const answer = await fetch("redteam", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    redteam = await answer.json();
  } catch {
    redteamSeen = undefined; // the next tick tries again
    return;
  }
  drawRedteam(redteam, state.rotation.generation);
}

// --- what happens -------------------------------------------------------------------------------

/** A stream begins before its status is taken: an event may be in both. */
const joined = (records, record) =>
  [...records.filter((r) => r.time !== record.time), record].slice(-KEPT);

const HEARD = {
  tick(fact) {
    const { latencies, ...rest } = fact;
    const before = state.rotation.generation;
    take(rest);
    let changed = before !== state.rotation.generation;
    for (const { generation, latency } of list(latencies)) {
      const record = state.history.findLast((r) => r.generation === generation);
      if (record) [record.latency, changed] = [latency, true];
    }
    if (changed) drawHistory();
    if (state.history.at(-1)?.generation < state.rotation.generation) again(); // events were missed
    drawNow();
  },
  swap(record) {
    state.history = joined(state.history, record);
    state.now = record.time;
    Object.assign(state.rotation, { generation: record.generation, age: 0, late: 0, due: [],
      countdown: state.rotation.every, spare: null, failures: 0 });
    state.at = performance.now() / 1000;
    drawNow();
    drawClocks();
    drawHistory();
    drawLater(redteam, record.generation);
    announce(`Generation ${record.generation} is live.`);
    settle(`Generation ${record.generation} is live.`);
  },
  spare(record) {
    state.rotation.spare = record.generation;
    drawNow();
  },
  rejected(record) {
    state.rejected = joined(state.rejected, record);
    drawRejected();
  },
  paused: () => pausedNow(true),
  resumed: () => pausedNow(false),
};

for (const name of ["alarm", "refused", "failed"]) {
  HEARD[name] = (record) => {
    state.alarms = joined(state.alarms, record);
    if (name !== "alarm") Object.assign(state.rotation, { spare: null, failures: state.rotation.failures + 1 });
    drawAlarms();
    drawNow();
    announce(`Alarm, ${title(record)}: ${record.text}`, true);
    if (name !== "alarm") settle(`Refused: ${record.text}`, true);
  };
}

function pausedNow(paused) {
  state.rotation.paused = paused;
  drawNow();
  drawClocks();
}

// --- the stream ---------------------------------------------------------------------------------

const linked = () => $("link").classList.contains("on");

function link(on, text) {
  $("link").className = `pill ${on ? "on" : "off"}`;
  document.body.classList.toggle("stale", !on);
  write("link", text);
}

function listen() {
  const own = new EventSource("events");
  source = own;
  own.addEventListener("status", (event) => {
    const first = state === null;
    take(JSON.parse(event.data));
    [waits, heard] = [1, performance.now() / 1000];
    link(true, "connected");
    drawAll(first);
    drawLater(redteam, state.rotation.generation);
  });
  for (const [name, act] of Object.entries(HEARD)) {
    own.addEventListener(name, (event) => {
      heard = performance.now() / 1000;
      if (state) act(JSON.parse(event.data));
    });
  }
  own.onerror = () => source === own && lost();
}

/** Say that the connection is lost and open another, rarer and rarer. */
function lost() {
  source.close();
  heard = 0;
  link(false, "connection lost, trying again");
  setTimeout(listen, 1000 * waits);
  waits = Math.min(15, 2 * waits);
}

/** Events were missed: a new stream begins with the whole state. */
function again() {
  const now = performance.now() / 1000;
  if (now - reread < 5) return;
  reread = now;
  source.close();
  listen();
}

drawClocks();
setInterval(drawClocks, 250);
new ResizeObserver(() => state && drawChart(state.history)).observe($("rotations"));
$("older").addEventListener("click", () => {
  shown += STEP;
  drawHistory();
});
listen();
