// --- history: shown again, compared, shared --------------------------------------------------------

let other = null; // of past, what the picture that is shown is compared with

function showPast() {
  $("history").replaceChildren(...past.map(one => {
    const again = element("button", { type: "button", className: "again", aria: { label: say("again")(one.prompt) } },
      element("img", { src: `data:image/png;base64,${one.png}`, alt: "" }));
    again.onclick = () => restore(one);
    const star = element("button", { type: "button", className: "star", textContent: one.star ? "★" : "☆", aria: { label: say("star"), pressed: one.star } });
    star.onclick = () => { one.star = !one.star; keepPast(); showPast(); };
    const beside = element("button", { type: "button", className: "with", textContent: "⇄", disabled: one === current, aria: { label: say("compare")(one.prompt), pressed: one === other } });
    beside.onclick = () => { compare(one === other ? null : one, $("beside").checked); showPast(); };
    return element("li", {}, again, element("div", {}, beside, star));
  }));
}

function restore(one) {
  setAsked(one.asked, one.pictures, one.name);
  pinNouns(one);
  show(one);
}

// The form, and what changes of words keep, as a request had them.
function setAsked(asked, pictures, name) {
  const { job, edit } = asked;
  fill({ ...job, prompt: edit?.to ?? job.prompt });
  if (asked.model && [...$("model").options].some(option => option.value === asked.model)) $("model").value = asked.model;
  base = { prompt: job.prompt, seed: job.seed };
  scales = { ...edit?.reweight };
  noMask();
  source = pictures ? { name, content: pictures.begun } : null;
  if (source) $("strength").value = job.source.strength;
  $("only-masked").checked = Boolean(job.source?.only_masked);
  if (pictures?.mask) setMask(pictures.mask);
  showBegun();
}

function keepPast() { // what the browser has room for, the stars first
  const kept = [...past.filter(one => one.star), ...past.filter(one => !one.star)];
  for (let count = kept.length; count >= 0; count = count > 8 ? count - 8 : count - 1) {
    try { localStorage.setItem("past", JSON.stringify(kept.slice(0, count))); return; } catch { /* too much */ }
  }
}

function compare(one, beside = false) {
  if (one) tell("");
  other = one;
  $("beside").checked = beside;
  showCompared();
}

function showCompared() {
  const beside = other !== null && $("beside").checked;
  $("compared").hidden = $("other").hidden = other === null;
  $("stage").classList.toggle("beside", beside);
  $("split-of").hidden = beside;
  $("stage").style.setProperty("--split", `${$("split").value}%`);
  shape();
  if (other === null) return;
  $("other").src = `data:image/png;base64,${other.png}`;
  $("other").alt = say("result")(other.prompt);
  const rows = differences(current, other).map(cells => element("tr", {}, ...cells.map((cell, index) => element(index ? "td" : "th", { textContent: cell, scope: index ? "" : "row" }))));
  const head = element("tr", {}, element("td"), ...["one", "two"].map(name => element("th", { textContent: say(name), scope: "col" })));
  $("differences").replaceChildren(element("thead", {}, head), element("tbody", {}, ...(rows.length ? rows : [element("tr", {}, element("td", { colSpan: 3, textContent: say("same") }))])));
}

// Settings in which two runs differ, and how much of the attention each word has in both.
function differences(one, two) {
  const text = value => (value === undefined || value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));
  const changes = run => ({ ...run.job, ...(run.asked?.edit && { edit: { from: run.asked.job.prompt, ...run.asked.edit.reweight } }) });
  const [a, b] = [changes(one), changes(two)];
  const rows = [...new Set([...Object.keys(a), ...Object.keys(b)])].filter(name => text(a[name]) !== text(b[name])).map(name => [name.replaceAll("_", " "), text(a[name]), text(b[name])]);
  const shares = run => {
    const found = {};
    for (const word of run.words) if (!word.special) found[word.word] = (found[word.word] ?? 0) + 100 * word.share;
    return found;
  };
  const [s, t] = [shares(one), shares(two)];
  const percent = value => (value === undefined ? "–" : `${value.toFixed(1)} %`);
  for (const word of new Set([...Object.keys(s), ...Object.keys(t)])) if (percent(s[word]) !== percent(t[word])) rows.push([`“${word}”`, percent(s[word]), percent(t[word])]);
  return rows;
}

function asLink({ job, edit, model }) {
  const text = JSON.stringify({ job, edit, model });
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return `${location.origin}${location.pathname}#run=${btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}

function fromLink(text) {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), c => c.charCodeAt(0));
  const { job, edit, model } = JSON.parse(new TextDecoder().decode(bytes));
  if (typeof job?.prompt !== "string" || job.source) throw new Error("no job");
  return { job, edit, model };
}

$("split").addEventListener("input", () => $("stage").style.setProperty("--split", `${$("split").value}%`));
$("beside").addEventListener("change", showCompared);
$("no-other").addEventListener("click", () => { compare(null); showPast(); });
$("share").addEventListener("click", async () => {
  if (current.asked.job.source) { tell(say("pixels"), true); return; }
  $("link").value = asLink(current.asked);
  $("link-shown").hidden = false;
  $("link").select();
  try { await navigator.clipboard.writeText($("link").value); tell(say("copied")); } catch { tell(say("here")); }
});
