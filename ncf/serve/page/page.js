"use strict";
// The page of the service: asks the endpoints under /v1 and shows what they return.

const $ = (id) => document.getElementById(id);
const chosen = new Map(); // id -> name, of the history that is ticked
let model = { titles: false };

async function call(path, body) {
  const headers = { "content-type": "application/json" };
  if ($("key").value) headers.authorization = `Bearer ${$("key").value}`;
  const answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  const content = await answer.json().catch(() => ({ detail: answer.statusText }));
  if (answer.status === 401) $("key-row").hidden = false;
  if (!answer.ok) throw new Error(content.detail || answer.statusText);
  return content;
}

// A line of a list of items to tick.
function ticked(name, on, changed) {
  const entry = element("li");
  const box = element("input");
  box.type = "checkbox";
  box.checked = on;
  box.addEventListener("change", () => changed(box.checked));
  const row = element("label");
  row.append(box, element("span", name));
  entry.append(row);
  return entry;
}

function showHistory(entries) {
  $("history-title").textContent = entries.length ? `History: ${entries.length.toLocaleString()}` : "History";
  show($("history"), entries.map((name) => element("li", name)));
}

const names = (answer) => answer.items.map((id, i) => (answer.titles ? answer.titles[i] : String(id)));

function show(list, entries) {
  list.replaceChildren(...entries);
}

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// An id as the data has it: a number where the model's ids are numbers.
function rawId(text) {
  return model.whole_numbers && /^-?\d+$/.test(text) ? Number(text) : text;
}

function tick(id, name, on) {
  if (on) chosen.set(id, name);
  else chosen.delete(id);
  show($("chosen"), [...chosen].map(([key, label]) => ticked(label, true, () => tick(key, label, false))));
}

let asked = 0;
async function find() {
  const mine = ++asked;
  const query = $("find").value.trim();
  if (!query) return show($("found"), []);
  const answer = await call(`v1/items?limit=20&query=${encodeURIComponent(query)}`);
  if (mine !== asked) return; // a later letter was typed
  show($("found"), names(answer).map((name, i) => {
    const id = answer.items[i];
    return ticked(name, chosen.has(id), (on) => tick(id, name, on));
  }));
}

function entryOf(user, id, name, score) {
  const entry = element("li");
  const row = element("div", undefined, "item");
  row.append(element("span", name, "name"), element("span", Number.isInteger(score) ? String(score) : score.toFixed(3), "score"));
  entry.append(row);
  if (user !== undefined && model.seen) {
    const why = element("button", "Why?");
    why.type = "button";
    why.setAttribute("aria-label", `Why ${name}?`);
    why.setAttribute("aria-expanded", "false");
    const reasons = element("p", undefined, "why");
    reasons.hidden = true;
    why.addEventListener("click", async () => {
      if (!reasons.textContent) {
        try {
          const answer = await call("v1/explain", { user, item: id, k: 3, titles: model.titles });
          reasons.textContent = answer.items.length ? `Because of ${names(answer).join("; ")}` : "Nothing of the history speaks for it.";
        } catch (error) {
          reasons.textContent = error.message;
        }
      }
      reasons.hidden = !reasons.hidden;
      why.setAttribute("aria-expanded", String(!reasons.hidden));
    });
    row.append(why);
    entry.append(reasons);
  }
  return entry;
}

async function recommend(event) {
  event.preventDefault();
  $("message").textContent = "";
  const byUser = document.querySelector("input[name=kind]:checked").value === "user";
  const text = $("user").value.trim();
  try {
    if (byUser && !text) throw new Error("Type a user id.");
    if (!byUser && !chosen.size) throw new Error("Find items and tick at least one.");
    const user = byUser ? rawId(text) : undefined;
    const body = { k: Number($("k").value) || 10, titles: model.titles };
    if (byUser) body.user = user;
    else body.history = [...chosen.keys()];
    const only = $("only").value.trim();
    if (only) {
      body.items = (await call(`v1/items?limit=1000&query=${encodeURIComponent(only)}`)).items;
      if (!body.items.length) throw new Error(`No item has “${only}” in its title or id.`);
    }
    $("about").textContent = "Asking…";
    const began = performance.now();
    const answer = await call("v1/recommend", body);
    const took = performance.now() - began;
    const known = byUser && answer.source === "model";
    if (byUser && model.seen && known) {
      const past = await call("v1/history", { user, titles: model.titles });
      showHistory(names(past));
    } else {
      showHistory(byUser ? [] : [...chosen.values()]);
    }
    const sources = {
      model: "from the model",
      history: "from the history, by fold-in",
      popularity: "by popularity, since the model has no such user",
    };
    $("about").textContent = `${answer.items.length} items ${sources[answer.source]}; ${took.toFixed(1)} ms; model ${answer.model}`;
    show($("list"), names(answer).map((name, i) => entryOf(known ? user : undefined, answer.items[i], name, answer.scores[i])));
  } catch (error) {
    $("message").textContent = error.message;
    $("about").textContent = "";
    show($("list"), []);
    showHistory([]);
  }
}

async function begin() {
  for (const choice of document.querySelectorAll("input[name=kind]")) {
    choice.addEventListener("change", () => {
      $("by-user").hidden = choice.value !== "user";
      $("by-history").hidden = choice.value === "user";
    });
  }
  $("find").addEventListener("input", () => find().catch((error) => { $("message").textContent = error.message; }));
  $("find").addEventListener("keydown", (event) => { if (event.key === "Enter") event.preventDefault(); });
  $("key").addEventListener("change", describe);
  $("ask").addEventListener("submit", recommend);
  await describe();
}

async function describe() {
  try {
    model = await call("v1/model");
    $("model").textContent = `${model.name} ${model.model}: ${model.num_users.toLocaleString()} users, ${model.num_items.toLocaleString()} items`;
    $("message").textContent = "";
  } catch (error) {
    $("model").textContent = "The model cannot be described.";
    $("message").textContent = error.message;
  }
}

begin();
