// --- begin -----------------------------------------------------------------------------------------

$("form").addEventListener("submit", event => { event.preventDefault(); paint(); });
$("prompt").addEventListener("keydown", event => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); paint(); } });
$("stop").addEventListener("click", stop);
$("language").addEventListener("click", () => speak(language === "en" ? "zh" : "en"));

// What a link brings is shown and not painted: whoever opened it has not asked for that yet.
function openLink() {
  const asked = new URLSearchParams(location.hash.slice(1)).get("run");
  if (location.hash) history.replaceState(null, "", location.pathname);
  if (!asked) return;
  try {
    const found = fromLink(asked);
    setAsked(found);
    linked = found;
    tell(say("linked"));
  } catch { tell(say("unread"), true); }
}

async function begin() {
  if (token) sessionStorage.setItem("token", token);
  try { past = (JSON.parse(localStorage.getItem("past")) ?? []).filter(one => one.asked); } catch { past = []; }
  speak(localStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"));
  if (past.length) show(past[0]);
  const answer = await fetch("api/choices", { headers: headers() }).catch(() => null);
  if (!answer?.ok) { tell(answer ? (await answer.json()).error.what : say("lost"), true); return; }
  const choices = await answer.json();
  const option = (value, name = value) => element("option", { value, textContent: name });
  $("model").replaceChildren(...choices.models.map(name => option(name)));
  $("model").value = choices.model;
  $("method").replaceChildren(option("", say("auto")), ...choices.methods.map(name => option(name)));
  $("schedule").replaceChildren(option("", say("auto")), ...choices.schedules.map(name => option(name)));
  for (const [id, names] of [["lora", choices.loras], ["embedding", choices.embeddings]]) {
    $(id).replaceChildren(option("", say("choose")), ...names.map(name => option(name)));
    $(id).disabled = names.length === 0;
  }
  $("none-here").hidden = choices.loras.length + choices.embeddings.length > 0;
  knowBreak = choices.region_dialects;
  for (const each of document.querySelectorAll("a.book")) each.hidden = !choices.book;
  $("no-book").hidden = choices.book;
  $("steps").placeholder = choices.steps;
  $("guidance").placeholder = choices.guidance_scale;
  [$("width").placeholder, $("height").placeholder] = choices.size;
  if (past.length) restore(past[0]);
  openLink();
  addEventListener("hashchange", openLink);
  document.body.dataset.ready = "yes";
}
begin();
