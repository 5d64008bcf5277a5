// Admin calls. The token lives in `token`, a variable of this page, and nowhere else.
let wanted = null; // the call that the dialog is open for
let pending = false; // a rotation was asked for and its answer is still to come

const CALLS = {
  rotate: { path: "admin/rotate", doing: "Rotating…", text: "Rotating needs the admin token." },
  pause: { path: "admin/pause", doing: "Pausing…", text: "Pausing needs the admin token." },
  watch: { path: "alarms", method: "GET", doing: "Reading…", text: "What monitors see needs the admin token: no client may read it." },
  resume: { path: "admin/resume", doing: "Resuming…", text: "Resuming needs the admin token." },
};

function say(text, bad = false) {
  write("said", text);
  $("said").className = bad ? "fail" : "";
}

function askToken(call) {
  wanted = call;
  write("ask-text", CALLS[call].text);
  write("ask-wrong", "");
  $("token").value = "";
  $("ask").showModal();
  $("token").focus();
}

async function send(call) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const options = { method: CALLS[call].method ?? "POST", headers, cache: "no-store", credentials: "omit", redirect: "error" };
  const response = await fetch(CALLS[call].path, options);
  const body = await response.json().catch(() => ({}));
  return { status: response.status, body, error: String(body.error ?? `HTTP ${response.status}`) };
}

function tell(call, { status, body, error }) {
  const done = status === 202 && state.rotation.generation > body.live; // in the meantime
  if (done) [status, body] = [200, state.rotation];
  pending = status === 202;
  if (call === "watch") return status === 200 ? takeWatched(body) : say(`Refused: ${error}`, true);
  if (status === 200 && call === "rotate") say(`Generation ${body.generation} is live.`);
  else if (status === 200) say(call === "pause" ? "Rotation is paused." : "Rotation goes on.");
  else if (status === 202) say("Not yet: no spare was ready in time. It rotates as soon as one is.");
  else say(`Refused: ${error}`, true);
}

/** Say how a rotation that was put off has ended. */
function settle(text, bad = false) {
  if (pending) say(text, bad);
  pending = false;
}

/** Make a call; ask for the token where there is none, or where it was wrong. */
async function call(name) {
  if (!token && state.admin) return askToken(name);
  const buttons = [$("rotate"), $("pause"), $("watch"), $("go")];
  buttons.forEach((button) => button.setAttribute("aria-busy", "true"));
  say(CALLS[name].doing);
  try {
    const answer = await send(name);
    if (answer.status === 401) {
      token = "";
      say("");
      if (!$("ask").open) askToken(name);
      write("ask-wrong", "This token is wrong. The attempt was logged.");
      $("token").select();
    } else {
      tell(name, answer);
      $("ask").close();
    }
  } catch {
    token = "";
    $("ask").close();
    say("No answer: the service cannot be reached, or the token has characters that none has.", true);
  } finally {
    buttons.forEach((button) => button.removeAttribute("aria-busy"));
    $("forget").hidden = !token;
  }
}

const idle = (button) => !button.hasAttribute("aria-busy");
$("rotate").addEventListener("click", (event) => idle(event.currentTarget) && call("rotate"));
$("pause").addEventListener("click", (event) =>
  idle(event.currentTarget) && call(state.rotation.paused ? "resume" : "pause"));
$("watch").addEventListener("click", (event) => idle(event.currentTarget) && call("watch"));
$("cancel").addEventListener("click", () => $("ask").close());
$("ask").addEventListener("close", () => { $("token").value = ""; });
$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!idle($("go"))) return;
  token = $("token").value.trim();
  if (token) call(wanted);
});
$("forget").addEventListener("click", () => {
  token = "";
  $("forget").hidden = true;
  takeWatched(null);
  say("The token is forgotten.");
  $("rotate").focus();
});
