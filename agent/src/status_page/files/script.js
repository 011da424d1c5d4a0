// The status page. It asks the agent for JSON and shows it.
//
// Names and messages come from objects that others wrote. They reach the page
// as text nodes only (`append`, `textContent`), never as HTML: the page's
// Content-Security-Policy makes the browser refuse anything else.
"use strict";

/** Why one of two Services has what both want. */
const HOLDS = {
  "older": "is older",
  "undated": "counts as older, because it has no time of creation",
  "name-at-same-time": "was created at the same time and comes first by name",
  "name": "comes first by name",
};

/** Time between two questions for the state, in milliseconds. */
const PAUSE = 2000;
/** Syncs that the plot keeps while the page is open. */
const KEPT_SYNCS = 60;
/** Metrics that the table leaves out: they are for Prometheus. */
const NOT_COUNTERS = /_bucket$|_created$|_info$/;

const find = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

/** Makes an element. Children are elements, or text that stays text. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.map((child) => child ?? ""));
  return made;
}

function draw(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Fills a table. A heading is `name`, `#name` (numbers) or `-name` (left out on narrow screens). */
function fill(table, headings, rows) {
  const classes = headings.map((heading) => ({ "#": "number", "-": "wide" })[heading[0]] ?? "");
  const cells = (tag, row) => row.map((cell, column) => make(tag, { class: classes[column] }, cell));
  const names = headings.map((heading) => heading.replace(/^[#-]/, ""));
  table.replaceChildren(
    make("thead", {}, make("tr", {}, ...cells("th", names))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells("td", row)))),
  );
}

function tableOf(headings, rows) {
  const table = make("table");
  fill(table, headings, rows);
  return make("div", { class: "scroll" }, table);
}

async function ask(path, fields = {}, signal = undefined) {
  const response = await fetch(`page/${path}?${new URLSearchParams(fields)}`, { signal });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

const milliseconds = (microseconds) => {
  const value = microseconds / 1000;
  return value >= 1000 ? `${(value / 1000).toFixed(1)} s` : `${value.toFixed(value < 10 ? 2 : 0)} ms`;
};
/** The time since a moment in milliseconds since 1970, by this machine's clock. */
const since = (moment) => {
  const minutes = Math.max(0, Math.floor((Date.now() - moment) / 60_000));
  const [days, hours] = [Math.floor(minutes / 1440), Math.floor(minutes / 60) % 24];
  return `${days > 0 ? `${days} d ` : ""}${hours > 0 ? `${hours} h ` : ""}${minutes % 60} min`;
};
const withBrackets = (address) => (address.includes(":") ? `[${address}]` : address);
const place = (one) => `${withBrackets(one.address)}:${one.port}`;
const words = (code) => code.replaceAll("-", " ");

// ---- State, numbers and the plot of syncs ----

const syncs = new Map();
/** Numbers begin again when the agent does. */
const key = (sync) => `${sync.ended} ${sync.number}`;
/** What a sync was about, in a few words. */
const about = (sync) => sync.failure ?? sync.services.map((service) => service.name).join(", ");

async function follow() {
  try {
    const status = await ask("status");
    const before = newest()?.ended;
    for (const sync of status.syncs) syncs.set(key(sync), sync);
    showStatus(status);
    // What is on the screen follows the changes.
    if (before !== undefined && newest()?.ended !== before) await Promise.all([list(), showService()]);
  } catch (error) {
    showState("bad", `no answer from the agent: ${error.message}`);
  }
  setTimeout(followWhenSeen, PAUSE);
}

/** A page that nobody looks at asks nothing. */
function followWhenSeen() {
  if (!document.hidden) follow();
  else document.addEventListener("visibilitychange", follow, { once: true });
}

const ordered = () => [...syncs.values()].sort((one, other) => one.ended - other.ended);
const newest = () => ordered().at(-1);

function showState(kind, text) {
  const state = find("state");
  state.className = kind;
  state.textContent = text;
}

function showStatus(status) {
  document.title = `vmap-proxy on ${status.node}`;
  find("node").textContent = `${status.program} on node ${status.node}`;
  const failure = status.syncs[0]?.failure;
  if (failure !== undefined) showState("bad", "the last sync failed");
  else if (!status.ready) showState("warn", "waits for the first complete list");
  else if (status.pending) showState("warn", "a change waits to be programmed");
  else showState("good", "everything is programmed");

  const last = status.syncs[0];
  find("about").textContent = `Running for ${since(status.started)}, with the objects of ${status.source}. Digest of the state: ${status.digest}`;
  const numbers = [
    ["Services", status.services.toLocaleString("en")],
    ["Endpoints", status.endpoints.toLocaleString("en")],
    ["Last sync", last ? milliseconds(last.microseconds) : "none"],
    ["Refused by the kernel", status.quarantined.length],
    ["Too large", status.tooLarge],
    ["Contested frontends", status.contested.length],
  ];
  find("numbers").replaceChildren(...numbers.flatMap(([name, value]) => [make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))]));
  const trouble = find("trouble");
  const refused = status.quarantined.length > 0 ? `The kernel refuses: ${status.quarantined.join(", ")}. ` : "";
  const contested = status.contested.map((one) => `${one.service} does not get ${one.frontend}: ${one.holder} ${HOLDS[one.reason] ?? "has it"}. `);
  trouble.textContent = refused + contested.slice(0, 10).join("") + (failure ?? "");
  trouble.className = "bad";
  trouble.hidden = trouble.textContent === "";
  showSyncs();
}

