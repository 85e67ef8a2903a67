// The operator's page: asks for the day, listens for what changes, and checks each total itself.

import { DayChart, yearChart } from "./chart.js";
import {
  DASH, clockTime, duration, isoDay, megawatts, percent, shiftDay, showZone, time, windowTime, zoneShown,
} from "./format.js";
import { rowDifference, tileDifference } from "./judgement.js";
import { verify } from "./verify.js";

const $ = (id) => document.getElementById(id);
const chart = new DayChart($("chart"), $("coverage"), () => now());
const verdicts = new Map();
const YEAR_S = 365 * 86400;
const STATUS = {
  released: "released", refused: "refused", expired: "expired", budget_exhausted: "no privacy budget left",
};

let state = null;
let pinned = null;
let view = null;
let shownDay = null;
let wantedDay = null;
let followsToday = true;
let pointed = null;
let year = null;
let startedAt = 0;

async function get(path) {
  const answer = await fetch(path);
  if (answer.status === 401) location.replace("/login");
  const body = await answer.json();
  if (!answer.ok) throw new Error(`${body.reason}: ${body.message}`);
  return body;
}

function now() {
  return state.now + ((performance.now() - startedAt) / 1000) * state.rate;
}

async function loadState() {
  const zoneWas = state?.zone;
  state = await get("/api/state");
  startedAt = performance.now();
  if (zoneWas === undefined) showZone(localStorage.getItem("gridveil-utc") ? "UTC" : state.zone);
  $("city").textContent = state.city_id.slice(0, 8);
  $("key").textContent = state.identity_key;
  pinKey();
  tellHealth(state.health);
  drawSignals();
  drawFindings();
}

// Trust on first use: a key that is not the one this browser knows is said loudly.
function pinKey() {
  const told = `${state.city_id} ${state.identity_key}`;
  const known = localStorage.getItem("gridveil-pinned") ?? told;
  localStorage.setItem("gridveil-pinned", known);
  const [cityId, identityKey] = known.split(" ");
  pinned = { cityId, identityKey };
  $("pin").textContent = known === told ? "It is the key that this browser saw first."
    : `It is NOT the one that this browser knows, which totals are checked against: ${identityKey}, of the city ${cityId}.`;
  if (known !== told) raise("The city or its key-holder's key is not the one that this browser knows. Believe no total here.");
}

function raise(text) {
  $("alarm").textContent = text;
  $("alarm").hidden = false;
}

