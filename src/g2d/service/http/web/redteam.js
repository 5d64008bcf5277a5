// The last red team's matrix: the attacker's best of each family, and every row.
const rate = (r) => `${percent(r.value)} [${(100 * r.low).toFixed(1)}–${(100 * r.high).toFixed(1)}]`;

const CHAINS = ["generated", "unrotated", "frozen", "retrained", "soup", "noise"];

function ranges(numbers) {
  const parts = [];
  for (const n of numbers) {
    const last = parts.at(-1);
    if (last && last[1] === n - 1) last[1] = n;
    else parts.push([n, n]);
  }
  return parts.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(", ");
}

/** A cell of the matrix; the stronger its colour, the worse for the defender. */
function bestCell(found) {
  if (!found) return ["–", "none"];
  const whole = (share) => (100 * share).toFixed(0);
  const cell = el("span", {}, `${whole(found.value)} %`, el("small", {},
    ` ${whole(found.low)}–${whole(found.high)}, n = ${found.n}`));
  if (!isNumber(found.harm)) return [cell, ""];
  const harm = Math.min(1, Math.max(0, found.harm));
  cell.style.setProperty("--h", harm);
  return [cell, "heat"];
}

function banners(found) {
  const parts = [];
  if (found.quick) {
    parts.push(el("p", { class: "banner" }, el("strong", {}, "Smoke test, not evidence. "),
      "A quick run with tiny budgets: quote no number from it."));
  }
  if (found.distrust) {
    parts.push(el("p", { class: "banner bad" }, el("strong", {},
      `${counted(found.distrust, "sanity check")} did not pass or could not be run. `),
    "Distrust these numbers until that is explained."));
  }
  return parts;
}

function drawRedteam(found, live) {
  const command = el("code", {}, "g2d attack VAULT");
  if (!found || !found.rows) {
    const why = found?.error ? el("p", {}, `The results cannot be read: ${found.error}`) : null;
    $("redteam-body").replaceChildren(el("div", { class: "empty" }, why,
      "No results yet. ", command, " attacks this vault, and its matrix then appears here."));
    return;
  }
  const at = Date.parse(found.created) / 1000;
  const what = found.generations.length
    ? `on ${found.generations.length === 1 ? "generation" : "generations"} ${ranges(found.generations)}`
    : found.hidden ? "on generations that are not told" : `on ${found.service ?? "no generation"}`;
  const about = el("p", { class: "note" }, `${found.task}, measured `, moment(at),
    ` ${what}: at most ${counted(found.n, "test example")}, ε = ${short(found.eps)}. `,
    el("strong", {}, "It says nothing about generations that came later."), " ",
    el("span", { id: "later" }));
  const open = document.querySelector("#redteam details")?.open;
  const more = el("details", open ? { class: "more", open: "" } : { class: "more" },
    el("summary", {}, `All ${counted(found.rows.length, "row")}`));
  const fill = () => more.open && !more.querySelector("table") && more.append(everyRow(found.rows));
  more.addEventListener("toggle", fill);
  fill();
  $("redteam-body").replaceChildren(about, ...banners(found), bestTable(found.best), more);
  drawLater(found, live);
}

/** Say whether the live generation was attacked at all. */
function drawLater(found, live) {
  if (!found?.rows) return;
  write("later", live > Math.max(...found.generations, 0)
    ? `Generation ${live}, live now, is not among them.` : "");
}

function bestTable(best) {
  const columns = CHAINS.filter((name) => best.some((line) => line.cells[name]));
  const titles = best.map((line, i) => (line.title === best[i - 1]?.title ? "" : line.title));
  return table("cards red", "What the attacker wins, in percent with the 95 % interval: attack success"
    + " rate unless the line says otherwise. Of each family the line that wins most from the generated"
    + " chain, and the one that wins most among those tried on a frozen model too. Frozen never changes;"
    + " retrained, soup and noise are rivals.", ["threat", ...columns], best.map((line, i) => [
    [el("span", {}, titles[i] ? el("small", {}, titles[i]) : null, line.name), "threat"],
    ...columns.map((name) => bestCell(line.cells[name]))]));
}

function everyRow(rows) {
  return table("cards all", "Every row; a row without a value says nothing about the defence.",
    ["threat", "target", "attack", "metric", "value [95 %]", "n"], rows.map((row) => [
      row.threat, row.target, row.attack, row.metric,
      [row.value ? rate(row.value) : row.status, "number"], row.value ? String(row.value.n) : "–"]));
}