function kindOf(sync) {
  if (sync.failure !== undefined) return "failed";
  return sync.repaired ? "compared" : "changes";
}

function showSyncs() {
  const all = ordered();
  while (all.length > KEPT_SYNCS) {
    const oldest = all.shift();
    syncs.delete(key(oldest));
  }
  plot(all);
  fill(find("syncs"), ["ended", "#duration", "#added", "#removed", "-kind", "Services"],
    all.toReversed().map((sync) => [
      new Date(sync.ended).toLocaleTimeString(),
      milliseconds(sync.microseconds),
      `+${sync.added}`,
      `-${sync.removed}`,
      kindOf(sync),
      about(sync),
    ]));
}

/** Bars, one a sync, the newest at the right. The scale is logarithmic: a first sync takes a thousand times longer. */
function plot(all) {
  const [left, width, bottom, height] = [60, 540, 150, 135];
  const logs = all.map((sync) => Math.log10(Math.max(sync.microseconds, 1)));
  const low = Math.floor(Math.min(...logs, 2));
  const high = Math.max(Math.ceil(Math.max(...logs, 0)), low + 1);
  const above = (log) => ((log - low) / (high - low)) * height;
  const marks = [];
  for (let log = low; log <= high; log += 1) {
    const y = bottom - above(log);
    const name = log >= 6 ? `${10 ** (log - 6)} s` : log >= 3 ? `${10 ** (log - 3)} ms` : `${10 ** log} µs`;
    marks.push(draw("line", { x1: left, x2: left + width, y1: y, y2: y }));
    marks.push(draw("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, name));
  }
  const step = width / Math.max(all.length, 16);
  const bars = all.map((sync, index) => {
    const tall = Math.max(above(logs[index]), 1);
    const x = left + width - (all.length - index) * step;
    const what = `${milliseconds(sync.microseconds)}, +${sync.added} -${sync.removed} elements, ${about(sync)}`;
    return draw("rect", { class: kindOf(sync), x: x + step * 0.1, y: bottom - tall, width: step * 0.8, height: tall },
      draw("title", {}, what));
  });
  find("plot").replaceChildren(...marks, ...bars);
}

// ---- The list of Services, in pages ----

/** Where each page so far began; the last is the one that is shown. */
let begins = [undefined];
let next;
let running;

async function list() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const search = find("search").elements.search.value.trim();
  const after = begins.at(-1);
  const fields = { ...(search && { search }), ...(after && { after }) };
  try {
    const page = await ask("services", fields, signal);
    next = page.next;
    showList(page.services);
  } catch (error) {
    if (!signal.aborted) find("page").textContent = error.message;
  }
}

function showList(services) {
  fill(find("services"), ["name", "-frontends", "#endpoints", "state"], services.map((service) => {
    const more = service.frontend_count - service.frontends.length;
    const button = make("button", { class: "name", type: "button" }, service.name);
    button.addEventListener("click", () => openService(service.name));
    return [
      button,
      service.frontends.join(" ") + (more > 0 ? ` and ${more} more` : ""),
      String(service.endpoint_count),
      make("span", { class: service.serves ? "good" : "bad" }, service.state),
    ];
  }));
  find("previous").disabled = begins.length === 1;
  find("next").disabled = next === undefined;
  find("page").textContent = services.length === 0 ? "no Service" : `page ${begins.length}`;
}

function turn(pages) {
  begins = pages;
  return list();
}

let typing;
find("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => turn([undefined]), 200);
});
find("search").addEventListener("submit", (event) => {
  event.preventDefault();
  turn([undefined]);
});
find("next").addEventListener("click", () => turn([...begins, next]));
find("previous").addEventListener("click", () => turn(begins.slice(0, -1)));

// ---- One Service ----

let opened;

async function openService(name) {
  opened = name;
  await showService();
  find("service").scrollIntoView({ block: "start" });
}

async function showService() {
  if (opened === undefined) return;
  const name = opened;
  const section = find("service");
  try {
    const { service, connections } = await ask("service", { name });
    if (name !== opened) return;
    const close = make("button", { type: "button" }, "Close");
    close.addEventListener("click", () => {
      opened = undefined;
      section.hidden = true;
    });
    section.replaceChildren(make("h2", {}, `Service ${name}`), ...partsOf(service, connections), close);
  } catch (error) {
    section.replaceChildren(make("p", { class: "bad" }, error.message));
  }
  section.hidden = false;
}

