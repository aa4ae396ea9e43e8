// Shows what /events says. All text goes through textContent: names of runs and words of servers are never markup.
"use strict";

const at = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

const MARKS = { well: "✓", waiting: "…", aside: "!" };
const SERVER = {
  answering: ["answers", "well-ink"], unknown: ["not asked yet", ""],
  unreachable: ["does not answer", "waiting-ink"], misconfigured: ["refuses us", "aside-ink"],
};

let source = null;

function make(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function name(run, experiment, id) {
  const made = document.createDocumentFragment();
  const under = make("small");
  if (experiment) under.append(make("bdi", experiment));
  if (run && experiment) under.append(" · ");
  if (run) under.append(make("bdi", id));
  made.append(make("bdi", run || id));
  made.append(under);
  return made;
}

function duration(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]])
    if (seconds >= 2 * size) return `${Math.round(seconds / size)} ${unit}`;
  return `${Math.round(seconds)} s`;
}

function bytes(count) {
  const units = ["B", "KB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

function plural(count, what) { return `${whole.format(count)} ${what}${count === 1 ? "" : "s"}`; }

// Only what changed is written: a screen reader reads changes aloud.
function put(id, text, kind) {
  const element = at(id);
  if (element.textContent !== text) element.textContent = text;
  if (kind !== undefined && element.className !== kind) element.className = kind;
}

function fill(id, made, key) {
  const element = at(id);
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  element.replaceChildren(...made());
}

function showNumbers(status) {
  const counts = status.counts, server = status.server;
  const [word, ink] = SERVER[server.state];
  put("server", word, ink);
  put("server-url", server.url);
  const since = server.failing_s ?? server.answered_s;
  put("server-note", since === null ? "" : server.failing_s === null ? `last answer ${duration(since)} ago` : `for ${duration(since)}`);
  put("rate", `${short.format(status.rate.per_s)}/s`);
  put("rate-note", status.eta_s === null || status.eta_s < 2 ? "records in the last minute" : `about ${duration(status.eta_s)} to go`);
  spark(status.rate.history);
  if (!counts) return;
  const about = counts.approximate ? "~" : "";
  put("pending", about + whole.format(counts.pending));
  put("pending-note", counts.pending === 1 ? "record" : "records");
  put("lag", counts.lag_s === null ? "none" : duration(counts.lag_s));
  put("aside", whole.format(counts.quarantined), counts.set_aside ? "aside-ink" : "");
  put("aside-note", `${counts.quarantined === 1 ? "record" : "records"} refused${counts.parked ? `, ${plural(counts.parked, "run")} parked` : ""}`);
  put("runs", whole.format(counts.set_aside + counts.live + counts.waiting + counts.delivered));
  put("runs-note", `${whole.format(counts.live)} live, ${whole.format(counts.waiting)} waiting, ${whole.format(counts.delivered)} delivered`);
  put("acknowledged", short.format(counts.acknowledged));
  const gone = [[counts.dropped, "not stored in training"], [counts.lost, "lost to damage"], [counts.given_up, "given up"]];
  put("acknowledged-note", ["records", ...gone.filter(([count]) => count).map(([count, what]) => `${whole.format(count)} ${what}`)].join(", "));
}

function spark(history) {
  const top = Math.max(...history, 1);
  fill("spark", () => {
    if (history.length < 2) return [];
    const points = history.map((count, i) => `${(i * 120 / (history.length - 1)).toFixed(1)},${(30 - 28 * count / top).toFixed(1)}`);
    return [["under", `M0,32 L${points.join(" L")} L120,32 Z`], ["", `M${points.join(" L")}`]].map(([kind, path]) => {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
      line.setAttribute("d", path);
      line.setAttribute("class", kind);
      return line;
    });
  }, history.join());
}

function showDisks(disks) {
  const [first, second] = disks;
  if (second && first.free === second.free && first.size === second.size) disks = [{ ...first, of: `${first.of} and ${second.of}` }];
  fill("disks", () => disks.flatMap((disk) => {
    const used = disk.size ? 1 - disk.free / disk.size : 0;
    const meter = make("meter");
    Object.assign(meter, { min: 0, max: 1, low: 0.8, high: 0.95, optimum: 0, value: used });
    meter.setAttribute("aria-label", `${disk.of}: ${Math.round(100 * used)} % used`);
    const inodes = disk.free_inodes !== null && disk.free_inodes < 0.05 ? ", nearly out of inodes" : "";
    return [make("small", `${disk.of}: ${bytes(disk.free)} free of ${bytes(disk.size)}${inodes}`), meter];
  }), JSON.stringify(disks));
}

function cell(label, text) {
  const made = make("td", text, text === "" ? "number empty" : "number");
  made.dataset.label = label;
  made.role = "cell";
  return made;
}

function row(run) {
  const made = make("tr"), head = make("th"), state = make("td");
  made.role = "row";
  Object.assign(head, { scope: "row", role: "rowheader" });
  state.role = "cell";
  head.append(name(run.run, run.experiment, run.run_id));
  state.append(make("span", run.state, `state ${/^[a-z]+$/.test(run.state) ? run.state : ""}`));
  if (run.note) { const note = make("small"); note.append(make("bdi", run.note)); state.append(note); }
  made.append(head, state, cell("Delivered", whole.format(run.acknowledged)),
    cell("Waiting", run.pending ? (run.approximate ? "~" : "") + whole.format(run.pending) : ""),
    cell("Set aside", run.quarantined ? whole.format(run.quarantined) : ""),
    cell("Lag", run.lag_s === null ? "" : duration(run.lag_s)));
  return made;
}

function concern(one) {
  const made = make("li"), what = make("p"), why = make("p", undefined, "why"), ways = make("p", undefined, "ways");
  what.append(make("bdi", one.run || one.run_id), ": ", make("bdi", one.what));
  why.append(make("bdi", one.why));
  ways.append(...one.ways.map((way) => make("code", way)));
  made.append(what, why, ways);
  return made;
}

function arrivedRun(one) {
  const made = make("li"), grow = make("span", undefined, "grow");
  grow.append(make("bdi", one.run || one.run_id), " ", make("small", one.experiment));
  made.append(grow, make("span", one.status, "state"));
  if (one.end_time !== null) {
    const ended = make("time", new Date(one.end_time).toLocaleString());
    ended.dateTime = new Date(one.end_time).toISOString();
    made.append(ended);
  }
  return made;
}

function show(status) {
  at("host").textContent = status.agent.host;
  at("spool").textContent = status.agent.spool;
  put("version", `mlferry ${status.agent.version}`);
  const kinds = status.says.map((say) => say.kind);
  document.title = kinds.includes("aside") ? "! mlferry" : "mlferry";
  fill("says", () => status.says.map((say) => {
    const made = make("li", undefined, `say ${say.kind}`), mark = make("span", MARKS[say.kind], "mark");
    mark.setAttribute("aria-hidden", "true");
    made.append(mark, make("bdi", say.text));
    return made;
  }), JSON.stringify(status.says));
  showNumbers(status);
  showDisks(status.disks);
  at("concerns-section").hidden = !status.concerns.length;
  fill("concerns", () => status.concerns.map(concern), JSON.stringify(status.concerns));
  put("more-concerns", status.more_concerns ? `and ${whole.format(status.more_concerns)} more: mlferry status` : "");
  at("table").hidden = !status.runs.length;
  fill("rows", () => status.runs.map(row), JSON.stringify(status.runs));
  const more = status.more_runs ? `and ${plural(status.more_runs, "run")} more: mlferry status` : "";
  put("more-runs", status.runs.length ? more : status.counts ? "Nothing is on its way." : "");
  at("latest-section").hidden = !status.latest.length;
  fill("latest", () => status.latest.map(arrivedRun), JSON.stringify(status.latest));
  const others = status.counts ? status.counts.delivered - status.latest.length : 0;
  put("more-latest", others > 0 ? `and ${plural(others, "run")} before` : "");
}

function link(kind, text) { at("link").className = `link ${kind}`; put("link-text", text); }

function listen() {
  source = new EventSource("events");
  source.addEventListener("open", () => link("live", "Live"));
  source.addEventListener("status", (event) => show(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    link("lost", "No connection to the agent; trying again");
    // A refusal (too many look already) ends an EventSource for good.
    if (source.readyState === EventSource.CLOSED) { source = null; setTimeout(again, 10000); }
  });
}

function again() { if (!source && !document.hidden) listen(); }

// A page that nobody sees costs the agent nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { source?.close(); source = null; link("", "Paused"); }
  else again();
});
again();
