"use strict";
// Titles and attributes come from a catalogue: they are set as text, never as HTML.

const part = (id) => document.getElementById(id);
const COUNT = 24;
const NEAR = 0.98; // cosine of near-duplicates
let token = ""; // in memory only
let names = {}; // of the two sides: model and generation
let byText = true; // whether the server has a text tower
let lastAsked = null; // asks the same again, when a filter changes
let latest = 0; // number of the newest question: answers to older ones are dropped

function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

async function send(address, request = {}) {
  const headers = { ...request.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(address, { ...request, headers });
  if (response.status === 401) {
    part("login").hidden = false;
    part("token").focus();
    throw new Error(token ? "The token is wrong." : "");
  }
  return response;
}

async function read(address, request) {
  const response = await send(address, request);
  const body = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (!response.ok) throw new Error(body.error);
  return body;
}

function picture(id, title) {
  const image = make("img");
  const address = `images/${encodeURIComponent(id)}`;
  image.alt = title || id;
  image.loading = "lazy";
  image.addEventListener("error", () => image.replaceWith(make("div", "blank")), { once: true });
  if (!token) {
    image.src = address;
    return image;
  }
  send(address) // a picture's own request carries no token
    .then((response) => (response.ok ? response.blob() : Promise.reject()))
    .then((blob) => { image.src = URL.createObjectURL(blob); })
    .catch(() => image.replaceWith(make("div", "blank")));
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  return image;
}

function attributes(values, others) {
  const row = make("div", "attributes");
  for (const [name, value] of Object.entries(values)) {
    const same = others && others[name] === value;
    const tag = make("span", same ? "shared" : "", value);
    tag.title = same ? `${name}: ${value}, as the item that was asked for` : `${name}: ${value}`;
    row.append(tag);
  }
  return row;
}

function why(values, others) {
  const same = others ? Object.keys(values).filter((name) => others[name] === values[name]) : [];
  return same.length ? [make("span", "why", `Same ${same.join(", ")}`)] : [];
}

function options() {
  const query = new URLSearchParams({ k: COUNT });
  for (const choice of part("filters").querySelectorAll("select")) {
    if (choice.value) query.append("where", `${choice.name}=${choice.value}`);
  }
  for (const range of part("filters").querySelectorAll(".range")) {
    const [low, high] = [...range.querySelectorAll("input")].map((input) => input.value.trim());
    if (low || high) query.append("where", `${range.dataset.name}=${low}..${high}`);
  }
  const filters = query.getAll("where").length;
  if (part("group").value) query.set("group_by", part("group").value);
  if (Number(part("diversity").value) > 0) query.set("diversity", part("diversity").value);
  if (part("collapse").checked) query.set("collapse", NEAR);
  part("chosen").textContent = filters ? ` (${filters} set)` : "";
  return query;
}

function say(text, failed = false) {
  part("status").textContent = text;
  part("status").className = failed ? "error" : "";
}

function card(item, own, elsewhere) {
  const button = make("button", "card");
  button.type = "button";
  const alone = elsewhere && !elsewhere.has(item.id);
  if (alone) button.classList.add("alone");
  const alike = item.collapsed ? `, and ${item.collapsed} nearly the same` : "";
  button.append(
    picture(item.id, item.title),
    make("span", "title", item.title || item.id),
    make("span", "score", item.score.toFixed(3) + alike + (alone ? ", on this side only" : "")),
    ...why(item.attributes, own),
    attributes(item.attributes, own),
  );
  button.addEventListener("click", () => similar(item.id));
  const place = make("li");
  place.append(button);
  return place;
}

function fill(answers, own) {
  const shown = answers.map((answer) => new Set(answer.items.map((item) => item.id)));
  document.querySelectorAll(".side").forEach((side, k) => {
    side.hidden = k >= answers.length;
    if (side.hidden) return;
    const name = side.querySelector(".side-name");
    name.hidden = answers.length === 1;
    const place = ["active", "candidate"][k];
    name.replaceChildren(names[place] || place, " ", make("small", "", answers[k].generation));
    const elsewhere = answers.length === 2 ? shown[1 - k] : null;
    side.querySelector(".found").replaceChildren(...answers[k].items.map((item) => card(item, own, elsewhere)));
  });
  part("sides").className = answers.length === 2 ? "both" : "";
  if (answers.length === 2) {
    const both = [...shown[0]].filter((id) => shown[1].has(id)).length;
    return `${both} of ${Math.max(shown[0].size, shown[1].size)} items on both sides`;
  }
  const hidden = answers[0].collapsed ? `, ${answers[0].collapsed} near-duplicates hidden` : "";
  const order = Number(part("diversity").value) > 0 ? "near and unlike each other" : "nearest first";
  return answers[0].items.length ? `${answers[0].items.length} items, ${order}${hidden}` : "No item fits these filters.";
}

async function compared() {
  part("comparison").hidden = !part("both").checked;
  if (!part("both").checked) return;
  const found = await read("compare");
  const asked = Object.values(found.queries).reduce((sum, count) => sum + count, 0);
  const sides = ["active", "candidate"].map((side) => `${names[side] || side} ${found[side].p50_ms.toFixed(1)} ms`);
  part("comparison").textContent = asked
    ? `Of ${asked} live queries: overlap@${found.k} ${found.overlap.toFixed(2)}, rank-biased overlap ` +
      `${found.rank_biased_overlap.toFixed(2)}; median ${sides.join(", ")}`
    : "No live query was compared yet.";
}

// `ask(side)` returns an answer; `head` are the nodes that show what was asked for; `own` attributes to compare with.
async function show(ask, head, own) {
  const number = ++latest;
  lastAsked = () => show(ask, head, own);
  say("Searching …");
  try {
    const sides = part("both").checked ? ["active", "candidate"] : ["active"];
    const answers = await Promise.all(sides.map(ask));
    if (number !== latest) return;
    part("asked").replaceChildren(...head);
    part("asked").hidden = head.length === 0;
    say(fill(answers, own));
    await compared();
  } catch (error) {
    if (number === latest) say(error.message, true);
  }
}

function address(path, side) {
  return `${path}&${options()}${side === "active" ? "" : `&side=${side}`}`;
}

async function similar(id) {
  let item;
  try {
    item = await read(`items/${encodeURIComponent(id)}`);
  } catch (error) {
    say(error.message, true);
    return;
  }
  history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  const text = make("div");
  text.append(make("div", "title", item.title || id), make("div", "score", id), attributes(item.attributes));
  window.scrollTo({ top: 0 });
  const ask = (side) => read(address(`similar?item=${encodeURIComponent(id)}`, side));
  await show(ask, [picture(id, item.title), text], item.attributes);
}

function byPhoto(file) {
  const image = make("img");
  image.src = URL.createObjectURL(file);
  image.alt = file.name;
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  const request = { method: "POST", headers: { "Content-Type": type }, body: file };
  return show((side) => read(address("search?", side), request), [image, make("div", "title", file.name)]);
}

async function byWords(words) {
  const known = await send(`items/${encodeURIComponent(words)}`);
  if (known.ok) return similar(words);
  if (!byText) return say(`There is no item “${words}”, and this server has no model to search by words.`, true);
  const request = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ text: words }) };
  return show((side) => read(address("search?", side), request), [make("div", "title", `“${words}”`)]);
}