/** A Service: its state, its ports, and of each port frontends and endpoints. */
function partsOf(service, connections = []) {
  let counted = 0;
  const state = service.programmed ? make("p", { class: "good" }, "programmed") : make("p", { class: "bad" }, "not programmed");
  const ports = service.ports.flatMap(({ port, frontends, endpoints, endpointCount, unused, unusedCount, notes }) => [
    make("h3", {}, `Port ${port.portName ? `${port.portName}: ` : ""}${port.port}/${port.protocol}`),
    tableOf(["frontend", "state", "#endpoints", "#connections", "-because of"], frontends.map((one) => [
      one.address ? `${place(one)}/${one.protocol}` : `node port ${one.port}/${one.protocol}`,
      one.sourceRanges ? `${words(one.state)}, only ${one.sourceRanges.join(", ")}` : words(one.state),
      one.localEndpoints === undefined ? String(one.clusterEndpoints) : `${one.clusterEndpoints}, ${one.localEndpoints} here`,
      String(connections[counted++] ?? "-"),
      cause(one.cause),
    ])),
    ...endpointTables(endpoints, endpointCount, unused, unusedCount),
    decisions(notes),
  ]);
  return [state, decisions(service.reasons), ...ports];
}

function endpointTables(endpoints, count, unused, unusedCount) {
  const tables = [];
  if (count > 0) {
    tables.push(tableOf(["endpoint", "share", "-source it sees", "-where", "-because of"], endpoints.map((one) => [
      place(one), `1 in ${one.oneIn}`, one.masqueraded ? "this node" : "the client",
      one.local ? "on this node" : "elsewhere", one.cause ? cause(one.cause) : "",
    ])));
    tables.push(rest(count, endpoints, "endpoints"));
  }
  if (unusedCount > 0) {
    tables.push(tableOf(["endpoint that does not serve", "reason", "-because of"], unused.map((one) => [place(one), one.text, cause(one.cause)])));
    tables.push(rest(unusedCount, unused, "that do not serve"));
  }
  return tables;
}

const rest = (count, listed, what) => (count > listed.length ? make("p", { class: "faint" }, `and ${count - listed.length} more ${what}`) : "");

/** `Service shop/cart spec.externalTrafficPolicy=Local` */
function cause({ kind, namespace, name, field, value }) {
  const object = [namespace, name].filter(Boolean).join("/");
  return `${kind}${object ? ` ${object}` : ""} ${field}=${value}`;
}

function decisions(all) {
  if (all.length === 0) return "";
  return make("ol", {}, ...all.map((one) => make("li", {}, one.text, " ", make("span", { class: "faint" }, one.causes.map(cause).join("; ")))));
}

// ---- Explain ----

const FATES = {
  dnat: ["good", "goes to an endpoint"],
  drop: ["bad", "is dropped"],
  reject: ["bad", "is refused"],
  pass: ["warn", "is no frontend's: goes on untouched"],
  inconsistent: ["bad", "depends on chance: the rules are damaged"],
};

find("explain").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { from, to } = event.target.elements;
  const answer = find("answer");
  answer.replaceChildren(make("p", { class: "faint" }, "asking"));
  try {
    const { packet, service } = await ask("explain", { from: from.value, to: to.value });
    answer.replaceChildren(...(packet ? packetParts(packet) : [make("h3", {}, `Service ${service.namespace}/${service.name}`), ...partsOf(service)]));
  } catch (error) {
    answer.replaceChildren(make("p", { class: "bad" }, error.message));
  }
});

function packetParts(answer) {
  const { packet, service, path } = answer;
  const to = place({ address: packet.destination, port: packet.port });
  const [kind, fate] = FATES[answer.verdict];
  const port = service ? `, port ${service.portName || service.port} of Service ${service.namespace}/${service.name}` : "";
  const steps = path.map((step) => [step.hook, step.chain, step.rule, step.element].filter(Boolean).join("  ")).join("\n");
  return [
    make("p", {}, `${packet.source} to ${to}/${packet.protocol}${port}: `, make("strong", { class: kind }, fate)),
    decisions(answer.decisions),
    ...endpointTables(answer.endpoints, answer.endpointCount, answer.unused, answer.unusedCount),
    answer.affinitySeconds ? make("p", {}, `A client stays with its endpoint for ${answer.affinitySeconds} s.`) : "",
    decisions(answer.notes),
    make("details", {}, make("summary", {}, "Rules and elements on the way"), make("pre", {}, steps)),
  ];
}

// ---- Counters ----

/** The samples of Prometheus' text, without buckets: `[name, labels, value, help]`. */
function samples(text) {
  const help = new Map();
  const found = [];
  for (const line of text.split("\n")) {
    const [, described, meaning] = /^# HELP (\S+) (.*)$/.exec(line) ?? [];
    if (described) help.set(described, meaning);
    const [, name, labels, value] = /^([A-Za-z_]\w*)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    if (!name || NOT_COUNTERS.test(name)) continue;
    const base = name.replace(/_(sum|count)$/, "");
    found.push([name, labels ?? "", value, help.get(name) ?? help.get(base) ?? ""]);
  }
  return found;
}

find("counters").addEventListener("toggle", async ({ target }) => {
  if (!target.open) return;
  const response = await fetch("page/counters");
  fill(target.querySelector("table"), ["counter", "labels", "#value", "-meaning"], samples(await response.text()));
});

list();
follow();