function notify(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function tellHealth(health) {
  if (health.alarm) raise(`Nothing more of the totals service is believed: ${health.alarm}. What is below is from before.`);
  const words = [];
  if (health.loading) words.push(`Loading past totals: ${health.loaded} so far.`);
  else if (health.totals !== "OK") words.push(`The totals service: ${health.totals}. Newer totals are not here yet.`);
  if (health.controller !== "OK" && health.controller !== "NONE") words.push(`The controller: ${health.controller}. Signals may be old.`);
  notify(words.join(" "));
}

// Only the newest answer is drawn: days may be asked for faster than they come.
let asked = 0;
async function loadDay(day) {
  const mine = ++asked;
  // What is asked for again meanwhile is this day, not the one still shown.
  wantedDay = day;
  const found = await get(`/api/day/${day}`);
  if (mine !== asked) return;
  shownDay = day;
  view = found;
  view.windows.filter((window) => verdicts.has(window)).forEach(judge);
  $("day").textContent = day;
  $("day").dateTime = day;
  $("date").value = day;
  if (!year) chart.show(view, state.rules, state.window_length);
  describeCoverage();
  drawTiles();
  drawRows();
  if ($("csv")) $("csv").href = `/export?day=${day}&format=csv`;
  if ($("parquet")) $("parquet").href = `/export?day=${day}&format=parquet`;
  document.body.dataset.drawn = `${view.windows.length}`;
}

function demandAt(at) {
  return view.estimated[at] ?? view.measured[at];
}

function describeCoverage() {
  const released = view.status.filter((status) => status === "released").length;
  const none = view.status.filter((status) => status && status !== "released").length;
  const lowest = Math.min(...view.count.map((count, at) => (count === null ? 1 : count / view.enrolled[at])));
  $("coverage").setAttribute(
    "aria-label",
    `Share of the meters in each total: ${released} of ${view.windows.length} quarter-hours released, ${none} without a total, at least ${percent(lowest)} of the meters in each.`,
  );
}

function drawTiles() {
  const isToday = shownDay === isoDay(now(), state.zone);
  const demands = view.windows.map((_, at) => demandAt(at));
  const known = demands.filter((watts) => watts !== null && watts !== undefined);
  const top = known.length ? Math.max(...known) : null;
  $("peak").textContent = megawatts(top);
  $("peak-at").textContent = top === null ? "no total of this day" : peakText(demands.indexOf(top), top);
  if (isToday) drawExpected();
}

function peakText(at, watts) {
  const share = state.rules ? `, ${percent(watts / state.rules.capacity_w)} of capacity` : "";
  return `at ${windowTime(view.windows[at], view.windows)}${share}`;
}

function drawExpected() {
  let best = null;
  view.windows.forEach((at, place) => {
    const expected = view.expected[place];
    if (at + state.window_length > now() && expected !== null && (best === null || expected > view.expected[best])) best = place;
  });
  $("expected").textContent = best === null ? DASH : megawatts(view.expected[best]);
  $("expected-at").textContent = best === null ? "no forecast of the rest of today, or not yet"
    : `at ${windowTime(view.windows[best], view.windows)}, in ${duration(view.windows[best] - now())}`;
}

function tick() {
  $("clock").textContent = clockTime(now());
  const newest = state.newest;
  if (!newest) {
    $("demand-of").textContent = $("age-of").textContent = "no total yet";
    return;
  }
  const ended = newest.window_start + state.window_length;
  $("age").textContent = duration(now() - ended);
  $("age-of").textContent = `since ${time(ended)}, when its quarter-hour ended`;
  const scaled = newest.count < newest.enrolled ? newest.enrolled / newest.count : 1;
  const watts = (newest.sum * 3600 * scaled) / state.window_length;
  $("demand").textContent = `${scaled > 1 ? "≈ " : ""}${megawatts(watts)}`;
  const from = time(newest.window_start, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
  $("demand-of").textContent = `${from} to ${time(ended)}: ${newest.count} of ${newest.enrolled} meters${scaled > 1 ? ", estimated for all" : ""}${newest.noisy ? ", with noise" : ""}`;
}

function drawLevel(signal) {
  $("level").textContent = `Level ${signal.level}`;
  $("level-why").textContent = `${words(signal.basis)}: ${words(signal.cause)}${signal.reason ? ` (${words(signal.reason)})` : ""}; the level since ${time(state.level_since ?? signal.at)}`;
  $("tile-level").dataset.level = signal.level;
}

function words(term) {
  return term.toLowerCase().replaceAll("_", " ");
}

function drawSignals() {
  const newest = state.signal;
  if (!newest) return;
  drawLevel(newest);
  const told = state.signals.filter((signal) => signal.number !== newest.number);
  $("signals").replaceChildren(...[newest, ...told].map((signal) => {
    const watts = signal.estimated_w ?? signal.measured_w;
    const figure = watts === null ? "" : ` · ${megawatts(watts)}`;
    const item = document.createElement("li");
    item.textContent = `${time(signal.at)} · level ${signal.level} · ${words(signal.basis)}: ${words(signal.cause)}${figure}`;
    return item;
  }));
  const events = newest.openadr;
  $("openadr").textContent = events.map((event) => JSON.stringify(JSON.parse(event.json), null, 2)).join("\n\n");
  $("delivery").textContent = events.length ? `Delivery: ${[...new Set(events.map((event) => words(event.delivery)))].join(", ")}.`
    : "No program of a VTN is configured.";
}

function drawFindings() {
  const off = state.health.watching !== "OK";
  $("watching").textContent = off ? `Nothing is looked for: ${state.health.watching}.`
    : `Hints from totals alone, and never a verdict. ${state.findings.length ? "" : "Nothing so far."}`;
  $("findings").replaceChildren(...state.findings.map((found) => {
    const item = document.createElement("li");
    const figure = (value) => `${Number(value.toPrecision(3))} ${found.unit}`;
    const lane = found.lane === null ? "" : ` in lane ${found.lane}`;
    const when = time(found.window_start, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
    item.textContent = `${when} · ${words(found.kind)}${lane}: ${figure(found.observed)}, expected ${figure(found.expected)}`;
    return item;
  }));
}

function drawRows() {
  const rows = [];
  for (let at = view.windows.length - 1; at >= 0; at--) {
    if (view.status[at] !== null || view.level[at] !== null) rows.push(row(at));
  }
  $("rows").replaceChildren(...rows);
}

function cell(text, kind = "td") {
  const made = document.createElement(kind);
  made.textContent = text;
  return made;
}

function row(at) {
  const line = document.createElement("tr");
  const head = cell(windowTime(view.windows[at], view.windows), "th");
  head.scope = "row";
  const demand = cell(demandText(at));
  if (view.status[at] !== "released") demand.className = "none";
  line.append(head, demand, cell(metersText(at)), cell(signalText(at)), proofCell(at));
  line.dataset.window = view.windows[at];
  line.dataset.status = view.status[at] ?? "unsettled";
  return line;
}

function demandText(at) {
  if (view.status[at] === null) return "not settled";
  if (view.status[at] !== "released") return `no total: ${STATUS[view.status[at]]}`;
  if (view.estimated[at] === null) return megawatts(view.measured[at]);
  return `${megawatts(view.measured[at])} measured, ≈ ${megawatts(view.estimated[at])} estimated`;
}

function metersText(at) {
  if (view.count[at] === null) return DASH;
  const lanes = view.left_out[at].length ? `; lanes left out: ${view.left_out[at].join(", ")} of ${view.lanes[at]}` : "";
  return `${view.count[at]} of ${view.enrolled[at]} (${percent(view.count[at] / view.enrolled[at])})${lanes}`;
}

function signalText(at) {
  return view.level[at] === null ? DASH : `level ${view.level[at]}, ${words(view.basis[at])}: ${words(view.cause[at])}`;
}

function proofCell(at) {
  const made = document.createElement("td");
  if (view.status[at] === null) return made;
  const window = view.windows[at];
  const verdict = verdicts.get(window);
  if (verdict) {
    made.append(badge(verdict));
  } else {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Verify";
    button.setAttribute("aria-label", `Verify ${windowTime(window, view.windows)}`);
    button.addEventListener("click", () => check(window));
    made.append(button);
  }
  return made;
}

function badge(verdict) {
  const made = document.createElement("span");
  made.className = `badge ${verdict.good ? "good" : "bad"}`;
  made.textContent = verdict.good ? `✓ verified, ${verdict.size} records` : `✗ ${verdict.why}`;
  return made;
}

// Fetches the proof and checks it here; what the page shows must be what is proven.
async function check(window) {
  let verdict;
  try {
    const proof = await get(`/api/proof/${window}`);
    const proven = await verify(proof, pinned);
    verdict = { proven, why: proven.windowStart === window ? "" : "the proof is of another window" };
  } catch (error) {
    verdict = { why: error.message };
  }
  verdicts.set(window, verdict);
  judge(window);
  drawRows();
}

// Every time figures come: those of a window that was proven before must still be the same.
function judge(window) {
  const verdict = verdicts.get(window);
  const why = verdict.why || rowDifference(verdict.proven, view, view.windows.indexOf(window), state)
    || tileDifference(verdict.proven, state);
  verdicts.set(window, { ...verdict, why, good: !why, size: verdict.proven?.size });
  if (why) raise(`The total of ${time(window)} does not verify: ${why}.`);
}

async function verifyAll() {
  $("verify-all").disabled = true;
  for (const [at, status] of view.status.entries()) {
    if (status !== null && !verdicts.get(view.windows[at])?.good) await check(view.windows[at]);
  }
  $("verify-all").disabled = false;
}

function read(at) {
  pointed = at;
  const parts = [windowTime(view.windows[at], view.windows), demandText(at)];
  if (view.expected[at] !== null) parts.push(`expected ${megawatts(view.expected[at])}`);
  if (view.count[at] !== null) parts.push(metersText(at));
  if (view.level[at] !== null) parts.push(signalText(at));
  $("readout").textContent = parts.join(" · ");
}

function keyed(event) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -4, PageDown: 4 };
  const last = view.windows.length - 1;
  let at = pointed ?? Math.max(view.status.lastIndexOf("released"), 0);
  if (event.key in steps) at = Math.min(last, Math.max(0, pointed === null ? at : at + steps[event.key]));
  else if (event.key === "Home") at = 0;
  else if (event.key === "End") at = last;
  else return;
  event.preventDefault();
  chart.point(at);
}

function go(day) {
  closeYear();
  followsToday = day === isoDay(now(), state.zone);
  pointed = null;
  $("readout").textContent = "";
  loadDay(day).catch((error) => notify(error.message));
}

async function toggleYear() {
  if (year) {
    closeYear();
    chart.redraw();
    return;
  }
  const end = Math.ceil(now() / state.window_length) * state.window_length;
  const found = await get(`/api/range?from=${end - YEAR_S}&until=${end}`);
  $("chart").replaceChildren();
  chart.plot = null;
  $("coverage").hidden = true;
  year = yearChart($("chart"), found);
  $("year").setAttribute("aria-pressed", "true");
  $("day").textContent = "the days of a year";
  $("readout").textContent = "";
  requestAnimationFrame(() => setTimeout(() => {
    document.body.dataset.year = `${found.measured.length}`;
    const asked = performance.getEntriesByType("resource").findLast((entry) => entry.name.includes("/api/range"));
    document.body.dataset.yearDrawnMs = `${performance.now() - asked.responseEnd}`;
  }));
}

function closeYear() {
  if (!year) return;
  year.destroy();
  year = null;
  chart.dayShown = "";
  $("coverage").replaceChildren();
  $("coverage").hidden = false;
  chart.stripPlot = null;
  $("year").setAttribute("aria-pressed", "false");
  $("day").textContent = shownDay;
}

function setZone(utc) {
  if (utc) localStorage.setItem("gridveil-utc", "1");
  else localStorage.removeItem("gridveil-utc");
  showZone(utc ? "UTC" : state.zone);
  markZone();
  chart.redraw();
  tick();
  drawTiles();
  drawRows();
  drawSignals();
  drawFindings();
}

function markZone() {
  const utc = zoneShown() === "UTC" && state.zone !== "UTC";
  $("zone-utc").setAttribute("aria-pressed", `${utc}`);
  $("zone-local").setAttribute("aria-pressed", `${!utc}`);
}

function switchTheme() {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
  const theme = dark ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("gridveil-theme", theme);
  chart.redraw();
}

// All is asked for again whenever the stream begins: what was missed meanwhile is in it.
function listen() {
  const events = new EventSource("/api/events");
  events.addEventListener("open", () => reload().catch((error) => notify(error.message)));
  events.addEventListener("error", () => {
    notify("The connection to the console is lost; trying again. What is below may be old.");
    // The browser tries again by itself, unless it was refused.
    if (events.readyState === EventSource.CLOSED) setTimeout(revive, 3000);
  });
  events.addEventListener("health", (event) => {
    const health = JSON.parse(event.data);
    tellHealth(health);
    if (!health.loading) reload();
  });
  events.addEventListener("signal", (event) => {
    state.signal = JSON.parse(event.data);
    drawSignals();
    refresh();
  });
  events.addEventListener("finding", (event) => {
    state.findings.unshift(JSON.parse(event.data));
    drawFindings();
  });
  events.addEventListener("window", (event) => settled(JSON.parse(event.data)));
}

function revive() {
  reload().then(listen, () => setTimeout(revive, 3000));
}

async function settled({ row }) {
  if (row.status === "released" && row.window_start >= (state.newest?.window_start ?? 0)) state.newest = row;
  tick();
  await refresh();
  await check(row.window_start);
}

let refreshing = null;
async function refresh() {
  refreshing ??= Promise.resolve().then(async () => {
    refreshing = null;
    await loadState();
    await loadDay(followsToday ? isoDay(now(), state.zone) : wantedDay);
  });
  return refreshing;
}

async function reload() {
  await loadState();
  await loadDay(followsToday ? isoDay(now(), state.zone) : wantedDay);
  markZone();
  tick();
  const newest = state.newest?.window_start;
  if (newest && !verdicts.has(newest)) await check(newest);
}

chart.onRead = read;
$("chart").addEventListener("keydown", keyed);
$("before").addEventListener("click", () => go(shiftDay(shownDay, -1)));
$("after").addEventListener("click", () => go(shiftDay(shownDay, 1)));
$("today").addEventListener("click", () => go(isoDay(now(), state.zone)));
$("date").addEventListener("change", (event) => event.target.value && go(event.target.value));
$("year").addEventListener("click", () => toggleYear().catch((error) => notify(error.message)));
$("verify-all").addEventListener("click", verifyAll);
$("zone-local").addEventListener("click", () => setZone(false));
$("zone-utc").addEventListener("click", () => setZone(true));
$("theme").addEventListener("click", switchTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart.redraw());

await reload();
listen();
setInterval(() => {
  tick();
  if (followsToday && !year && shownDay !== isoDay(now(), state.zone)) refresh();
}, 1000);
setInterval(() => { if (!year && view) drawTiles(); }, 30000);