const again = () => lastAsked && lastAsked();

part("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = part("words").value.trim();
  if (words) byWords(words).catch((error) => say(error.message, true));
});
part("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = part("token").value.trim();
  part("token").value = "";
  part("login").hidden = true;
  start();
});
part("photo").addEventListener("change", (event) => {
  if (event.target.files.length) byPhoto(event.target.files[0]);
  event.target.value = "";
});
for (const id of ["group", "diversity", "collapse", "both"]) part(id).addEventListener("change", again);
part("diversity").addEventListener("input", () => { part("diversity-value").textContent = part("diversity").value; });
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) byPhoto(event.dataTransfer.files[0]);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input, select")) {
    event.preventDefault();
    part("words").focus();
  }
  const cards = [...document.querySelectorAll(".card")];
  const at = cards.indexOf(document.activeElement);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step && at >= 0 && cards[at + step]) cards[at + step].focus();
});

function choice(name, values) {
  const select = make("select");
  select.name = name;
  select.setAttribute("aria-label", name);
  select.append(new Option(`${name}: all`, ""), ...values.map((value) => new Option(value, value)));
  select.addEventListener("change", again);
  return select;
}

function range(name, [least, most]) {
  const box = make("span", "range", name);
  box.dataset.name = name;
  for (const [end, value] of [["from", least], ["to", most]]) {
    const input = make("input");
    Object.assign(input, { type: "number", step: "any", placeholder: value });
    input.setAttribute("aria-label", `${name}, ${end}`);
    input.addEventListener("change", again);
    box.append(input);
  }
  return box;
}

function about(ready) {
  const sides = { active: ready, ...(ready.candidate ? { candidate: ready.candidate } : {}) };
  names = Object.fromEntries(Object.entries(sides).map(([side, one]) => [side, one.model || side]));
  part("about").textContent = Object.entries(sides)
    .map(([side, one]) => `${ready.candidate ? `${side}: ` : ""}${one.items} items, generation ${one.generation}`)
    .join("; ");
  part("both-label").hidden = !ready.candidate;
  part("photo-label").hidden = !ready.image;
  byText = ready.text;
  if (!byText) part("words").placeholder = "The id of an item";
}

async function start() {
  try {
    about(await read("ready"));
    const found = await read("filters");
    part("filters").replaceChildren(
      ...Object.entries(found.choices).map(([name, values]) => choice(name, values)),
      ...Object.entries(found.ranges).map(([name, ends]) => range(name, ends)),
    );
    part("group").replaceChildren(new Option("item", ""), ...found.groups.map((name) => new Option(name, name)));
    part("more").open = window.innerWidth > 640; // a phone has no room for it at first
  } catch (error) {
    say(error.message, true);
    return;
  }
  if (location.hash.length > 1) await similar(decodeURIComponent(location.hash.slice(1)));
}
start();
