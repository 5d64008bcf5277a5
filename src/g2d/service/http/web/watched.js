// What monitors of queries see: read from `alarms` with the token, never from the stream, which
// clients may read. Drawn anew every few seconds while there is a token.
const LEVELS = ["critical", "warning", "notice"];
const AGAIN = 4000; // ms between looks
let watched = null, toggled = new Map(); // which levels somebody has opened or closed himself

function takeWatched(fresh) {
  watched = fresh;
  if (!watched) toggled = new Map();
  drawWatchedNote();
  $("watch").hidden = Boolean(watched);
  drawAlarmLine(watched);
  if (state?.hidden) drawHidden();
  $("watched-body").replaceChildren(...(watched ? drawWatched().filter(Boolean) : []));
  if (watched && !$("ask").open && $("said").textContent === CALLS.watch.doing) say("");
}

function drawWatchedNote() {
  if (!watched) {
    write("watched-note", "Alarms about queries and drift, the clients that they name and who is pinned"
      + " are for operators: a client that reads them learns what is noticed.");
    return;
  }
  const parts = [`${counted(watched.suppressed, "alarm")} held back for a cool-down`,
    `${counted(watched.withheld, "rotation")} not given to alarms of queries`];
  write("watched-note", `${parts.join("; ")}.`);
}

function drawWatched() {
  const alarms = list(watched.alarms).slice().reverse();
  const levels = LEVELS.map((level) => drawLevel(level,
    alarms.filter((alarm) => (alarm.level ?? "warning") === level)));
  const rows = Object.entries(watched.monitors ?? {}).map(([name, numbers]) => [name,
    Object.entries(numbers).map(([key, value]) => `${key.replaceAll("_", " ")} ${isNumber(value)
      ? Number.isInteger(value) ? value.toLocaleString("en") : short(value) : value}`).join(", ")]);
  return [drawGrowth(watched.growth), ...levels, drawPinned(watched.pinned),
    rows.length ? table("cards", "What monitors have counted since the start.", ["monitor", "numbers"], rows)
      : empty("No monitor is on: [monitors] watch names those that are.")];
}

/** Basins that nobody has seen: what the next rotations begin in, while there are any. */
function drawGrowth(growth) {
  if (!growth) return null;
  const due = isNumber(growth.due) ? `the next is due in about ${clock(growth.due)}` : "the next is begun";
  return el("p", { class: growth.unseen ? "" : "strong" },
    `${counted(growth.unseen, "basin")} that nobody has seen, of ${growth.wanted} to keep in stock`,
    growth.growing ? `; ${due} (${growth.done} of ${growth.total} trainings)` : "",
    growth.failed ? `; none could be grown: ${growth.failed}` : "", ".");
}

/** One level's alarms, newest first, with what was measured. */
function drawLevel(level, alarms) {
  if (!alarms.length) return null;
  const details = el("details", toggled.get(level) ?? level !== "notice" ? { open: "" } : {},
    el("summary", {}, `${level}: ${counted(alarms.length, "alarm")}`),
    el("ol", { class: "list" }, ...alarms.slice(0, 50).map((alarm) => el("li",
      { class: level === "critical" ? "strong" : level }, moment(alarm.time),
      el("span", { class: "kind" }, title(alarm)),
      alarm.client ? el("code", {}, String(alarm.client)) : null,
      ` ${alarm.text ?? ""} `, drawEvidence(alarm.evidence)))));
  details.addEventListener("toggle", () => toggled.set(level, details.open));
  return details;
}

function drawEvidence(evidence) {
  const facts = Object.entries(evidence ?? {});
  return facts.length ? el("span", { class: "note facts" },
    facts.map(([key, value]) => `${key} ${isNumber(value) ? short(value) : value}`).join(" · ")) : null;
}

/** Who stays with the generation that answers him, and what the policy knows of it. */
function drawPinned(pinned) {
  const all = Array.isArray(pinned) ? pinned
    : Object.entries(pinned ?? {}).map(([client, why]) => ({ client, why }));
  if (!all.length) return null;
  const keys = Object.keys(all[0]), names = keys.map((key) => (key === "seconds" ? "for another" : key));
  const text = (value, key) => (!isNumber(value) ? String(value ?? "–") : key === "seconds" ? span(value) : short(value));
  return table("cards", "Clients that are pinned: they stay with the generation that they know.",
    names, all.slice(0, 100).map((one) => keys.map((key) => text(one[key], key))));
}

setInterval(async () => {
  if (!token || !watched || document.hidden) return;
  const answer = await send("watch").catch(() => null);
  if (answer?.status === 200 && token) takeWatched(answer.body);
}, AGAIN);
